"""What a run will take, from a few of its steps: memory, the largest batch, rate and hours."""
