"""Augmentation: descriptions of views, and the executors that make them, in workers or on the device."""
