"""The functions of `import ssl_bench`: the same as the commands, for Python objects."""
