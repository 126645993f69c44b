"""SwAV: from every crop of an image, predict which prototypes its large crops belong to, all prototypes in equal use.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020.
Paper: https://arxiv.org/abs/2006.09882. Reference code: https://github.com/facebookresearch/swav.

Shapes: B images per device, W devices, V crops of each image (2 global, then local ones), D features, P projected
features, K prototypes, n rows of a device's queue.

Where the two disagree, this is the code with its script for 4096 images a step: rates 4.8, 0.3 in the first step and
0.0048 in the last, here per 256 images. Prototypes have length 1 in the forward, not between the steps: whoever reads
them from a checkpoint normalises them first. The queue is used once it is full; its projections are compared with the
prototypes as they are now.
A loss that stays at ln K says that nothing is learned: freeze the prototypes for longer, lower `epsilon` to 0.03, have
fewer prototypes, check the rate. Batches that are accumulated are assigned each on its own.
Here and not there: a true Gaussian blurs, not Pillow's boxes; assignments are computed in float32; the queues of all
devices are kept on each of them, so that a checkpoint has them all.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import (
    Hue,
    ImageSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    ScaleRange,
    UnitInterval,
    Width,
)
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dino_head import crop_cross_entropy
from ssl_bench.models.sinkhorn import sinkhorn
from ssl_bench.optim.optimizers import single_group
from ssl_bench.pretraining.local_views import checked_local_size, features_by_size
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import gather, rank, world_size
from ssl_bench.runtime.precision import float32_at_least


class SwAV(Method):
    """Swapped prediction of online cluster assignments.

    Args:
        backbone: Any network giving one (B, D) feature; one tied to a single image size needs `local_views` 0.
        prototypes: K; three times the classes in the paper, 100 to 500 for ten.
        hidden_dim: Width of the projector's hidden layer.
        projection_dim: P, the width that projections and prototypes have.
        temperature: Of the softmax over a crop's similarities to the prototypes.
        epsilon: Of the assignments; lower is sharper.
        sinkhorn_iterations: Of the algorithm that balances them.
        queue_length: Projections of earlier images, over all devices, that are assigned along with the batch; rounded
            down to whole batches; 3840 for batches of 256.
        queue_start: Epochs before they are collected.
        freeze_prototypes: Optimiser steps in which the prototypes stay as they are; 5005 for batches of 256.
        global_scale: Part of the image's area in the two global views; from 0.08 if there are no local ones.
        local_scale: The same of local views.
        local_views: How many of them.
        local_size: Their pixels; when not given, 96 for an image of 224, and in proportion.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur; 0 for CIFAR-10.
        optim: SGD with LARC, 0.3 per 256 images; weight decay and adaptive rates on biases, norms and prototypes, too.
    """

    kind = "clustering"
    families = ("ViT", "ResNet", "other")

    queue: Tensor

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Annotated[int, Range(min=1, max=10_000_000)] = 3000,
        hidden_dim: Width = 2048,
        projection_dim: Width = 128,
        temperature: PositiveFloat = 0.1,
        epsilon: PositiveFloat = 0.05,
        sinkhorn_iterations: PositiveInt = 3,
        queue_length: NonNegativeInt = 0,
        queue_start: NonNegativeInt = 15,
        freeze_prototypes: NonNegativeInt = 313,
        global_scale: ScaleRange = (0.14, 1.0),
        local_scale: ScaleRange = (0.05, 0.14),
        local_views: Annotated[int, Range(min=0, max=100)] = 6,
        local_size: ImageSize | None = None,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.8, 0.8, 0.8, 0.2),
        grayscale: UnitInterval = 0.2,
        blur: UnitInterval = 0.5,
        optim: Optim = Optim(
            "larc",
            base_lr=0.3,
            weight_decay=1e-6,
            schedule="cosine_dino",
            warmup_epochs=10,
            warmup_lr=0.01875,
            min_lr=3e-4,
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if min(temperature, epsilon) <= 0:
            raise UserError("--method.temperature and epsilon must be above 0")
        if sinkhorn_iterations < 1 or queue_length < 0:
            raise UserError("--method.sinkhorn_iterations must be at least 1, and queue_length at least 0")
        self.temperature, self.epsilon, self.sinkhorn_iterations = temperature, epsilon, sinkhorn_iterations
        self.queue_start, self.freeze_prototypes = queue_start, freeze_prototypes
        self.global_scale, self.local_scale = global_scale, local_scale
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.local_views, self.local_size = local_views, checked_local_size(backbone, local_views, local_size)
        for module in backbone.modules() if backbone.is_resnet else ():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm closes the last norm of each block
        hidden = [nn.Linear(backbone.dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU()]
        self.projector = nn.Sequential(*hidden, nn.Linear(hidden_dim, projection_dim))
        self.prototypes = nn.Linear(projection_dim, prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, queue_length, projection_dim))
        self.queue_is_full = False  # once it is, no device need be asked

    def parameter_groups(self) -> list[dict[str, Any]]:
        return single_group(self)

    def views(self) -> Views:
        def view(size: int, count: int, scale: tuple[float, float]) -> View:
            brightness, contrast, saturation, hue = self.jitter
            return View(
                size,
                count,
                (scale[0], scale[1]),
                interpolation="bilinear",
                jitter=(brightness, contrast, saturation, hue),
                grayscale=self.grayscale,
                blur=self.blur,
                blur_kernel=min(13, 2 * size - 1),  # three times the widest blur, to each side
            )

        local = [view(self.local_size, self.local_views, self.local_scale)] * (self.local_views > 0)
        return [view(self.backbone.img_size, 2, self.global_scale), *local]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Cross-entropy of every crop's answer with the assignment of each other global crop; then fills the queue."""
        self.normalize_prototypes()
        # The trunk's batch norms see all crops of a size at once, the projector's all crops.
        projected = self.projector(features_by_size(self.backbone, views))  # (VB, P)
        with torch.autocast(projected.device.type, enabled=False):
            z = F.normalize(float32_at_least(projected), dim=1).unflatten(0, (len(views), -1))  # (V, B, P)
            scores = self.prototypes(z)  # (V, B, K)
            targets = self.assign(z[:2].detach(), scores[:2].detach())
            return crop_cross_entropy(scores, targets, self.temperature)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """To length 1, in place: no gradient passes through it."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    @torch.no_grad()
    def assign(self, z: Tensor, scores: Tensor) -> Tensor:
        """(2, B, P) projections of the global views and their (2, B, K) scores -> (2, B, K) balanced assignments."""
        count = z.shape[1]
        queues = self.queues(count)  # (2, W, n, P)
        if self.current_epoch >= self.queue_start and queues.shape[2]:
            self.queue_is_full = self.queue_is_full or bool(queues[:, :, -1].any())
            if self.queue_is_full:
                own = queues[:, rank()]  # (2, n, P)
                scores = torch.cat([self.prototypes(own), scores], dim=1)  # (2, n + B, K)
            everyone = gather(z.transpose(0, 1)).unflatten(0, (-1, count)).permute(2, 0, 1, 3)  # (2, W, B, P)
            queues.copy_(torch.cat([everyone, queues[:, :, :-count]], dim=2))
        return torch.stack([sinkhorn(view / self.epsilon, self.sinkhorn_iterations)[-count:] for view in scores])

    def queues(self, count: int) -> Tensor:
        """(2, W, n, P) of the buffer: each device's queue of whole batches of ``count`` images, the newest first."""
        length = self.queue.shape[1] // (count * world_size()) * count
        return self.queue[:, : length * world_size()].unflatten(1, (world_size(), length))  # type: ignore[no-any-return]

    def on_train_start(self) -> None:
        self.queue_is_full = False
        step = self.steps.batch_size * world_size()
        if 0 < self.queue.shape[1] < step:
            raise UserError(f"--method.queue_length {self.queue.shape[1]} is less than a batch: 0 for none, or {step}")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step < self.freeze_prototypes:
            self.prototypes.weight.grad = None  # at 0 there would still be weight decay and momentum
