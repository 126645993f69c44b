"""The size of local views, which several methods cut beside two larger ones."""

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
    step = 8 if backbone.is_resnet else backbone.patch_size
    if size is None:
        size = -(-backbone.img_size * 96 // (224 * step)) * step
    if count < 0:
        raise UserError(f"--method.local_views {count} must be 0 or more")
    if count and size != backbone.img_size and backbone.has_relative_positions:
        name = backbone.options.name
        raise UserError(f"{name} knows one image size, not that of local views: --method.local_views 0, or simclr")
    if count and (size < 1 or (not backbone.is_resnet and size % step)):
        raise UserError(
            f"--method.local_size {size} is no multiple of the patch size {step}: try {max(1, size // step) * step}"
        )
    return size
