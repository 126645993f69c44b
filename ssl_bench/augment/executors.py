"""Where a description of views is carried out: all on a device, or geometry in workers and colour on a device.

All randomness comes from the given generator, and is drawn for the whole batch before any pixel is touched. Images are
then worked on in chunks that a processor's cache can hold.

Shapes: B images of H x W pixels, s x s pixels of a view.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import pil_to_tensor, resized_crop

from ssl_bench.augment.colour import gaussian_blur, grayscale, jitter_, solarize
from ssl_bench.augment.geometry import crop_resize, draw_boxes
from ssl_bench.augment.views import View, Views

CPU_CHUNK = 128 * 3 * 32 * 32  # values; measured from 32 to 512 images of 32 px
ACCELERATOR_CHUNK = 2**26  # values; only bounds memory
NEVER = 4  # turn of the hue in an image without jitter

Channels: TypeAlias = tuple[float, ...]  # a number for each
RGB = 3  # channels whose brightness, contrast, saturation and hue mean something


class DeviceViews:
    """Views of images that are in memory as a batch.

    Args:
        views: The description.
        mean: Of the data, per channel in [0, 1].
        std: Of the data; the results are normalised by both.
    """

    def __init__(self, views: Views, mean: Channels, std: Channels) -> None:
        self.views, self.mean, self.std = [view for view in views for _ in range(view.count)], mean, std

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Images (B, C, H, W), uint8 or float from 0 to 255, to one (B, C, s, s) float32 per view.

        The generator is on the images' device. Colours are changed where there are three channels alone.
        """
        return [self._view(view, images, generator) for view in self.views]

    def _view(self, view: View, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        boxes = draw_boxes(count, height, width, view.scale, view.ratio, generator)
        flip = torch.rand(count, generator=generator, device=generator.device) < view.flip

        def crop(rows: Tensor) -> Tensor:
            return crop_resize(images.index_select(0, rows), boxes[rows], view.size, view.interpolation, flip[rows])

        return _Colour(view, count, generator).apply(crop, self.mean, self.std)


class CropInWorker:
    """The geometry of views of one image: what a decoding process does, so that only crops travel."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __call__(self, image: Image.Image, generator: torch.Generator) -> list[Tensor]:
        """An image, RGB or gray, to one (C, s, s) per view: uint8, or float32 from 0 to 255 where it has more bits."""
        pixels = pil_to_tensor(image)
        return [crop for view in self.views for crop in self._crops(view, pixels, generator)]

    def _crops(self, view: View, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        _, height, width = pixels.shape
        boxes = draw_boxes(view.count, height, width, view.scale, view.ratio, generator).tolist()
        flips = (torch.rand(view.count, generator=generator) < view.flip).tolist()
        size, interpolation = [view.size, view.size], InterpolationMode(view.interpolation)
        crops = [resized_crop(pixels, *box, size, interpolation, antialias=True) for box in boxes]
        if pixels.is_floating_point():  # where bicubic overshoots; of integers torchvision clips it
            crops = [crop.clamp(0, 255) for crop in crops]
        return [crop.flip(-1) if flip else crop.contiguous() for crop, flip in zip(crops, flips, strict=True)]


class ColourOnDevice:
    """The rest of the same views, for batches of such crops.

    Args:
        views: The description.
        mean: Of the data, per channel in [0, 1].
        std: Of the data; the results are normalised by both.
    """

    def __init__(self, views: Views, mean: Channels, std: Channels) -> None:
        self.views, self.mean, self.std = [view for view in views for _ in range(view.count)], mean, std

    @torch.no_grad()
    def __call__(self, crops: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """One (B, 3, s, s) uint8 per view to one float32 per view."""
        return [self._view(view, batch, generator) for view, batch in zip(self.views, crops, strict=True)]

    def _view(self, view: View, crops: Tensor, generator: torch.Generator) -> Tensor:
        def load(rows: Tensor) -> Tensor:
            planes = crops.index_select(0, rows).transpose(0, 1)
            return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255).transpose(0, 1)

        return _Colour(view, len(crops), generator).apply(load, self.mean, self.std)


class _Colour:
    """The colour part of a view, drawn for B images."""

    def __init__(self, view: View, count: int, generator: torch.Generator) -> None:
        self.view, self.device = view, generator.device
        uniform = torch.rand(13, count, generator=generator, device=self.device)
        self.order = uniform[:3].argsort(0).T  # (B, 3)
        centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
        strength = torch.tensor(view.jitter or [0.0] * 4)
        low, high = torch.maximum(centre - strength, centre - 1).to(self.device), (centre + strength).to(self.device)
        self.factors = low + (high - low) * uniform[3:7].T  # (B, 4)
        self.sigma = view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * uniform[7]
        chances = torch.tensor([view.jitter_p if view.jitter else 0.0, view.grayscale, view.blur, view.solarize])
        happens = uniform[8:12] < chances.to(self.device)[:, None]
        turn = torch.where(happens[0], torch.floor(4 * uniform[12]), NEVER)
        plan = torch.cat([turn[None], happens[1:]]).long().cpu()  # the one time that a device is waited for
        self.turn, (self.grayscale, self.blur, self.solarize) = plan[0], plan[1:].bool()

    def apply(self, load: Callable[[Tensor], Tensor], mean: Channels, std: Channels) -> Tensor:
        """Colour and normalise the images that `load` gives for rows of the batch; (B, C, s, s)."""
        count, size = len(self.turn), self.view.size
        result = torch.empty(count, len(mean), size, size, device=self.device)
        chunk = max(1, (CPU_CHUNK if self.device.type == "cpu" else ACCELERATOR_CHUNK) // (3 * size * size))
        for rows, part in zip(torch.split(torch.arange(count), chunk), torch.split(result, chunk), strict=True):
            order = self.turn[rows].argsort(stable=True)  # jitter wants equal turns together
            images = load(rows[order].to(self.device))
            self._change(images, rows[order])
            planes = images.transpose(0, 1).index_select(1, order.argsort().to(self.device))
            for plane, channel, m, s in zip(planes, part.unbind(1), mean, std, strict=True):
                torch.add(torch.tensor(-m / s, device=self.device), plane, alpha=1 / s, out=channel)
        return result

    def _change(self, images: Tensor, rows: Tensor) -> None:
        """Change images in place, by what was drawn for these rows of the batch."""
        turns = self.turn[rows].bincount(minlength=NEVER)[:NEVER].tolist()
        jittered = rows[: sum(turns)].to(self.device)
        if len(jittered) and images.shape[1] == RGB:
            jitter_(images[: len(jittered)], self.factors[jittered], self.order[jittered], turns)
        planes = images.transpose(0, 1)
        changes: tuple[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]], ...] = (
            (self.grayscale, lambda some, _: grayscale(some) if some.shape[1] == RGB else some),
            (self.blur, lambda some, which: gaussian_blur(some, self.sigma[which], self.view.taps)),
            (self.solarize, lambda some, _: solarize(some) if some.shape[1] == RGB else some),
        )
        for happens, change in changes:
            indices = happens[rows].nonzero()[:, 0]
            if len(indices):
                some, which = indices.to(self.device), rows[indices].to(self.device)
                changed = change(planes.index_select(1, some).transpose(0, 1), which)
                planes.index_copy_(1, some, changed.transpose(0, 1))
