"""One module each; the file's name is the name on the command line."""

if __name__ == "evaluations":
    raise ImportError(
        "import ssl_bench.evaluations, not evaluations: the second name would make a second copy of every class"
    )
