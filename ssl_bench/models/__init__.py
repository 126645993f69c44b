"""Backbones, heads and tokenizers, and how they are saved and loaded."""
