"""A grid of runs: planned, estimated and run."""
