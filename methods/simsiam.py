"""SimSiam: from one view of an image, predict the projection of another; only a stopped gradient prevents collapse.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
Paper: https://arxiv.org/abs/2011.10566. Reference code: https://github.com/facebookresearch/simsiam.

Shapes: B images per device, H x W pixels, D backbone features, P projected features.

Where the two disagree, this is the code with the README's options, which made the published models: the predictor's
rate stays where it starts (`fix_pred_lr`), rates change from epoch to epoch rather than from step to step, and the
projector's last layer keeps a bias, frozen at its random start, that the batch norm after it takes away again.
If the loss comes near -1 while features lose their spread, it has collapsed: a lower rate, the augmentation of the
paper, more images per batch norm and, on small images, two layers in the projector are what others found to help.
Here and not there: a true Gaussian blurs, not Pillow's boxes; running variances are PyTorch's unbiased ones.
"""

from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, Hue, NonNegativeFloat, Range, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import single_group
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.precision import float32_at_least


class SimSiam(Method):
    """Prediction of another view's projection by the same network, without negatives, teacher or regularisation.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's is ResNet-50.
        projection_dim: P, the width the loss compares in.
        prediction_dim: Width of the predictor's hidden layer, a quarter of P in the paper.
        projection_layers: Of the projector; 2 for CIFAR-10.
        fix_pred_lr: The predictor's rate does not decay.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur; 0 for CIFAR-10.
        crop_scale: Smallest part of the image's area in a view.
        optim: SGD, 0.05 per 256 images, no warm-up, one rate an epoch; weight decay on biases and norms, too.
    """

    kind = "self-distillation"

    def __init__(
        self,
        backbone: Backbone,
        projection_dim: Width = 2048,
        prediction_dim: Width = 512,
        projection_layers: Annotated[int, Range(min=1, max=100)] = 3,
        fix_pred_lr: bool = True,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.4, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: UnitInterval = 0.5,
        crop_scale: Fraction = 0.2,
        optim: Optim = Optim("sgd", base_lr=0.05, weight_decay=1e-4, schedule="cosine_epoch", warmup_epochs=0),
    ) -> None:
        super().__init__(backbone, optim)
        if projection_layers < 1:
            raise UserError(f"--method.projection_layers {projection_layers} must be at least 1")
        self.fix_pred_lr = fix_pred_lr
        self.jitter, self.grayscale, self.blur, self.crop_scale = jitter, grayscale, blur, crop_scale
        self.projector = projector(backbone.dim, projection_dim, projection_layers)
        self.predictor = nn.Sequential(
            nn.Linear(projection_dim, prediction_dim, bias=False),
            nn.BatchNorm1d(prediction_dim),
            nn.ReLU(),
            nn.Linear(prediction_dim, projection_dim),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        (predictor,) = single_group(self.predictor)
        return [
            *single_group(nn.ModuleList([self.backbone, self.projector])),
            predictor | {"constant_lr": self.fix_pred_lr},
        ]

    def views(self) -> Views:
        brightness, contrast, saturation, hue = self.jitter
        return [
            View(
                self.backbone.img_size,
                2,
                (self.crop_scale, 1.0),
                interpolation="bilinear",
                jitter=(brightness, contrast, saturation, hue),
                grayscale=self.grayscale,
                blur=self.blur,
            )
        ]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """In [-1, 1]: minus the cosine between prediction and projection, mean over both directions and all images."""
        z0, z1 = (
            self.projector(self.backbone(view)) for view in views
        )  # (B, P) each; batch norms see a view at a time
        p0, p1 = self.predictor(z0), self.predictor(z1)  # (B, P) each
        return -(similarity(p0, z1.detach()) + similarity(p1, z0.detach())) / 2


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine between the rows of (B, P) and (B, P), in float32."""
    return F.cosine_similarity(float32_at_least(x), float32_at_least(y), dim=1).mean()


def projector(dim: int, out: int, layers: int) -> nn.Sequential:
    """Linear, batch norm, ReLU at the input's width; the last layer ends in a batch norm without scale and offset."""
    head: list[nn.Module] = []
    for _ in range(layers - 1):
        head += [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
    last = nn.Linear(dim, out)  # the network's own classifier in the official code, with what it was born with
    last.get_parameter("bias").requires_grad_(False)
    return nn.Sequential(*head, last, nn.BatchNorm1d(out, affine=False))
