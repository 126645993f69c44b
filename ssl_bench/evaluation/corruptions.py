"""Corrupted copies of test images: ten kinds, five severities each.

In the spirit of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (https://arxiv.org/abs/1903.12261, ImageNet-C and CIFAR-10-C). Images are 8-bit before and
after, as files hold them. What is random follows from the image's name and the kind alone: it depends neither on the
batch nor on the other images, it is the same for every network, and more severe copies have the same draw, stronger.

Ours, and why:
- Severities are given for images of 32 and of 224 pixels. A size in between lies between them, in equal ratios; a
  smaller or larger one has those of the nearer end, but beyond 224 pixels blurs grow with the image. At 224 pixels they
  are ImageNet-C's where the operation is the same; at 32 they are about as strong as CIFAR-10-C's.
- No weather and no elastic transforms, which need textures and say more about their making than about an encoder.
- One blur by a Gaussian in place of defocus, glass and zoom. Motion blur is the mean along a line of any direction,
  about as long as the trail in ImageNet-C's.
- Saturation only grows, so that severities are ordered; gray images stay as they are.

Shapes: B images of s x s pixels (B, 3, s, s) in [0, 1], n numbers of each.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_bench.augment.colour import gaussian_blur

SEVERITIES = 5
SMALL, LARGE = 32, 224  # pixels that the strengths are given for

Apply = Callable[[Tensor, Sequence[float], Tensor], Iterator[Tensor]]


@dataclass(frozen=True)
class Corruption:
    """One kind.

    Args:
        apply: Images, strengths and the images' (B,) seeds -> a copy for each strength; values may leave [0, 1].
        small: Strengths for images of 32 pixels, growing in effect.
        large: For 224 pixels.
        in_pixels: Whether the strength is a length.
    """

    apply: Apply
    small: tuple[float, float, float, float, float]
    large: tuple[float, float, float, float, float]
    in_pixels: bool = False

    def strengths(self, size: int) -> list[float]:
        """Of the five severities, for images of this many pixels."""
        share = min(1.0, max(0.0, math.log(size / SMALL) / math.log(LARGE / SMALL)))
        growth = max(1.0, size / LARGE) if self.in_pixels else 1.0
        return [growth * a ** (1 - share) * b**share for a, b in zip(self.small, self.large, strict=True)]


def corrupted(images: Tensor, kind: str, seeds: Tensor) -> Iterator[Tensor]:
    """Five corrupted copies of (B, 3, H, W) images in [0, 1], the mildest first; (B,) seeds as `image_seeds` gives."""
    corruption = CORRUPTIONS[kind]
    images = _eight_bits(images)
    for copy in corruption.apply(images, corruption.strengths(images.shape[-1]), seeds.to(images.device)):
        yield _eight_bits(copy.clamp(0, 1))


def image_seeds(ids: Sequence[str], kind: str) -> Tensor:
    """(N,) int64, from each image's name and the kind of corruption."""
    digests = (hashlib.sha256(f"{kind} {name}".encode()).digest() for name in ids)
    return torch.tensor([int.from_bytes(digest[:8], "big", signed=True) for digest in digests], dtype=torch.int64)


def uniform(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """(B,) seeds -> (B, *shape) float32 numbers inside (0, 1), the middles of 2^23 equal parts.

    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), whose i-th number is a function of the seed and i: all numbers of all
    images at once, the same on every device.
    """
    count = torch.arange(1, math.prod(shape) + 1, device=seeds.device)
    bits = splitmix64(seeds[:, None] + count * _GOLDEN)  # (B, n)
    return ((bits >> 41) & (2**23 - 1)).float().add_(0.5).div_(2**23).view(len(seeds), *shape)


def splitmix64(state: Tensor) -> Tensor:
    """The mixing of SplitMix64: int64 states to int64 numbers, each taken as 64 bits."""
    state = (state ^ _shifted(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _shifted(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _shifted(state, 31)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _shifted(bits: Tensor, places: int) -> Tensor:
    """To the right, zeros coming in: torch's own shift of signed integers repeats the sign."""
    shifted: Tensor = (bits >> places) & (2 ** (64 - places) - 1)
    return shifted


def _eight_bits(images: Tensor) -> Tensor:
    """The nearest values an 8-bit image can have."""
    return (images * 255).round_().div_(255)


# --- noise


def gaussian_noise(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Normal noise of each value; the strength is its deviation."""
    noise = torch.special.ndtri(uniform(seeds, images.shape[1:]))
    for deviation in strengths:
        yield images + deviation * noise


def shot_noise(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Photons counted (Poisson); the strength is how many a white pixel sends.

    A count is the quantile at the image's uniform number. The distribution functions of the 256 possible values stand
    one above the other, value i from i to i + 1, so that one search in one sorted list finds all counts.
    """
    level = (images * 255).round().double()
    place = (level + uniform(seeds, images.shape[1:])).contiguous()
    for photons in strengths:
        below = _counts(photons)
        found = torch.searchsorted(below.flatten().to(images.device), place) - level.long() * below.shape[1]
        yield found.float() / photons


@cache
def _counts(photons: float) -> Tensor:
    """(256, n) float64, i plus the probability that a pixel of value i sends at most 0, 1, 2, ... photons."""
    value = torch.arange(256, dtype=torch.float64)[:, None]
    count = torch.arange(math.ceil(photons + 8 * math.sqrt(photons)) + 8, dtype=torch.float64).expand(256, -1)
    below: Tensor = torch.special.gammaincc(count + 1, (value * photons / 255).expand_as(count))
    below[:, -1] = 1.0
    return below.add_(value)


def impulse_noise(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Values that are black or white instead, half of them each; the strength is the share of such values."""
    draw = uniform(seeds, images.shape[1:])
    for share in strengths:
        salted = torch.where(draw > 1 - share / 2, 1.0, images)
        yield torch.where(draw < share / 2, 0.0, salted)


# --- blur


def blurred(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Gaussian blur, mirrored at the border; the strength is its deviation in pixels."""
    for deviation in strengths:
        reach = min(math.ceil(4 * deviation), min(images.shape[2:]) - 1)
        yield gaussian_blur(images, images.new_full((len(images),), deviation), 2 * reach + 1)


def motion_blur(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Mean along a line of random direction, mirrored at the border; the strength is its length L in pixels.

    Of ceil(L) + 1 points evenly along the line, between pixels by bilinear interpolation.
    """
    angle = math.pi * uniform(seeds, (1,))  # (B, 1)
    height, width = images.shape[2:]
    step = torch.cat([angle.cos() * 2 / (width - 1), angle.sin() * 2 / (height - 1)], 1)  # (B, 2), one pixel
    still = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(still, list(images.shape), align_corners=True)  # (B, H, W, 2)
    for length in strengths:
        points = torch.linspace(-length / 2, length / 2, math.ceil(length) + 1).tolist()
        total = torch.zeros_like(images)
        for point in points:
            moved = grid + point * step[:, None, None]
            total += F.grid_sample(images, moved, padding_mode="reflection", align_corners=True)
        yield total / len(points)


# --- light and colour


def brightness(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """The strength is added to the value (of hue, saturation, value), 1 at most."""
    value = images.amax(1, keepdim=True)  # (B, 1, H, W)
    for more in strengths:
        brighter = (value + more).clamp(max=1)
        yield torch.where(value > 0, images * (brighter / value.clamp_min(1 / 255)), brighter)  # black becomes gray


def contrast(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """The strength is the share that is left of the distance from each channel's mean."""
    mean = images.mean((2, 3), keepdim=True)  # (B, 3, 1, 1)
    for share in strengths:
        yield mean + share * (images - mean)


def saturation(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """The saturation (of hue, saturation, value) times the strength, 1 at most."""
    value = images.amax(1, keepdim=True)  # (B, 1, H, W)
    most = value / (value - images.amin(1, keepdim=True)).clamp_min(1 / 255)  # the factor that makes saturation 1
    for factor in strengths:
        yield value - (value - images) * most.clamp(max=factor)


# --- loss of data


def jpeg(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Written and read by libjpeg, one image after another; the strength is its quality, rounded."""
    arrays = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    for quality in strengths:
        read = []
        for array in arrays:
            file = io.BytesIO()
            Image.fromarray(array).save(file, "JPEG", quality=round(quality))
            read.append(np.asarray(Image.open(file, formats=["JPEG"])))
        yield torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(images.device) / 255


def pixelate(images: Tensor, strengths: Sequence[float], seeds: Tensor) -> Iterator[Tensor]:
    """Made smaller by a box filter and larger again by repeating pixels; the strength is the share of the side left."""
    levels = (images * 255).round()
    size = images.shape[-1]
    for share in strengths:
        count = max(1, round(share * size))
        repeat = (2 * torch.arange(size, device=images.device) + 1) * count // (2 * size)  # where a pixel's middle lies
        small = _boxes(_boxes(levels, count).mT, count).mT
        yield small[..., repeat, :][..., repeat] / 255


def _boxes(levels: Tensor, count: int) -> Tensor:
    """(..., s) whole numbers -> (..., count), rounded means of the pixels whose middles lie in each of equal parts.

    A middle between two parts is of the first one; PIL's rounding errors decide there. Sums of whole numbers are exact
    in float32, whatever their order.
    """
    size = levels.shape[-1]
    edge = (2 * torch.arange(count + 1, device=levels.device) * size + count) // (2 * count)
    sums = F.pad(levels.cumsum(-1), (1, 0))
    return ((sums[..., edge[1:]] - sums[..., edge[:-1]]) / edge.diff()).add_(0.5).floor_()


CORRUPTIONS = {
    "gaussian-noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": Corruption(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse-noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian-blur": Corruption(blurred, (0.5, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), in_pixels=True),
    "motion-blur": Corruption(motion_blur, (2, 3, 4, 5, 6), (6, 10, 16, 23, 30), in_pixels=True),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturation": Corruption(saturation, (1.25, 1.5, 2, 2.5, 3), (1.5, 2, 3, 5, 10)),
    "jpeg": Corruption(jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "pixelate": Corruption(pixelate, (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)),
}
