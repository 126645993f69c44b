"""Carries out a method's description of its views (`ssl_bench.augment.views`)."""

from ssl_bench.augment.executors import ColourOnDevice, CropInWorker, DeviceViews

__all__ = ["ColourOnDevice", "CropInWorker", "DeviceViews"]
