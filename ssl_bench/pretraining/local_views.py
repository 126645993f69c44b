"""Local views, which several methods cut beside two larger ones: their size, and features of both sizes.

Shapes: V views of B images, s pixels, C channels; features D.
"""

from itertools import groupby

import torch
from torch import Tensor

from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone


def checked_local_size(backbone: Backbone, count: int, size: int | None) -> int:
    """Pixels of local views: as given, or in proportion to the image and rounded up to whole patches.

    Args:
        backbone: What will see them.
        count: How many local views there are.
        size: As given; None for 96 of an image of 224, and in proportion.

    Raises:
        UserError: The network cannot see views of that size.
    """
    has_patches = backbone.is_vit or backbone.is_swin
    step = backbone.patch_size if has_patches else 8
    if size is None:
        size = -(-backbone.img_size * 96 // (224 * step)) * step
    if count < 0:
        raise UserError(f"--method.local_views {count} must be 0 or more")
    if count and size != backbone.img_size and backbone.has_relative_positions:
        name = backbone.options.name
        raise UserError(f"{name} knows one image size, not that of local views: --method.local_views 0, or simclr")
    if count and (size < 1 or (has_patches and size % step)):
        raise UserError(
            f"--method.local_size {size} is no multiple of the patch size {step}: try {max(1, size // step) * step}"
        )
    return size


def features_by_size(backbone: Backbone, views: list[Tensor]) -> Tensor:
    """Features of all views, neighbours of the same size in one batch, whose statistics batch norms then share.

    Args:
        backbone: Takes (N, C, s, s) of any of the sizes.
        views: Of (B, C, s, s), those of a size side by side.

    Returns:
        (VB, D), view by view.
    """
    sizes = [list(same) for _, same in groupby(views, key=lambda view: view.shape[-1])]
    return torch.cat([backbone(torch.cat(same)) for same in sizes])
