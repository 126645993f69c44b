"""MoCo v3: a prediction from one view picks out, among all images' keys, what a moving average makes of another view.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021.
Paper: https://arxiv.org/abs/2104.02057. Reference code: https://github.com/facebookresearch/moco-v3.

Shapes: B images per device, G on all devices, H x W pixels, D backbone features, P projected features.

Where the two disagree, this is the code with the options of its commands. Defaults are the ViT's: fixed sine-cosine
positions, a patch projection frozen at its random start, AdamW with weight decay on everything that learns. On a ResNet
the projector has a layer less, the predictor no norm at its end, and LARS spares biases and norms;
`configs/methods/moco-v3-resnet50.yaml` has its numbers. The moving average moves between queries and keys, so towards
the weights before this step, and once a step when several batches make one.
Dips in the accuracy of a ViT while it trains are the instability that the paper is about; longer warm-ups or a lower
rate help where freezing the patches does not.
Here and not there: a true Gaussian blurs, not Pillow's boxes; running variances are PyTorch's unbiased ones; the stem
of convolutions is not built.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, two_views
from ssl_bench.config.constraints import Fraction, Hue, NonNegativeFloat, PositiveFloat, UnitInterval, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import parameter_groups, single_group
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import gather, rank
from ssl_bench.runtime.precision import float32_at_least


class MoCoV3(Method):
    """Contrast of an online network's predictions with a momentum encoder's keys; negatives are the batch's.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's are ViTs and ResNet-50.
        temperature: Of the softmax over similarities; 1.0 for a ResNet.
        momentum: Of the moving average in the first step; 0.996 for a ResNet's 1000 epochs.
        final_momentum: In the last one, a cosine away; the code's own default is that of the first.
        hidden_dim: Width of the hidden layers of projector and predictor.
        projection_dim: P, the width the loss compares in.
        freeze_patches: The patch projection of a ViT or Swin stays as it starts.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur, in either view; 0 and 0 for CIFAR-10.
        solarize: Probability of inverting bright values, in either view.
        crop_scale: Smallest part of the image's area in a view; 0.2 for a ResNet.
        optim: AdamW, 1.5e-4 per 256 images, 40 epochs of warm-up; weight decay on biases and norms, too.
    """

    kind = "contrastive"

    def __init__(
        self,
        backbone: Backbone,
        temperature: PositiveFloat = 0.2,
        momentum: UnitInterval = 0.99,
        final_momentum: UnitInterval = 1.0,
        hidden_dim: Width = 4096,
        projection_dim: Width = 256,
        freeze_patches: bool = True,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.2, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: tuple[UnitInterval, UnitInterval] = (1.0, 0.1),
        solarize: tuple[UnitInterval, UnitInterval] = (0.0, 0.2),
        crop_scale: Fraction = 0.08,
        optim: Optim = Optim("adamw", base_lr=1.5e-4, weight_decay=0.1, warmup_epochs=40),
    ) -> None:
        super().__init__(backbone, optim)
        if not temperature > 0:
            raise UserError(f"--method.temperature {temperature} must be above 0")
        if not 0 <= final_momentum <= 1:
            raise UserError(f"--method.final_momentum {final_momentum} must lie between 0 and 1")
        self.temperature, self.crop_scale = temperature, crop_scale
        self.jitter, self.grayscale, self.blur, self.solarize = jitter, grayscale, blur, solarize
        if backbone.is_vit:
            initialize_vit(backbone)
        if freeze_patches and (backbone.is_vit or backbone.is_swin):
            backbone.model.patch_embed.proj.requires_grad_(False)
        layers = 2 if backbone.is_resnet else 3
        self.projector = mlp(backbone.dim, hidden_dim, projection_dim, layers)
        self.predictor = mlp(projection_dim, hidden_dim, projection_dim, 2, last_norm=not backbone.is_resnet)
        encoder = nn.Sequential(backbone, self.projector)
        self.teacher = EMATeacher(encoder, momentum, final_momentum, moved_by_loss=True)
        self.moved_at = -1  # the step for which the teacher has moved

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self) if self.optim.name in ("lars", "lars_tf") else single_group(self)

    def views(self) -> Views:
        size, scale = self.backbone.img_size, self.crop_scale
        return two_views(size, scale, self.jitter, self.grayscale, self.blur, self.solarize, "bilinear")

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        q0, q1 = (self.predictor(self.projector(self.backbone(view))) for view in views)  # (B, P) each
        self.move_teacher()
        k0, k1 = map(self.teacher, views)  # (B, P) each; batch norms see one view at a time
        with torch.autocast(q0.device.type, enabled=False):
            return info_nce(q0, k1, self.temperature) + info_nce(q1, k0, self.temperature)

    def move_teacher(self) -> None:
        """Once for each optimiser step, however many batches it has; not at all outside training."""
        if self._trainer is not None and self.moved_at != self.global_step:
            self.moved_at = self.global_step
            self.teacher.update(self.global_step, self.total_steps)

    def on_train_start(self) -> None:
        self.moved_at = -1


def info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of (B, P) predictions, each with its own key among those of all devices; times 2T."""
    q, k = (F.normalize(float32_at_least(rows), dim=1) for rows in (q, k))
    logits = q @ gather(k.detach()).T / temperature  # (B, G)
    own = torch.arange(len(q), device=q.device) + len(q) * rank()
    return 2 * temperature * F.cross_entropy(logits, own)


def mlp(dim: int, hidden: int, out: int, layers: int, last_norm: bool = True) -> nn.Sequential:
    """Projector or predictor without biases; the norm at its end, if there is one, has no scale and offset."""
    head: list[nn.Module] = []
    for wide in [dim, *[hidden] * (layers - 2)]:
        head += [nn.Linear(wide, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    head.append(nn.Linear(hidden, out, bias=False))
    return nn.Sequential(*head, *([nn.BatchNorm1d(out, affine=False)] if last_norm else []))


def initialize_vit(backbone: Backbone) -> None:
    """Fixed positions, Xavier for every Linear (queries, keys, values apart) and the patch projection, biases 0."""
    model: Any = backbone.model
    if model.pos_embed is not None:
        backbone.fix_positions("moco")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            rows = len(module.weight) // (3 if name.endswith("qkv") else 1)
            bound = math.sqrt(6 / (rows + module.in_features))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection = model.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + backbone.dim))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=1e-6)
