"""Runs, results and leaderboards on Weights & Biases."""
