"""How evaluations see an image: the short side brought to s / 0.875 (to s above 224 px), the centre s x s of it.

Shapes: B images of H x W pixels, s pixels of what an evaluation sees.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CROP = 0.875  # part of the short side that the centre crop keeps, up to
CROP_TO = 224  # pixels


STRIP = 16  # times as long as wide: of a longer image only what the crop covers is enlarged


def short_side(size: int) -> int:
    """Pixels of the short side before the centre crop."""
    return int(size / CROP) if size <= CROP_TO else size


def is_strip(height: int, width: int) -> bool:
    """Whether an image is so long that it must not be enlarged whole: a strip of 20,000 x 2 would take gigabytes."""
    return max(height, width) > STRIP * min(height, width)


def scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width with the short side as evaluations want it, the aspect kept."""
    short = short_side(size)
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def centre(height: int, width: int, size: int) -> tuple[int, int]:
    """Top and left of the centre crop."""
    return round((height - size) / 2), round((width - size) / 2)


def see_batch(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) uint8 to (B, 3, s, s) float in [0, 1]; images of that size already stay as they are."""
    height, width = images.shape[2:]
    if is_strip(height, width) and images.shape[1] == 3 and images.dtype == torch.uint8:
        seen = [see_image(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), size) for image in images.cpu()]
        return torch.stack(seen).to(images.device).float() / 255
    values = images.float() / 255
    if (height, width) == (size, size):
        return values
    height, width = scaled(height, width, size)
    values = F.interpolate(values, (height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = centre(height, width, size)
    return values[:, :, top : top + size, left : left + size].clamp(0, 1)


def see_image(image: Image.Image, size: int) -> Tensor:
    """A photograph to (C, s, s), uint8 or, of more than 8 bits, float32 from 0 to 255."""
    if image.size != (size, size):
        height, width = scaled(image.height, image.width, size)
        top, left = centre(height, width, size)
        if is_strip(image.height, image.width):
            y0, y1, upper, lower = _covered(image.height, height, top, size)
            x0, x1, first, last = _covered(image.width, width, left, size)
            part = image.crop((x0, y0, x1, y1))
            seen = part.resize((size, size), Image.Resampling.BICUBIC, box=(first, upper, last, lower))
            return as_tensor(seen)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    return as_tensor(image)


def as_tensor(image: Image.Image) -> Tensor:
    """(C, H, W), uint8 or, of mode F, float32."""
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def _covered(extent: int, scaled_to: int, start: int, size: int) -> tuple[int, int, float, float]:
    """The pixels of a side that a crop depends on, and the crop's two ends among them.

    Args:
        extent: Pixels of the side.
        scaled_to: Pixels of it after scaling.
        start: Of the crop, after scaling.
        size: Likewise.
    """
    step = extent / scaled_to
    margin = 3 * max(1.0, step)  # the bicubic filter reaches two pixels far
    first, last = max(0, math.floor(start * step - margin)), min(extent, math.ceil((start + size) * step + margin))
    return first, last, start * step - first, (start + size) * step - first
