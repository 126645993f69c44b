"""Linear segmentation: what a linear classifier of frozen patch features says of each pixel.

The protocol of Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024
(https://arxiv.org/abs/2304.07193, section 7.4): batch norm and a linear layer on the patches of the last block (or the
last four, `layers`), logits brought to the image's size by bilinear interpolation, cross entropy over pixels, AdamW.
Convolutional networks give the places of their final map, raw pixels the colours of 4 x 4 cells.

Ours, and why:
- The learning rate is chosen from four by mean IoU on the validation split, with all heads trained at once on the same
  batches; published numbers use one rate, and the best step on the images that are reported.
- Images are seen whole and as they are: their features are computed once. Windows slide over what is larger than the
  network's input, in training as well; features, not logits, are averaged where they overlap, which for a linear head
  is the same.
- Batch norm has no learned scale and shift, and exact statistics over the training images, as in `linear`.
- While training, logits and masks are compared at `detail` points per patch and side, not at each pixel.

Shapes: B images of a batch, D features, K classes, L heads, G x F patches of an image, H x W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.config.constraints import NonNegativeFloat, PositiveInt, Rates, Seed
from ssl_bench.data.masks import IGNORE, Mask
from ssl_bench.data.splits import LabelledSplit, TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import progress
from ssl_bench.evaluation.evaluation import Evaluation, Fit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.patch_features import PatchFeatures, patch_features, why_no_places
from ssl_bench.evaluation.segmentations import Counts, Segmentations, counts_of, mean_iou
from ssl_bench.evaluation.solvers.probe_heads import Norm
from ssl_bench.evaluations.segmentation_knn import class_count, upsampled
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.schedules import warmup_cosine
from ssl_bench.runtime.seeds import derive


@dataclass(frozen=True)
class PatchHead:
    """A linear classifier of patches behind a batch norm: weight (K, D), bias (K,)."""

    norm: Norm
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        return F.linear(self.norm(features), self.weight, self.bias)


@final
class Segmentation(Evaluation[PatchHead]):
    """A linear head on frozen patches: mean IoU, frequency-weighted IoU, pixel accuracy.

    Args:
        iterations: Steps.
        batch_size: Images per step.
        lrs: Learning rates to choose from; a cosine takes them to 0 after a tenth of warm-up.
        weight_decay: Of AdamW.
        layers: Of a ViT, how many of its last blocks stand side by side.
        detail: Points per patch and side at which logits are compared with masks while training.
        short_side: Pixels that images' short side is brought to; a small image's own size, or the network's, when not
            given.
        seed: Of the first weights and of the order of images.
    """

    metric: ClassVar[str] = "mIoU"
    needs: ClassVar[Literal["classes", "masks"]] = "masks"

    def __init__(
        self,
        iterations: PositiveInt = 1000,
        batch_size: PositiveInt = 16,
        lrs: Rates = (3e-4, 1e-3, 3e-3, 1e-2),
        weight_decay: NonNegativeFloat = 1e-3,
        layers: PositiveInt = 1,
        detail: PositiveInt = 4,
        short_side: PositiveInt | None = None,
        seed: Seed = 0,
    ) -> None:
        self.iterations = iterations
        self.batch_size = batch_size
        self.lrs = lrs
        self.weight_decay = weight_decay
        self.layers = layers
        self.detail = detail
        self.short_side = short_side
        self.seed = seed

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        network = backbone.network
        if self.layers == 1:
            return why_no_places(backbone)
        if not isinstance(network, Backbone) or not network.is_vit:
            return f"layers {self.layers}: only ViTs have patches in every block; take 1"
        depth = len(network.model.blocks)
        return f"layers {self.layers}: this network has {depth} blocks" if self.layers > depth else None

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[PatchHead]:
        if len(validation) == 0:
            raise UserError("the validation split, on which segmentation chooses, is empty: raise data.val_fraction")
        features, held_out = (patch_features(backbone, s, self.layers, self.short_side) for s in (train, validation))
        norm = Norm.of(*features.moments())
        heads = self._trained(features, train, norm, class_count([train, validation]))
        scores = [validation_iou(head, held_out, validation) for head in heads]
        finite = [score for score in scores if np.isfinite(score)]
        if not finite:
            raise UserError(f"every segmentation head diverged: give smaller lrs than {min(self.lrs)}")
        best = scores.index(max(finite))
        return Fit(
            heads[best],
            chosen={"lr": self.lrs[best]},
            grid={"lr": list(self.lrs)},
            at_grid_boundary=len(self.lrs) > 1 and self.lrs[best] in (min(self.lrs), max(self.lrs)),
            curve={"lr": list(self.lrs), "validation mIoU": [score if np.isfinite(score) else 0.0 for score in scores]},
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[PatchHead], test: TestImages) -> Segmentations:
        features = patch_features(backbone, test, self.layers, self.short_side)

        def mask(place: int) -> Mask:
            return upsampled(fit.state.logits(features.of(place)), features.sizes[place].tolist())

        return Segmentations(len(fit.state.bias), mask)

    def _trained(self, features: PatchFeatures, train: TrainSplit, norm: Norm, classes: int) -> list[PatchHead]:
        """The head of each learning rate, after the last step."""
        generator = torch.Generator().manual_seed(derive(self.seed, 0))
        start = 0.01 * torch.randn(classes, features.dim, generator=generator).to(features.device)
        weights: list[Tensor] = [nn.Parameter(start.clone()) for _ in self.lrs]  # L x (K, D)
        biases: list[Tensor] = [nn.Parameter(start.new_zeros(classes)) for _ in self.lrs]
        groups = [{"params": pair, "lr": lr} for *pair, lr in zip(weights, biases, self.lrs, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        with progress("segmentation heads", self.iterations, "steps") as bar:
            for step, places in enumerate(_batches(len(features), self.batch_size, self.iterations, self.seed)):
                rate = warmup_cosine(step, self.iterations, self.iterations // 10, 1.0)
                for group, lr in zip(optimizer.param_groups, self.lrs, strict=True):
                    group["lr"] = lr * rate
                optimizer.zero_grad()
                loss = self._loss(features, train, norm, places, torch.cat(weights), torch.cat(biases), classes)
                loss.backward()
                optimizer.step()
                bar.update()
        return [PatchHead(norm, w.detach(), b.detach()) for w, b in zip(weights, biases, strict=True)]

    def _loss(
        self,
        features: PatchFeatures,
        train: TrainSplit,
        norm: Norm,
        places: list[int],
        weight: Tensor,
        bias: Tensor,
        classes: int,
    ) -> Tensor:
        """Sum over heads of the mean cross entropy over the batch's points: each head's gradient is its own."""
        total, points = weight.new_zeros(()), 0
        for rows, columns, some in _of_one_shape(features, places):
            inputs = torch.stack([features.of(place) for place in some])  # (B, G, F, D)
            size = rows * self.detail, columns * self.detail
            logits = F.linear(norm(inputs), weight, bias).unflatten(-1, (-1, classes))  # (B, G, F, L, K)
            logits = logits.permute(0, 3, 4, 1, 2).flatten(0, 1)  # (BL, K, G, F)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            target = torch.stack([nearest(train, place, size) for place in some]).to(logits.device)  # (B, h, w)
            heads = len(logits) // len(some)
            total = total + F.cross_entropy(
                logits, target.repeat_interleave(heads, 0), ignore_index=IGNORE, reduction="sum"
            )
            points += int((target != IGNORE).sum())
        return total / max(1, points)


def nearest(split: LabelledSplit, place: int, size: tuple[int, int]) -> Tensor:
    """(h, w) int64 classes of an image's mask, of the pixel nearest to the middle of each point."""
    mask = split.mask(place)
    rows, columns = (
        ((np.arange(n) + 0.5) / n * side).astype(np.int64) for n, side in zip(size, mask.shape, strict=True)
    )
    return torch.as_tensor(mask[rows][:, columns].astype(np.int64))


def validation_iou(head: PatchHead, features: PatchFeatures, split: ValidationSplit) -> float:
    """Mean IoU of a head on the validation images; not finite where it has diverged."""
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        return float("nan")
    counts: Counts = np.zeros((3, IGNORE), dtype=np.int64)
    for place in range(len(split)):
        predicted = upsampled(head.logits(features.of(place)), features.sizes[place].tolist())
        counts = counts + counts_of(split.mask(place), predicted)
    return float(mean_iou(np.asarray(counts, dtype=np.float64).reshape(-1)))


def _batches(count: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Places of the images of each step: one random permutation after another."""
    order: list[int] = []
    epoch = 0
    for _ in range(steps):
        while len(order) < min(batch, count):
            generator = torch.Generator().manual_seed(derive(seed, 1, epoch))
            order += torch.randperm(count, generator=generator).tolist()
            epoch += 1
        yield order[: min(batch, count)]
        del order[: min(batch, count)]


def _of_one_shape(features: PatchFeatures, places: list[int]) -> Iterator[tuple[int, int, list[int]]]:
    """G, F and the images of a batch that have so many patches."""
    shapes = {tuple(features.grids[place].tolist()) for place in places}
    for rows, columns in sorted(shapes):
        yield rows, columns, [p for p in places if tuple(features.grids[p].tolist()) == (rows, columns)]
