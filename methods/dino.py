"""DINO: from every crop of an image, predict what the teacher, a moving average, outputs for its two large crops.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
Paper: https://arxiv.org/abs/2104.14294. Reference code: https://github.com/facebookresearch/dino.

Shapes: B images, V crops of each (2 global, then local ones), D features, K prototypes.

Where the two disagree, this is the code with the options of the published ViT-S/16, which are not its defaults (8 local
views, lengths of prototypes frozen, gradients clipped to 3, crops split at 0.4, temperature 0.04 throughout). Its
smallest learning rate, 1e-5, is not multiplied by the batch: `min_lr` is that of 1024 images, per 256.
Here and not there: a true Gaussian blurs, not Pillow's boxes; ResNets start as timm's. Exact savings: the teacher's two
answers are added up for local views, which makes one softmax per crop.
"""

from collections import OrderedDict
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, multi_crop
from ssl_bench.config.constraints import (
    ImageSize,
    NonNegativeInt,
    PositiveFloat,
    Range,
    ScaleRange,
    UnitInterval,
    Width,
)
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dino_head import Centre, DINOHead, crop_cross_entropy
from ssl_bench.optim.schedules import warmed_up
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.local_views import checked_local_size, features_by_size
from ssl_bench.pretraining.method import Method


class DINO(Method):
    """Self-distillation with no labels; what is evaluated is the teacher.

    Args:
        backbone: A ViT or ResNet; one tied to a single image size needs `local_views` 0.
        prototypes: K, the outputs that student and teacher compare.
        hidden_dim: Width of the head.
        bottleneck_dim: Its output, which prototypes are compared with.
        norm_last_layer: Keep prototypes at length 1; steadier, and worse for ViT-S.
        student_temp: Temperature of the student's softmax.
        teacher_temp: Of the teacher's, once warmed up; above 0.07 it is unstable.
        warmup_teacher_temp: Of the teacher's in the first epoch.
        warmup_teacher_temp_epochs: Epochs from the one to the other.
        center_momentum: Of the average that is taken off the teacher's outputs.
        momentum: Of the teacher in the first step, 0.9995 for batches of 256; a cosine leads to 1.
        freeze_last_layer: Epochs in which the prototypes stay as they are.
        global_scale: Part of the image's area in the two global views; from 0.14 if there are no local ones.
        local_scale: The same of local views.
        local_views: How many of them.
        local_size: Their pixels; when not given, 96 for an image of 224, and in proportion.
        blur: Probability in the first global view, the second, and a local one; 0 0 0 for CIFAR-10.
        solarize: Probability in the second global view.
        optim: AdamW, 5e-4 per 256 images, weight decay from 0.04 to 0.4; if gradients are clipped, each tensor's.
    """

    kind = "self-distillation"
    families = ("ViT", "ResNet", "other")

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Annotated[int, Range(min=1, max=10_000_000)] = 65536,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        norm_last_layer: bool = False,
        student_temp: PositiveFloat = 0.1,
        teacher_temp: PositiveFloat = 0.07,
        warmup_teacher_temp: PositiveFloat = 0.04,
        warmup_teacher_temp_epochs: NonNegativeInt = 30,
        center_momentum: UnitInterval = 0.9,
        momentum: UnitInterval = 0.996,
        freeze_last_layer: NonNegativeInt = 1,
        global_scale: ScaleRange = (0.25, 1.0),
        local_scale: ScaleRange = (0.05, 0.25),
        local_views: Annotated[int, Range(min=0, max=100)] = 10,
        local_size: ImageSize | None = None,
        blur: tuple[UnitInterval, UnitInterval, UnitInterval] = (1.0, 0.1, 0.5),
        solarize: UnitInterval = 0.2,
        optim: Optim = Optim(
            "adamw",
            base_lr=5e-4,
            weight_decay=0.04,
            weight_decay_end=0.4,
            schedule="cosine_dino",
            warmup_epochs=10,
            min_lr=2.5e-6,
            clip_per="tensor",
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if min(student_temp, teacher_temp, warmup_teacher_temp) <= 0:
            raise UserError("--method.student_temp, teacher_temp and warmup_teacher_temp must be above 0")
        self.student_temp, self.teacher_temp = student_temp, teacher_temp
        self.warmup_teacher_temp, self.warmup_teacher_temp_epochs = warmup_teacher_temp, warmup_teacher_temp_epochs
        self.freeze_last_layer = freeze_last_layer
        self.global_scale, self.local_scale = (global_scale[0], global_scale[1]), (local_scale[0], local_scale[1])
        self.blur, self.solarize = blur, solarize
        self.local_views, self.local_size = local_views, checked_local_size(backbone, local_views, local_size)
        if backbone.is_vit and backbone.model.cls_token is not None:
            nn.init.trunc_normal_(backbone.model.get_parameter("cls_token"), std=0.02)  # timm's starts at nearly 0
        self.head = DINOHead(backbone.dim, hidden_dim, bottleneck_dim, prototypes, norm_last_layer=norm_last_layer)
        student = nn.Sequential(OrderedDict([("backbone", backbone), ("head", self.head)]))
        self.teacher = EMATeacher(student, momentum)
        self.centre = Centre(prototypes, center_momentum)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.module.get_submodule("backbone")

    def views(self) -> Views:
        sizes = self.backbone.img_size, self.local_size
        return multi_crop(sizes, self.local_views, self.global_scale, self.local_scale, self.blur, self.solarize)

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Cross-entropy of every crop's answer with the teacher's to each other global crop; then moves the centre."""
        teacher = self.teacher(torch.cat(views[:2])).unflatten(0, (2, -1))  # (2, B, K)
        # One pass per size, as in the official code: batch norm sees all crops of a size at once.
        features = features_by_size(self.backbone, views)  # (VB, D)
        student = self.head(features).unflatten(0, (len(views), -1))  # (V, B, K)
        with torch.autocast(features.device.type, enabled=False):
            loss = crop_cross_entropy(student, self.soft_targets(teacher), self.student_temp)
        self.centre.update(teacher)
        return loss

    def soft_targets(self, logits: Tensor) -> Tensor:
        """(2, B, K) of the teacher -> probabilities, centred and sharpened."""
        temperature = self.current_teacher_temp(self.current_epoch)
        return F.softmax((logits.float() - self.centre.center) / temperature, dim=-1)

    def current_teacher_temp(self, epoch: int) -> float:
        """Temperature of an epoch: a line that has its last value in the last epoch of the warm-up."""
        return warmed_up(epoch, self.warmup_teacher_temp_epochs, self.warmup_teacher_temp, self.teacher_temp)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.current_epoch < self.freeze_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None  # at 0 there would still be weight decay, and a state of the optimiser
