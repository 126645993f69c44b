"""Pictures of one run, under the same names for every method: `ssl-bench figures`."""
