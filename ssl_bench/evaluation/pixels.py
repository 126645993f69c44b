"""The baseline that has learned nothing: raw pixels.

Shapes: B images of a batch, C x s x s pixels.
"""

from collections.abc import Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

CELL = 4  # pixels of the side of what stands for a patch


@final
class Pixels(nn.Module):
    """The baseline that has learned nothing: an image's features are its pixels, at 32 x 32 at most.

    Args:
        image_size: Pixels of the data's images.
        channels: C.
    """

    baseline = "raw pixels"
    is_resnet = False
    feature_types = ("pixels",)
    primary_feature_type = "pixels"

    def __init__(self, image_size: int, channels: int = 3) -> None:
        super().__init__()
        self.img_size = min(image_size, 32)
        self.channels = channels
        self.dim = channels * self.img_size**2

    @property
    def spec(self) -> dict[str, Any]:
        """What builds this again, plain types only."""
        many = {"channels": self.channels} if self.channels != 3 else {}
        return {"architecture": "pixels", "args": {"image_size": self.img_size, **many}}

    def features(self, images: Tensor, feature_types: Sequence[str]) -> dict[str, Tensor]:
        """(B, C, s, s) -> (B, Css)."""
        return {feature_type: {"pixels": images.flatten(1)}[feature_type] for feature_type in feature_types}

    def token_grid(self, images: Tensor) -> Tensor:
        """(B, C, s, s) -> (B, 1, Css), the only token."""
        return images.flatten(1)[:, None]

    def patch_map(self, images: Tensor, layers: int = 1) -> Tensor:
        """(B, C, h, w) -> (B, h / c, w / c, Ccc), the pixels of each cell of c x c."""
        cell = CELL if self.img_size % CELL == 0 else 1
        cells: Tensor = F.unfold(images, cell, stride=cell)  # (B, Ccc, cells)
        return cells.transpose(1, 2).unflatten(1, (images.shape[2] // cell, -1))  # type: ignore[no-any-return]
