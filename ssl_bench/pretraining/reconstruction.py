"""What a method makes of an image whose patches it hid from itself, in pixels.

Shapes: B images of 3 x H x W pixels, N patches of p x p, M of them hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_bench.models.patches import patchify, unpatchify
from ssl_bench.pretraining.masks import hidden_mask


@dataclass(frozen=True)
class Reconstruction:
    """A prediction beside what it is of; images are normalised as views are.

    Args:
        input: (B, 3, H, W), whole.
        mask: (B, N) bool, True for patches that were hidden; N is a square number.
        prediction: (B, 3, H, W); means something where patches were hidden.
        note: What a reader must know of how the prediction became pixels; a sentence, or nothing.
    """

    input: Tensor
    mask: Tensor
    prediction: Tensor
    note: str = ""


NORMALISED = (
    "Predicted are pixels relative to their patch's mean and deviation; here each patch is given back its own two "
    "numbers, which the method does not predict."
)


def of_pixels(images: Tensor, hidden: Tensor, predicted: Tensor, patch_size: int, normalised: bool) -> Reconstruction:
    """The reconstruction by a method that predicts hidden patches' pixels.

    Args:
        images: (B, 3, H, W).
        hidden: (B, M) indices of the hidden patches.
        predicted: (B, M, 3pp), pixels in (row, column, channel) order.
        patch_size: p.
        normalised: Whether they are relative to each patch's mean and (unbiased) deviation.
    """
    cells = patchify(images.float(), patch_size, "channel last")  # (B, N, 3pp)
    predicted = predicted.float()
    if normalised:
        variance, mean = torch.var_mean(cells.take_along_dim(hidden[..., None], 1), dim=-1, keepdim=True)  # (B, M, 1)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    mask = hidden_mask(hidden, cells.shape[1])
    cells = cells.scatter(1, hidden[..., None].expand_as(predicted), predicted)
    note = NORMALISED if normalised else ""
    return Reconstruction(images, mask, unpatchify(cells, patch_size, "channel last"), note)
