"""The contract of a method, and everything that happens while one trains."""
