"""SimCLRv2: SimCLR with a deeper head, for bigger networks that are fine-tuned on few labels afterwards.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020.
Paper: https://arxiv.org/abs/2006.10029. Reference code: https://github.com/google-research/simclr (tf2/).

Three stages, each of which starts from the run of the one before: this page, `simclrv2-finetune`, `simclrv2-distill`.
The networks: `--backbone.width 2`, `--backbone.selective_kernel true` on a ResNet-50, -101 or -152.

Shapes: B images per device, H x W pixels, D backbone features, P projected features.

Loss, head's norms, initialisation and pixels in [0, 1] are those of SimCLR's code, and so are the deviations.
Not here: the paper's memory of negatives with a momentum encoder (about 1 %), which the code does not have either.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, PositiveFloat, Range, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.simclr import initialize_convolutions, nt_xent, projection_head
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.method import Method


class SimCLRv2(Method):
    """First stage: contrastive pretraining with a three-layer head.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's are ResNets, the wider and deeper the better.
        temperature: Of the softmax over similarities; lower attends to harder negatives.
        projection_dim: P, the width the loss compares in.
        projection_layers: Linear layers of the head, the last one included; fine-tuning keeps the first.
        color_strength: Of the colour jitter; 1.0 for ImageNet, 0.5 for CIFAR-10.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur of a tenth of the image; 0 for CIFAR-10.
        crop_scale: Smallest part of the image's area in a view.
        standardize: Subtract the data's mean and divide by its deviation; the official code does not.
        optim: LARS with the rate inside the momentum, 0.1 x sqrt(images per step), 40 of 800 epochs of warm-up.
    """

    kind = "contrastive"

    min_images = 2  # an image is told from others

    def __init__(
        self,
        backbone: Backbone,
        temperature: PositiveFloat = 0.1,
        projection_dim: Width = 128,
        projection_layers: Annotated[int, Range(min=1, max=100)] = 3,
        color_strength: Annotated[float, Range(min=0, max=2.5)] = 1.0,
        grayscale: UnitInterval = 0.2,
        blur: UnitInterval = 0.5,
        crop_scale: Fraction = 0.08,
        standardize: bool = False,
        optim: Optim = Optim("lars_tf", base_lr=0.1, scaling="sqrt", weight_decay=1e-4, warmup_epochs=40),
    ) -> None:
        super().__init__(backbone, optim)
        if not temperature > 0:
            raise UserError(f"--method.temperature {temperature} must be above 0")
        if projection_layers < 1:
            raise UserError(f"--method.projection_layers {projection_layers} must be at least 1")
        self.temperature, self.color_strength = temperature, color_strength
        self.grayscale, self.blur = grayscale, blur
        self.crop_scale, self.standardize = crop_scale, standardize
        initialize_convolutions(backbone)
        self.head = projection_head(backbone.dim, projection_dim, projection_layers)

    def views(self) -> Views:
        s = self.color_strength
        jitter = (0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
        scale = (self.crop_scale, 1.0)
        return [View(self.backbone.img_size, 2, scale, jitter=jitter, grayscale=self.grayscale, blur=self.blur)]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        features = self.backbone(torch.cat(views))  # (2B, D), in one pass: batch norm sees both views
        z0, z1 = self.head(features).chunk(2)  # (B, P) each
        with torch.autocast(z0.device.type, enabled=False):
            return nt_xent(z0, z1, self.temperature)
