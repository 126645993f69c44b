"""Training a copy of a backbone with a classifier on top."""
