"""How evaluations see an image: the short side brought to s / 0.875 (to s above 224 px), the centre s x s of it.

Shapes: B images of H x W pixels, s pixels of what an evaluation sees.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CROP = 0.875  # part of the short side that the centre crop keeps, up to
CROP_TO = 224  # pixels


def short_side(size: int) -> int:
    """Pixels of the short side before the centre crop."""
    return int(size / CROP) if size <= CROP_TO else size


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
    values = images.float() / 255
    if (height, width) == (size, size):
        return values
    height, width = scaled(height, width, size)
    values = F.interpolate(values, (height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = centre(height, width, size)
    return values[:, :, top : top + size, left : left + size].clamp(0, 1)


def see_image(image: Image.Image, size: int) -> Tensor:
    """A photograph to (3, s, s) uint8."""
    if image.size != (size, size):
        height, width = scaled(image.height, image.width, size)
        top, left = centre(height, width, size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
