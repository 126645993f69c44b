"""BYOL: from one view of an image, predict what a moving average of the network makes of another view.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020.
Paper: https://arxiv.org/abs/2006.07733. Reference code: https://github.com/google-deepmind/deepmind-research (byol/).

Shapes: B images per device, H x W pixels, D backbone features, P projected features.

Defaults are the code's preset for 1000 epochs; `configs/methods/byol.yaml` has those for 300, 100 and 40. The loss sums
both directions, as in paper and code: others average them, or leave its constant out.
Here and not there: brightness is multiplied by a factor where the code adds a number; the target starts as a copy of
the online network instead of with weights of its own; running variances are PyTorch's unbiased ones; the linear
classifier that the code trains alongside, without effect on the network, is left to the probe.
"""

from typing import Any

import torch.nn.functional as F
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from ssl_bench.augment.views import Views, two_views
from ssl_bench.config.constraints import Fraction, Hue, NonNegativeFloat, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method


class BYOL(Method):
    """Prediction of a moving-average target's projection of another view, without negatives.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's is ResNet-50.
        momentum: Of the target at the start; a cosine leads to 1. 0.99 for 300 epochs or 100.
        hidden_dim: Width of the hidden layer of projector and predictor.
        projection_dim: P, the width the loss compares in.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur of a tenth of the image, in either view; 0 and 0 for CIFAR-10.
        solarize: Probability of inverting bright values, in either view.
        crop_scale: Smallest part of the image's area in a view.
        optim: LARS with the rate outside the momentum, 0.2 per 256 images, 10 epochs of warm-up.
    """

    kind = "self-distillation"

    def __init__(
        self,
        backbone: Backbone,
        momentum: UnitInterval = 0.996,
        hidden_dim: Width = 4096,
        projection_dim: Width = 256,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.2, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: tuple[UnitInterval, UnitInterval] = (1.0, 0.1),
        solarize: tuple[UnitInterval, UnitInterval] = (0.0, 0.2),
        crop_scale: Fraction = 0.08,
        optim: Optim = Optim("lars", base_lr=0.2, weight_decay=1.5e-6, warmup_epochs=10),
    ) -> None:
        super().__init__(backbone, optim)
        self.jitter, self.grayscale, self.crop_scale = jitter, grayscale, crop_scale
        self.blur, self.solarize = blur, solarize
        self.projector = mlp(backbone.dim, hidden_dim, projection_dim)
        self.predictor = mlp(projection_dim, hidden_dim, projection_dim)
        self._initialize()
        self.target = EMATeacher(nn.Sequential(backbone, self.projector), momentum)

    def views(self) -> Views:
        size, scale = self.backbone.img_size, self.crop_scale
        return two_views(size, scale, self.jitter, self.grayscale, self.blur, self.solarize)

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """In [0, 8]: the squared distance of two unit vectors, both directions summed, mean over images."""
        p0, p1 = (self.predictor(self.projector(self.backbone(view))) for view in views)  # (B, P) each
        z0, z1 = map(self.target, views)  # (B, P) each; batch norms see one view at a time
        return (distance(p0, z1) + distance(p1, z0)).mean()

    def _initialize(self) -> None:
        """Haiku's defaults for the heads and a ResNet: N(0, 1 / fan-in) cut at two deviations; a norm that ends a
        block starts at 0 in bottlenecks alone.
        """
        parts = [self.projector, self.predictor, *([self.backbone] if self.backbone.is_resnet else [])]
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                std = module.weight[0].numel() ** -0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BasicBlock):
                nn.init.ones_(module.get_parameter("bn2.weight"))


def mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Projector or predictor: nothing normalises its output but the loss."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out, bias=False))


def distance(x: Tensor, y: Tensor) -> Tensor:
    """(B, P) twice -> (B,): squared distance between the vectors' directions, 2 - 2 cos."""
    x, y = (F.normalize(vectors.float(), dim=1, eps=1e-6) for vectors in (x, y))
    return (x - y).square().sum(1)
