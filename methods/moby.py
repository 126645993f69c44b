"""MoBY: MoCo's queue of negatives and BYOL's predictor, asymmetric views and drop path, for vision transformers.

Xie et al., "Self-Supervised Learning with Swin Transformers", 2021.
Paper: https://arxiv.org/abs/2105.04553. Reference code: https://github.com/SwinTransformer/Transformer-SSL.

Shapes: B images per device, G on all devices, D backbone features, P projected features, L keys in a queue.

As the code has it: weight decay on tables of relative positions and on absolute positions, which its authors meant to
spare (they ask a network that has no list of them); rates there are per 512 images, here per 256; projector and
predictor do not end in a norm, and their layers have biases. The moving average moves between queries and keys, so
towards the weights before this step, and once a step when several batches make one. Only the online network drops
paths (`--backbone.drop_path`, 0.2 published for Swin-T).
Here and not there: a queue may be of any length, since the oldest keys fall out at its front; the momentum goes on
where it was when a run is resumed (the code's counter starts again). The code's option for batch norms in a Swin's MLPs
never had an effect, and is not built.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, two_views
from ssl_bench.config.constraints import (
    Fraction,
    Hue,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    Width,
)
from ssl_bench.config.options import Optim
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import gather
from ssl_bench.runtime.precision import float32_at_least


class MoBY(Method):
    """Contrast of an online network's predictions with a momentum encoder's keys; negatives are those of earlier steps.

    Args:
        backbone: Any network giving one (B, D) feature; the paper's are Swin-T and DeiT-S.
        temperature: Of the softmax over similarities.
        momentum: Of the moving average in the first step; a cosine leads to 1.
        queue_length: L, keys of each view that are kept.
        hidden_dim: Width of the hidden layer of projector and predictor.
        projection_dim: P, the width the loss compares in.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur, in either view; 0 and 0 for CIFAR-10.
        solarize: Probability of inverting bright values, in either view.
        crop_scale: Smallest part of the image's area in a view.
        optim: AdamW, 5e-4 per 256 images, 5 epochs of warm-up, gradients clipped to 5.
    """

    kind = "contrastive"

    queues: Tensor  # (2, L, P), keys of the first and of the second view, the oldest first

    def __init__(
        self,
        backbone: Backbone,
        temperature: PositiveFloat = 0.2,
        momentum: UnitInterval = 0.99,
        queue_length: PositiveInt = 4096,
        hidden_dim: Width = 4096,
        projection_dim: Width = 256,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.2, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: tuple[UnitInterval, UnitInterval] = (1.0, 0.1),
        solarize: tuple[UnitInterval, UnitInterval] = (0.0, 0.2),
        crop_scale: Fraction = 0.08,
        optim: Optim = Optim(
            "adamw",
            base_lr=5e-4,
            weight_decay=0.05,
            schedule="cosine_simmim",
            warmup_epochs=5,
            warmup_lr=2.5e-7,
            min_lr=2.5e-6,
            clip=5.0,
        ),
    ) -> None:
        super().__init__(backbone, optim)
        self.temperature, self.crop_scale = temperature, crop_scale
        self.jitter, self.grayscale, self.blur, self.solarize = jitter, grayscale, blur, solarize
        self.projector = mlp(backbone.dim, hidden_dim, projection_dim)
        self.predictor = mlp(projection_dim, hidden_dim, projection_dim)
        self.teacher = EMATeacher(nn.Sequential(backbone, self.projector), momentum, moved_by_loss=True)
        self.register_buffer("queues", F.normalize(torch.randn(2, queue_length, projection_dim), dim=2))
        self.moved_at = -1  # the step for which the teacher has moved

    def views(self) -> Views:
        size, scale = self.backbone.img_size, self.crop_scale
        return two_views(size, scale, self.jitter, self.grayscale, self.blur, self.solarize, "bilinear")

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Contrast of each view's prediction with the other's keys; then this step's keys join the queues."""
        q0, q1 = (self.predictor(self.projector(self.backbone(view))) for view in views)  # (B, P) each
        self.move_teacher()
        keys = [F.normalize(float32_at_least(self.teacher(view)), dim=1) for view in views]  # (B, P) each
        queues = self.queues.clone()  # the backward wants them as they are now
        with torch.autocast(q0.device.type, enabled=False):
            loss = self.contrast(q0, keys[1], queues[1]) + self.contrast(q1, keys[0], queues[0])
        self.enqueue(torch.stack([gather(rows) for rows in keys]))
        return loss

    def contrast(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        """Mean cross-entropy of (B, P) predictions, each with its own (B, P) key before the (L, P) earlier ones."""
        q = F.normalize(float32_at_least(q), dim=1)
        own = (q * k).sum(1, keepdim=True)  # (B, 1)
        logits = torch.cat([own, q @ queue.T.to(q.dtype)], dim=1) / self.temperature  # (B, 1 + L)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """(2, G, P) keys of all devices take the place of the oldest."""
        length = self.queues.shape[1]
        self.queues.copy_(torch.cat([self.queues, keys.to(self.queues.dtype)], dim=1)[:, -length:])

    def move_teacher(self) -> None:
        """Once for each optimiser step, however many batches it has; not at all outside training."""
        if self._trainer is not None and self.moved_at != self.global_step:
            self.moved_at = self.global_step
            self.teacher.update(self.global_step, self.total_steps)

    def on_train_start(self) -> None:
        self.moved_at = -1


def mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Projector or predictor, with biases and without a norm at its end."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))
