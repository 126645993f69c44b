"""Confidence intervals, paired comparisons and rankings. NumPy, SciPy and pandas only."""
