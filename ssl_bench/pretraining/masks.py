"""Which patches are hidden, drawn for all images of a batch at once; True where hidden.

The draws are tensor operations on the host, from torch's own generator: a device need not be waited for to learn that
all masks are done or how many patches they hide, and the same seed gives the same masks on any device.

Shapes: B images, N = g x g patches, A images whose mask is not done, T tries at a block.
"""

import math

import torch
from torch import Tensor

from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone

LEAST_SIDE = 3  # patches along a side below which there is next to nothing to predict a hidden one from
TRIES = 10  # BEiT, iBOT, CAE: so many blocks in a row that do not fit end a mask that may fall short


def require_patches(backbone: Backbone, method: str) -> None:
    """Refuse a network that sees too few patches for any to be hidden.

    Raises:
        UserError: How many there are, how many are needed, and which patches give them.
    """
    size, patch, stride = backbone.img_size, backbone.patch_size, backbone.stride
    side = size // stride
    if side >= LEAST_SIDE:
        return
    merged = stride // patch  # patches along a side of an output token: 1 but for Swins
    fitting = [p for p in range(1, patch) if size % (p * merged) == 0 and size // (p * merged) >= LEAST_SIDE]
    remedy = f"--backbone.patch_size {fitting[-1]}, or larger images" if fitting else "larger images"
    least = f"at least {LEAST_SIDE**2} ({LEAST_SIDE} x {LEAST_SIDE}) are needed"
    raise UserError(f"{method} hides patches, and {size} px hold {side**2} of {stride} px; {least}: {remedy}")


def block_masks(
    count: int,
    grid: int,
    target: float | Tensor,
    min_area: float,
    aspect: float = 0.3,
    exact: bool = False,
    max_area: float = math.inf,
) -> Tensor:
    """(B, N) masks made of rectangles, as in BEiT; iBOT's may fall short of their target, CAE's are exact.

    Block after block: its area is uniform between ``min_area`` and what is left to hide, its height over width
    log-uniform; it is placed anywhere, if smaller than the image both ways, and kept if it hides anything new and no
    more than is left.

    Args:
        count: B.
        grid: g, patches along a side.
        target: Patches to hide, one number or (B,) of them; fractions are fine unless ``exact``.
        min_area: Patches of the smallest block, where so many are left to hide; (g - 1)^2 at most.
        aspect: Lower bound of height over width; the upper one is its inverse.
        max_area: Patches that a block may hide at most (DINOv2).
        exact: Go on until exactly ``target`` patches are hidden, rather than stop after ten blocks that do not fit.
    """
    left = torch.as_tensor(target, dtype=torch.float64).cpu().expand(count).clone()
    if exact:
        assert grid > 1 and bool((left == left.floor()).all() & (left <= grid**2).all()), f"{target} of {grid}x{grid}"
    min_area = min(min_area, (grid - 1) ** 2)  # no larger block may be placed, and an exact mask would never be done
    masks = torch.zeros(count, grid, grid, dtype=torch.float64)  # which autocast leaves alone
    line = torch.arange(grid)
    active = (left > 0).nonzero()[:, 0]  # (A,)
    while len(active):
        mask, most = masks[active], left[active, None].clamp(max=max_area)  # (A, g, g), (A, 1)
        area, shape, y, x = torch.rand(4, len(active), TRIES, dtype=torch.float64).unbind()  # (A, T) each
        area = min_area + (most - min_area) * area
        shape = (math.log(1 / aspect) * (2 * shape - 1)).exp()
        height, width = (area * shape).sqrt().round(), (area / shape).sqrt().round()
        top, start = (y * (grid - height + 1)).floor(), (x * (grid - width + 1)).floor()
        rows = (line >= top[..., None]) & (line < (top + height)[..., None])  # (A, T, g)
        columns = (line >= start[..., None]) & (line < (start + width)[..., None])
        hidden = (rows.double() @ mask * columns).sum(2)  # (A, T), of the block already
        new = height * width - hidden
        fits = (height < grid) & (width < grid) & (new > 0) & (new <= most)
        chosen = fits.int().argmax(1, keepdim=True)  # (A, 1)
        found = fits.any(1)
        row, column = (side.take_along_dim(chosen[..., None], 1)[:, 0] for side in (rows, columns))  # (A, g) each
        block = row[:, :, None] & column[:, None, :] & found[:, None, None]
        masks[active] = mask.masked_fill(block, 1.0)
        left[active] -= new.take_along_dim(chosen, 1)[:, 0] * found
        active = active[(left[active] > 0) & (found | exact)]
    return masks.flatten(1).bool()


def random_masks(count: int, grid: int, target: float | Tensor) -> Tensor:
    """(B, N) masks of exactly ``target`` patches, rounded down, anywhere; one number or (B,) of them."""
    place = torch.rand(count, grid**2).argsort(1).argsort(1)  # (B, N), a permutation each
    return place < torch.as_tensor(target, dtype=torch.float64).cpu().expand(count).floor()[:, None]


def hidden_mask(hidden: Tensor, patches: int) -> Tensor:
    """(B, M) places of hidden patches -> (B, N) bool."""
    return torch.zeros(len(hidden), patches, dtype=torch.bool, device=hidden.device).scatter(1, hidden, True)


def mask_ratios(count: int, ratios: tuple[float, ...], spreads: tuple[float, ...]) -> Tensor:
    """(B,) parts to hide: one of ``ratios`` each, all as likely, then uniform within plus and minus its spread."""
    which = torch.randint(len(ratios), (count,))
    centre, spread = (torch.tensor(values, dtype=torch.float64)[which] for values in (ratios, spreads))
    return centre + spread * (2 * torch.rand(count, dtype=torch.float64) - 1)
