"""Checkpoints of other projects, imported and exported."""
