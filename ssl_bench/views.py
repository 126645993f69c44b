"""Random views of images: a description (`View`), and what makes them for a whole batch where the images are.

`DeviceViews([View(32, count=2)], mean, std)(images, generator)` gives a list of (B, C, s, s), one for each view.
"""

from ssl_bench.augment.executors import DeviceViews
from ssl_bench.augment.views import View, Views, multi_crop, two_views

__all__ = ["DeviceViews", "View", "Views", "multi_crop", "two_views"]
