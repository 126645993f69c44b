"""Checkpoints of the official repositories: a file per layout, named as `ssl-bench import --format` names it."""
