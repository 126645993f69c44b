"""What travels from the data module to a method."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Views of B images, in the order in which the method described them."""

    views: list[Tensor]  # each (B, C, H, W), normalised; a view with count n stands n times
    index: Tensor  # type: ignore[assignment]  # (B,) row of the training set
    labels: Tensor | None = None  # (B,) classes, -1 where not to be seen; only for methods that learn from labels
