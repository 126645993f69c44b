"""Images as patches and back, and positions of patches: fixed ones, and any at another size.

Shapes: B images, C channels, H x W pixels, N patches of p x p pixels.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.errors import UserError


def patchify(images: Tensor, patch_size: int, order: Literal["channel first", "channel last"]) -> Tensor:
    """(B, C, H, W) -> (B, N, p * p * C): each patch's values, channel slowest (a convolution's) or fastest (MAE's)."""
    b, c, h, w = images.shape
    p = patch_size
    cells = images.reshape(b, c, h // p, p, w // p, p)
    axes = (0, 2, 4, 1, 3, 5) if order == "channel first" else (0, 2, 4, 3, 5, 1)
    return cells.permute(axes).reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(cells: Tensor, patch_size: int, order: Literal["channel first", "channel last"]) -> Tensor:
    """(B, N, p * p * C) -> (B, C, H, W), square: what `patchify` took apart."""
    b, n, values = cells.shape
    p, grid = patch_size, math.isqrt(n)
    inner = (values // p**2, p, p) if order == "channel first" else (p, p, values // p**2)
    axes = (0, 3, 1, 4, 2, 5) if order == "channel first" else (0, 5, 1, 3, 2, 4)
    return cells.reshape(b, grid, grid, *inner).permute(axes).reshape(b, values // p**2, grid * p, grid * p)


def sincos_positions(dim: int, grid: int, layout: Literal["mae", "moco"]) -> Tensor:
    """(grid * grid, dim) sine-cosine position embeddings of a square grid, computed in float64.

    The first half of the channels encodes the column (MAE) or the row (MoCo v3, CAE), the second the other.
    """
    if dim % 4:
        raise UserError(f"sine-cosine positions need a width divisible by 4, not {dim}")
    omega = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # (grid, dim / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, dim / 2)
    row = axis[:, None].expand(grid, grid, -1)
    column = axis[None].expand(grid, grid, -1)
    return torch.cat([column, row] if layout == "mae" else [row, column], dim=2).reshape(grid * grid, dim).float()


def resample_positions(positions: Tensor, grid: tuple[int, int], offset: float, antialias: bool) -> Tensor:
    """(1, g * g, D) position embeddings of a square grid -> (1, h * w, D), bicubic.

    Args:
        positions: Of the native grid.
        grid: (h, w).
        offset: DINO's code scales by (h + 0.1) / g, so that rounding down cannot lose a row, which shifts samples a
            little; with 0, h x w positions are asked for instead (MAE, DINOv2 with registers, timm).
        antialias: Smooth before taking fewer (DINOv2 with registers, timm).
    """
    side = math.isqrt(positions.shape[1])
    square = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, g, g)
    if offset:
        scale = [(length + offset) / side for length in grid]
        square = F.interpolate(square, scale_factor=scale, mode="bicubic", align_corners=False, antialias=antialias)
    else:
        square = F.interpolate(square, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    assert tuple(square.shape[2:]) == grid
    return square.permute(0, 2, 3, 1).flatten(1, 2)
