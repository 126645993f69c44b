"""LeJEPA: all views of an image agree on one embedding, and embeddings of images are normally distributed.

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025.
Paper: https://arxiv.org/abs/2511.08544. Reference code: https://github.com/rbalestr-lab/lejepa.

Shapes: B images per device, G on all devices, V views of each image, D backbone features, P projected features,
S directions, T knots.

The objective is that of the code's MINIMAL.md, with the README's views, rates and number of directions; the rate ends
at a thousandth, as in the README (MINIMAL.md has 0.001, which is more than the README begins with). Nothing is
stopped, copied or masked. The test of normality grows with the images of a step, so the batch size is part of the
balance between the two terms. Directions are new in every step, the same on all devices, and depend on the step
alone, so that a resumed run goes on with those it would have had.
Here and not there: what is evaluated is the backbone's own feature, not its embedding; several views of different
sizes pass through the network size by size, and through the projector at once.
"""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import (
    Hue,
    ImageSize,
    NonNegativeFloat,
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
from ssl_bench.optim.optimizers import single_group
from ssl_bench.pretraining.local_views import checked_local_size, features_by_size
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import all_reduce_sum, world_size
from ssl_bench.runtime.precision import float32_at_least


class LeJEPA(Method):
    """Invariance between views, and a sliced test that embeddings are an isotropic Gaussian's (SIGReg).

    Args:
        backbone: Any network giving one (B, D) feature; one tied to a single image size needs `local_views` 0.
        gaussian_weight: Of the test, from 0 to 1; that of the invariance is what it lacks to 1.
        embedding_dim: Width of a linear layer between network and projector.
        hidden_dim: Width of the projector's two hidden layers.
        projection_dim: P, the width in which views are compared and tested; 16 to 128.
        directions: S, along which projections are tested.
        knots: T, places at which the characteristic function is compared.
        knot_range: The last of them; the first is 0.
        global_views: Large views of an image.
        global_scale: Part of the image's area in them.
        local_views: Small views of an image.
        local_scale: Part of the image's area in them.
        local_size: Their pixels; when not given, 96 for an image of 224, and in proportion.
        jitter: Strengths of brightness, contrast, saturation and hue.
        grayscale: Probability of a view without colour.
        blur: Probability of a Gaussian blur; 0 for CIFAR-10.
        solarize: Probability of inverting bright values.
        optim: AdamW, 5e-4 whatever the batch, one epoch of warm-up; weight decay on everything, 5e-4 for a ResNet.
    """

    kind = "joint-embedding prediction"
    families = ("ViT", "ResNet", "other")

    knots: Tensor
    spacing: Tensor

    def __init__(
        self,
        backbone: Backbone,
        gaussian_weight: UnitInterval = 0.02,
        embedding_dim: Width = 512,
        hidden_dim: Width = 2048,
        projection_dim: Width = 16,
        directions: PositiveInt = 1024,
        knots: Annotated[int, Range(min=2, max=1_000_000)] = 17,
        knot_range: PositiveFloat = 3.0,
        global_views: Annotated[int, Range(min=1, max=100)] = 2,
        global_scale: ScaleRange = (0.3, 1.0),
        local_views: Annotated[int, Range(min=0, max=100)] = 6,
        local_scale: ScaleRange = (0.05, 0.3),
        local_size: ImageSize | None = None,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.2, 0.1),
        grayscale: UnitInterval = 0.2,
        blur: UnitInterval = 0.5,
        solarize: UnitInterval = 0.2,
        optim: Optim = Optim(
            "adamw", base_lr=5e-4, scaling="none", weight_decay=0.05, warmup_epochs=1, warmup_lr=5e-6, min_lr=5e-7
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if not 0 <= gaussian_weight <= 1:
            raise UserError(f"--method.gaussian_weight {gaussian_weight} must lie between 0 and 1")
        if global_views < 1 or global_views + local_views < 2:
            raise UserError("--method.global_views must be at least 1, and 2 without local_views")
        if directions < 1 or knots < 2 or knot_range <= 0:
            raise UserError("--method.directions must be at least 1, knots at least 2, knot_range above 0")
        self.gaussian_weight, self.directions = gaussian_weight, directions
        self.global_views, self.global_scale = global_views, global_scale
        self.local_views, self.local_scale = local_views, local_scale
        self.local_size = checked_local_size(backbone, local_views, local_size)
        self.jitter, self.grayscale, self.blur, self.solarize = jitter, grayscale, blur, solarize
        self.embedding = nn.Linear(backbone.dim, embedding_dim)
        hidden: list[nn.Module] = []
        for wide in (embedding_dim, hidden_dim):
            hidden += [nn.Linear(wide, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU()]
        self.projector = nn.Sequential(*hidden, nn.Linear(hidden_dim, projection_dim))
        t = torch.linspace(0, knot_range, knots)  # (T,); the function is symmetric, so half of the line will do
        spacing = torch.full_like(t, 2 * knot_range / (knots - 1))
        spacing[[0, -1]] /= 2  # the trapezoidal rule's
        self.register_buffer("knots", t, persistent=False)
        self.register_buffer("spacing", spacing, persistent=False)

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
                blur_kernel=min(7, 2 * size - 1),
                solarize=self.solarize,
            )

        local = [view(self.local_size, self.local_views, self.local_scale)] * (self.local_views > 0)
        return [view(self.backbone.img_size, self.global_views, self.global_scale), *local]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """``directions``, (P, S) of unit columns, may be given."""
        features = features_by_size(self.backbone, views)  # (VB, D)
        z = self.projector(self.embedding(features)).unflatten(0, (len(views), -1))  # (V, B, P)
        with torch.autocast(z.device.type, enabled=False):
            z = float32_at_least(z)
            invariance = (z - z.mean(0)).square().mean()
            directions = drawn["directions"] if "directions" in drawn else self.draw_directions(z)
            gaussian = torch.stack([self.deviation(view @ directions.to(z.dtype)).mean() for view in z]).mean()
            return self.gaussian_weight * gaussian + (1 - self.gaussian_weight) * invariance

    def draw_directions(self, z: Tensor) -> Tensor:
        """(P, S) unit columns, of this step alone."""
        generator = torch.Generator().manual_seed(self.global_step)
        directions = torch.randn(z.shape[-1], self.directions, generator=generator)
        return (directions / directions.norm(dim=0)).to(z.device, non_blocking=True)  # type: ignore[no-any-return]

    def deviation(self, x: Tensor) -> Tensor:
        """(B, S) projections on directions -> (S,): Epps and Pulley's statistic of all devices' against N(0, 1).

        G times the weighted integral of the squared distance between their characteristic function and a Gaussian's.
        """
        angle = x[..., None] * self.knots.to(x.dtype)  # (B, S, T)
        gaussian = (-self.knots.to(x.dtype).square() / 2).exp()  # (T,)
        cosine = all_reduce_sum(angle.cos().mean(0)) / world_size()  # (S, T)
        sine = all_reduce_sum(angle.sin().mean(0)) / world_size()
        distance = (cosine - gaussian).square() + sine.square()
        return distance @ (self.spacing.to(x.dtype) * gaussian) * len(x) * world_size()
