"""What a method's views are. A description only: `ssl_bench.augment` decides where and how it runs. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class View:
    """One kind of random view of an image, in the order in which the operations happen.

    Args:
        size: Pixels of the (square) result.
        count: How many such views of each image.
        scale: Part of the image's area that the crop covers, uniform in this range.
        ratio: Width over height of the crop, log-uniform in this range.
        interpolation: bicubic or bilinear, with antialiasing when it shrinks.
        flip: Probability of a left-right flip.
        jitter: Strengths of brightness, contrast, saturation and hue, in random order; factors are uniform in
            [1 - s, 1 + s], the hue shift in [-s, s] of the colour circle (torchvision's ColorJitter).
        jitter_p: Probability of that jitter.
        grayscale: Probability of losing colour.
        blur: Probability of a Gaussian blur.
        blur_sigma: Its standard deviation in pixels, uniform in this range.
        blur_kernel: Taps of the blur, odd; a tenth of `size` when not given (SimCLR).
        solarize: Probability of inverting all values of 0.5 or more.
    """

    size: int
    count: int = 1
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] | None = None
    jitter_p: float = 0.8
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int | None = None
    solarize: float = 0.0

    @property
    def taps(self) -> int:
        """Taps of the blur: given, or a tenth of the size, made odd, at least 3."""
        return self.blur_kernel if self.blur_kernel is not None else max(3, self.size // 10 | 1)


Views: TypeAlias = Sequence[View]


def two_views(
    size: int,
    crop_scale: float,
    jitter: Sequence[float],
    grayscale: float,
    blur: Sequence[float],
    solarize: Sequence[float],
    interpolation: str = "bicubic",
) -> Views:
    """Two views of one size that differ in blur and solarisation, as BYOL has them.

    Args:
        size: Pixels of a view.
        crop_scale: Least part of the image's area in a view.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of losing colour.
        blur: Probability in the first view and in the second.
        solarize: The same of solarisation.
        interpolation: As in `View`.
    """
    brightness, contrast, saturation, hue = jitter  # a list, when a file gave it
    return [
        View(
            size,
            scale=(crop_scale, 1.0),
            interpolation=interpolation,
            jitter=(brightness, contrast, saturation, hue),
            grayscale=grayscale,
            blur=view_blur,
            solarize=view_solarize,
        )
        for view_blur, view_solarize in zip(blur, solarize, strict=True)
    ]


def multi_crop(
    sizes: tuple[int, int],
    local_views: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    blur: tuple[float, float, float],
    solarize: float,
) -> Views:
    """Two global views and some local ones, as DINO and iBOT have them.

    Args:
        sizes: Pixels of a global and of a local view.
        local_views: How many local ones.
        global_scale: Part of the image's area in a global view.
        local_scale: The same of a local one.
        blur: Probability in the first global view, the second, and a local one.
        solarize: Probability in the second global view.
    """

    def view(size: int, scale: tuple[float, float], blur: float, count: int = 1, solarize: float = 0.0) -> View:
        jitter, taps = (0.4, 0.4, 0.2, 0.1), min(13, 2 * size - 1)  # three times the widest blur, to each side
        low, high = scale  # a list, when a file gave it
        return View(
            size, count, (low, high), jitter=jitter, grayscale=0.2, blur=blur, blur_kernel=taps, solarize=solarize
        )

    views = [view(sizes[0], global_scale, blur[0]), view(sizes[0], global_scale, blur[1], solarize=solarize)]
    return views + [view(sizes[1], local_scale, blur[2], local_views)] * (local_views > 0)
