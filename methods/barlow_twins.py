"""Barlow Twins: the same feature of two views should agree, and different features should have nothing in common.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021.
Paper: https://arxiv.org/abs/2103.03230. Reference code: https://github.com/facebookresearch/barlowtwins.

Shapes: B images per device, G on all devices, H x W pixels, D backbone features, P projected features.

Where the two disagree, this is the code: batch norm, so the biased deviation, standardises the projections, one running
average over both views; biases and norms have a rate of their own, `bias_lr`. With W devices the code's gradient is
that of one device on the joint batch divided by W, because it adds the devices' correlations up outside autograd. LARS
makes weights indifferent to that, biases and norms not, and their published rate was found with many devices; so the
code's gradient is the default, and `exact_gradient` the true one.
Here and not there: a true Gaussian blurs, not Pillow's boxes; correlations are divided by the images that are there,
not by the batch size asked for, which only the code's last, partial batch can tell apart.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, two_views
from ssl_bench.config.constraints import Fraction, Hue, NonEmpty, NonNegativeFloat, PositiveFloat, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import parameter_groups
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import all_reduce_sum, world_size
from ssl_bench.runtime.precision import float32_at_least


class BarlowTwins(Method):
    """Cross-correlation of two views' projections, driven to the identity matrix.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's is ResNet-50.
        off_diagonal_weight: Of the squared correlations between different features, against those of the same.
        projection_dims: Widths of the projector's layers; the last is P.
        bias_lr: Learning rate of biases and norms for 256 images; that of weights when not given.
        exact_gradient: With several devices, the gradient of one on the joint batch, not the code's fraction of it.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur, in either view; 0 and 0 for CIFAR-10.
        solarize: Probability of inverting bright values, in either view.
        crop_scale: Smallest part of the image's area in a view.
        optim: LARS with the rate outside the momentum, 0.2 per 256 images down to a thousandth, 10 epochs of warm-up.
    """

    kind = "redundancy reduction"

    def __init__(
        self,
        backbone: Backbone,
        off_diagonal_weight: NonNegativeFloat = 0.0051,
        projection_dims: Annotated[tuple[Width, ...], NonEmpty()] = (8192, 8192, 8192),
        bias_lr: PositiveFloat | None = 0.0048,
        exact_gradient: bool = False,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.2, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: tuple[UnitInterval, UnitInterval] = (1.0, 0.1),
        solarize: tuple[UnitInterval, UnitInterval] = (0.0, 0.2),
        crop_scale: Fraction = 0.08,
        optim: Optim = Optim("lars", base_lr=0.2, weight_decay=1e-6, warmup_epochs=10, min_lr=2e-4),
    ) -> None:
        super().__init__(backbone, optim)
        if bias_lr is not None and not optim.base_lr > 0:
            raise UserError(f"--optim.base_lr {optim.base_lr}: with --method.bias_lr it must be above 0")
        self.off_diagonal_weight, self.bias_lr, self.exact_gradient = off_diagonal_weight, bias_lr, exact_gradient
        self.jitter, self.grayscale, self.crop_scale = jitter, grayscale, crop_scale
        self.blur, self.solarize = blur, solarize
        self.projector = projector(backbone.dim, projection_dims)
        self.norm = nn.BatchNorm1d(projection_dims[-1], affine=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        weights, plain = parameter_groups(self)
        # A rate of its own follows the same curve, whatever its peak.
        return [weights, plain | {"lr_scale": 1.0 if self.bias_lr is None else self.bias_lr / self.optim.base_lr}]

    def views(self) -> Views:
        size, scale = self.backbone.img_size, self.crop_scale
        return two_views(size, scale, self.jitter, self.grayscale, self.blur, self.solarize)

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Squared distance of the correlations from 1 on the diagonal and, weighted, from 0 beside it."""
        z0, z1 = (
            self.projector(self.backbone(view)) for view in views
        )  # (B, P) each; batch norms see a view at a time
        with torch.autocast(z0.device.type, enabled=False):
            return distance_from_identity(z0, z1, self.off_diagonal_weight, self.norm, self.exact_gradient)


def standardised(z: Tensor) -> Tensor:
    """(B, P) with mean 0 and deviation 1 of each feature over this device's images."""
    return F.batch_norm(z, None, None, training=True)


def distance_from_identity(
    z0: Tensor,
    z1: Tensor,
    off_diagonal_weight: float = 0.0051,
    norm: Callable[[Tensor], Tensor] = standardised,
    exact_gradient: bool = False,
) -> Tensor:
    """Squared distance of the features' correlations from 1 on the diagonal and, weighted, from 0 beside it.

    Args:
        z0: (B, P) projections of one view of each image.
        z1: (B, P) of the other view.
        off_diagonal_weight: Of the correlations between different features.
        norm: Standardises (B, P) over the images; a batch norm, which may see those of all devices.
        exact_gradient: With several devices, that of one on the joint batch.
    """
    c = correlations(z0, z1, norm, exact_gradient)
    diagonal = c.diagonal()
    beside = c - diagonal.diag()
    return (diagonal - 1).square().sum() + off_diagonal_weight * beside.square().sum()


def correlations(
    z0: Tensor, z1: Tensor, norm: Callable[[Tensor], Tensor] = standardised, exact_gradient: bool = False
) -> Tensor:
    """(B, P) of either view -> (P, P), over the images of all devices; in float32 at least."""
    z0, z1 = float32_at_least(z0), float32_at_least(z1)
    c = norm(z0).T @ norm(z1) / (len(z0) * world_size())
    if exact_gradient:
        return all_reduce_sum(c)
    return c + (all_reduce_sum(c.detach()) - c.detach()) if world_size() > 1 else c


def projector(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Hidden layers with batch norm, and a linear one; no layer has a bias."""
    if not widths or min(widths) < 1:
        raise UserError(f"--method.projection_dims {[*widths]} must be one width or more, each at least 1")
    layers: list[nn.Module] = []
    for wide, narrow in pairwise((dim, *widths[:-1])):
        layers += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((dim, *widths)[-2], widths[-1], bias=False))
