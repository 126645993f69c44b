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
