"""One module each; the file's name is the name on the command line."""

if __name__ == "methods":
    raise ImportError("import ssl_bench.methods, not methods: the second name would make a second copy of every class")
