"""Batches of a loader that knows nothing of views: images, however they are packed, become the views of a method.

Shapes: B images of a batch, C x H x W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ssl_bench.augment.executors import DeviceViews
from ssl_bench.augment.views import Views
from ssl_bench.console import say
from ssl_bench.data.batch import Batch
from ssl_bench.errors import UserError
from ssl_bench.runtime.seeds import derive

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of each channel
IMAGE_KEYS = ("image", "images", "pixel_values", "img", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
EXPECTED = "a batch is a (B, C, H, W) tensor of images, alone, first of a list or tuple, or in a dict"


@final
class ImageBatches:
    """Makes views on the device where the images are; all that a step draws follows from (seed, epoch, batch, rank).

    Args:
        views: What a method wants to see of each image.
        mean: Of each channel, of images in [0, 1].
        std: Their standard deviation.
        seed: Of the views, and of what the loss draws.
    """

    def __init__(self, views: Views, mean: Sequence[float], std: Sequence[float], seed: int) -> None:
        self.mean, self.std, self.seed = tuple(mean), tuple(std), seed
        self._size = max(view.size for view in views)
        self._views = DeviceViews(views, self.mean, self.std)
        self._looked = False  # at the values of a batch, once

    def __call__(self, batch: Any, epoch: int, number: int, rank: int, labelled: bool = False) -> Batch:
        """The views of a batch.

        Args:
            batch: (B, C, H, W) uint8 in 0 to 255 or float in [0, 1], alone, with labels, or in a dict.
            epoch: Of training.
            number: Of the batch in its epoch.
            rank: Of this process.
            labelled: Whether labels are needed; they are the second of a list or tuple.

        Raises:
            UserError: It holds no images, images of other values, or no labels where they are needed.
        """
        images, labels = unpacked(batch)
        if labelled and labels is None:
            raise UserError("this method learns from labels: let the loader give (images, labels)")
        images = self._in_bytes(images)
        generator = torch.Generator(images.device)
        generator.manual_seed(derive(self.seed, epoch, number, rank))
        with torch.autocast(images.device.type, enabled=False):
            views = self._views(images, generator)
        torch.manual_seed(derive(self.seed, epoch, number, rank, 1))
        return Batch(views, torch.arange(len(images), device=images.device), labels if labelled else None)

    def _in_bytes(self, images: Tensor) -> Tensor:
        """Images with values from 0 to 255, of as many channels as the mean has."""
        channels = images.shape[1]
        if channels == 1 and len(self.mean) == 3:
            images = images.expand(-1, 3, -1, -1)
        elif channels != len(self.mean):
            known = f"mean and std are those of {len(self.mean)}"
            raise UserError(f"images of {channels} channels, and {known}: create_method(..., mean=..., std=...)")
        if not self._looked:
            self._look(images)
            self._looked = True
        return images if images.dtype == torch.uint8 else images.float() * 255

    def _look(self, images: Tensor) -> None:
        """Refuse values that mean something else, and mention what may be a mistake; of one batch, as this waits."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise UserError(f"images of {images.dtype}: give uint8 from 0 to 255, or float from 0 to 1")
        if images.is_floating_point():
            low, high = images.float().aminmax()
            if not (low >= -0.01 and high <= 1.01):
                values = f"{float(low):.3g} to {float(high):.3g}"
                raise UserError(f"float images have values from {values}, not 0 to 1: leave normalising to the method")
        side = max(images.shape[2:])
        if side < self._size / 2:
            say(f"images of {side} px are enlarged to views of {self._size} px: create_method(..., image_size={side})")


def unpacked(batch: Any) -> tuple[Tensor, Tensor | None]:
    """(B, C, H, W) images of a batch and, where it has some, (B,) labels.

    Raises:
        UserError: It has no images that can be found.
    """
    images, labels = batch, None
    if isinstance(batch, Mapping):
        name = next((key for key in IMAGE_KEYS if key in batch), None)
        if name is None:
            raise UserError(f"a batch with {', '.join(map(str, batch))} has no images: name them {IMAGE_KEYS[0]!r}")
        images, labels = batch[name], next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, Sequence) and len(batch) > 0:
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = f"{tuple(images.shape)} tensor" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"a {found} where images should be: {EXPECTED}")
    return images, labels if isinstance(labels, Tensor) and labels.shape == images.shape[:1] else None


def batch_size_of(loader: Any) -> int | None:
    """Images of a batch, as a loader says itself; None if it does not."""
    for part in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(part, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return None
