"""Where the jobs of a benchmark run: an executor per module; the module's name is the one of `--executor`."""
