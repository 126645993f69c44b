"""Typed options, the registry of names, and the layers that make a configuration."""
