"""VICReg: two views of an image agree, every feature keeps its spread over images, and features do not correlate.

Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR 2022.
Paper: https://arxiv.org/abs/2105.04906. Reference code: https://github.com/facebookresearch/vicreg.

Shapes: B images per device, G on all devices, H x W pixels, D backbone features, P projected features.

Where the two disagree, this is the code: it averages the variance term over the two views where the paper adds them;
`variance_weight` 50 is the paper's 25. Variances and covariances are of all devices' images and send gradient to each
of them, so that several devices have the gradient of one on the joint batch, there and here.
The covariance term rises slowly while the others fall; if it is 0 and the variance term at 0.99 of its weight, the
features have collapsed.
Here and not there: a true Gaussian blurs, not Pillow's boxes; covariances are divided by the images that are there less
one, not by the batch size asked for, which only the code's last, partial batch can tell apart; the loss is computed in
float32, which half precision would overflow.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, two_views
from ssl_bench.config.constraints import Fraction, Hue, NonEmpty, NonNegativeFloat, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import gather
from ssl_bench.runtime.precision import float32_at_least


class VICReg(Method):
    """Invariance between views, with variance and covariance of each view's projections regularised.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's is ResNet-50.
        invariance_weight: Of the squared distance between the views' projections.
        variance_weight: Of the hinge that keeps every feature's deviation at 1 or above.
        covariance_weight: Of the squared covariances between features.
        projection_dims: Widths of the projector's layers; the last is P.
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
        invariance_weight: NonNegativeFloat = 25.0,
        variance_weight: NonNegativeFloat = 25.0,
        covariance_weight: NonNegativeFloat = 1.0,
        projection_dims: Annotated[tuple[Width, ...], NonEmpty()] = (8192, 8192, 8192),
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.2, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: tuple[UnitInterval, UnitInterval] = (1.0, 0.1),
        solarize: tuple[UnitInterval, UnitInterval] = (0.0, 0.2),
        crop_scale: Fraction = 0.08,
        optim: Optim = Optim("lars", base_lr=0.2, weight_decay=1e-6, warmup_epochs=10, min_lr=2e-4),
    ) -> None:
        super().__init__(backbone, optim)
        self.invariance_weight = invariance_weight
        self.variance_weight, self.covariance_weight = variance_weight, covariance_weight
        self.jitter, self.grayscale, self.crop_scale = jitter, grayscale, crop_scale
        self.blur, self.solarize = blur, solarize
        self.projector = projector(backbone.dim, projection_dims)

    def views(self) -> Views:
        size, scale = self.backbone.img_size, self.crop_scale
        return two_views(size, scale, self.jitter, self.grayscale, self.blur, self.solarize)

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        z0, z1 = (
            self.projector(self.backbone(view)) for view in views
        )  # (B, P) each; batch norms see a view at a time
        with torch.autocast(z0.device.type, enabled=False):
            return regularised_distance(z0, z1, self.invariance_weight, self.variance_weight, self.covariance_weight)


def regularised_distance(
    z0: Tensor,
    z1: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """The three terms, weighted, of (B, P) projections of either view; in float32 at least."""
    z0, z1 = float32_at_least(z0), float32_at_least(z1)
    spread0, covariance0 = spread_and_covariance(gather(z0))
    spread1, covariance1 = spread_and_covariance(gather(z1))
    return (
        invariance_weight * F.mse_loss(z0, z1)
        + variance_weight * (spread0 + spread1) / 2
        + covariance_weight * (covariance0 + covariance1)
    )


def spread_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """(G, P) -> mean over features of what their deviation lacks to 1; squared covariances of pairs, over P."""
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)  # (P, P)
    variance = covariance.diagonal()  # (P,)
    lacking = F.relu(1 - (variance + 1e-4).sqrt()).mean()
    return lacking, (covariance - variance.diag()).square().sum() / z.shape[1]


def projector(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Hidden layers with batch norm, and a linear one without bias."""
    if not widths or min(widths) < 1:
        raise UserError(f"--method.projection_dims {[*widths]} must be one width or more, each at least 1")
    layers: list[nn.Module] = []
    for wide, narrow in pairwise((dim, *widths[:-1])):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((dim, *widths)[-2], widths[-1], bias=False))
