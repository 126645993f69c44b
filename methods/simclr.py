"""SimCLR: two views of one image attract; every other image in the batch repels.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
Paper: https://arxiv.org/abs/2002.05709. Reference code: https://github.com/google-research/simclr (tf2/).

Shapes: B images per device, G on all devices, H x W pixels, D backbone features, P projected features.

Where the two disagree, this is the code: the loss sums both directions (twice the paper's), the head's last layer has a
batch norm without bias, and pixels stay in [0, 1] without mean and standard deviation.
Here and not there: running variances are PyTorch's unbiased ones; the blur's width is drawn per image, not per batch.
"""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, PositiveFloat, Range, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import gather, rank
from ssl_bench.runtime.precision import float32_at_least


class SimCLR(Method):
    """Contrastive learning with in-batch negatives.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's is ResNet-50.
        temperature: Of the softmax over similarities; lower attends to harder negatives. 0.5 for CIFAR-10.
        projection_dim: P, the width the loss compares in.
        color_strength: Of the colour jitter; 1.0 for ImageNet, 0.5 for CIFAR-10.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur of a tenth of the image; 0 for CIFAR-10.
        crop_scale: Smallest part of the image's area in a view.
        standardize: Subtract the data's mean and divide by its deviation; the official code does not.
        optim: LARS with the rate inside the momentum, 0.3 per 256 images, 10 epochs of warm-up.
    """

    kind = "contrastive"

    min_images = 2  # an image is told from others

    def __init__(
        self,
        backbone: Backbone,
        temperature: PositiveFloat = 0.1,
        projection_dim: Width = 128,
        color_strength: Annotated[float, Range(min=0, max=2.5)] = 1.0,
        grayscale: UnitInterval = 0.2,
        blur: UnitInterval = 0.5,
        crop_scale: Fraction = 0.08,
        standardize: bool = False,
        optim: Optim = Optim("lars_tf", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10),
    ) -> None:
        super().__init__(backbone, optim)
        if not temperature > 0:
            raise UserError(f"--method.temperature {temperature} must be above 0")
        self.temperature, self.color_strength = temperature, color_strength
        self.grayscale, self.blur = grayscale, blur
        self.crop_scale, self.standardize = crop_scale, standardize
        initialize_convolutions(backbone)
        self.head = projection_head(backbone.dim, projection_dim, layers=2)

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


def nt_xent(z0: Tensor, z1: Tensor, temperature: float, normalize: bool = True) -> Tensor:
    """Mean over images of both directions' cross-entropy, twice what the paper calls NT-Xent (its equation 1).

    Args:
        z0: (B, P) projections of one view of each image.
        z1: (B, P) of the other view.
        temperature: Of the softmax over similarities.
        normalize: Compare directions; otherwise vectors as they are.
    """
    z0, z1 = float32_at_least(z0), float32_at_least(z1)
    if normalize:
        z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    all0, all1 = gather(z0), gather(z1)  # (G, P) each
    own = torch.arange(len(z0), device=z0.device) + len(z0) * rank()  # this device's rows among the G
    itself = F.one_hot(own, len(all0)).bool()  # (B, G)
    loss = z0.new_zeros(())
    for z, same, other in ((z0, all0, all1), (z1, all1, all0)):
        negatives = (z @ same.T / temperature).masked_fill(itself, -torch.inf)  # (B, G)
        logits = torch.cat([z @ other.T / temperature, negatives], dim=1)  # (B, 2G)
        loss = loss + F.cross_entropy(logits, own)
    return loss


def projection_head(dim: int, out: int, layers: int) -> nn.Sequential:
    """Linear, batch norm, ReLU at the input's width; the last layer ends in a batch norm that has no bias."""
    head: list[nn.Module] = []
    for _ in range(layers - 1):
        head += [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
    last = nn.BatchNorm1d(out)
    last.bias.requires_grad_(False)  # stays 0: "center=False"
    head += [nn.Linear(dim, out, bias=False), last]
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
    return nn.Sequential(*head)


def initialize_convolutions(backbone: Backbone) -> None:
    """A ResNet's as Keras initialises them: truncated normal of variance 1 / fan-in."""
    if backbone.is_resnet:
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(1 / module.weight[0].numel()) / 0.87962566
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
