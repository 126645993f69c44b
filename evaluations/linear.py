"""Linear probe: the accuracy of a linear classifier on frozen features.

The grid (variants `chosen` and one per feature type) of Oquab et al., "DINOv2: Learning Robust Visual Features
without Supervision", TMLR 2024 (https://arxiv.org/abs/2304.07193, https://github.com/facebookresearch/dinov2): 13
learning rates for each feature type, SGD with momentum, 12,500 steps, all heads of a feature type trained at once on
the same batches.

MAE's recipe (variant `mae`) of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, appendix A.1
(https://arxiv.org/abs/2111.06377, https://github.com/facebookresearch/mae): LARS at 0.1 x batch / 256 on the class
token (the mean patch or pooled map where there is none), 90 epochs, the first ninth of them warm-up. Nothing is chosen.

Both in front of MAE's batch norm without affine parameters, so that one learning rate suits features of any scale, and
on random crops, at least 8 % of an image and perhaps mirrored, which are the same for all methods.

The number of the protocol is the grid's choice, with the same learning rates for every method. MAE's one rate was found
on 1.28 million images: LARS moves the weights by about 2e-4 of their length per image of the training set over all 90
epochs, so that on a few thousand images they hardly leave where they began.

Ours, and why:
- The head is chosen on the validation split, not on the test images, and is the one after the last step. It is not
  trained again on the validation images afterwards.
- Epochs go round a few crops of each image (`views`), which the backbone sees once each, however many the epochs are.
- A learning rate is judged by the mean over heads that began with different weights (`seeds`); their spread is in the
  curve. The predictions are the first one's, not the best one's.
- Batch norm uses the exact mean and variance over all crops of the training images from the first step on.
- MAE's batches are of 4,096 images, not 16,384, the rate scaled alike.

Shapes: N images, B of a batch, D features, K classes, H heads, P points of a curve, R learning rates, S seeds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch
from torch import Tensor

from ssl_bench.config.constraints import FeatureType, NonNegativeInt, PositiveInt, Rates, Seed
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import progress
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.probe_heads import Head, Heads, Norm
from ssl_bench.optim.schedules import warmup_cosine
from ssl_bench.runtime.precision import full_precision
from ssl_bench.runtime.seeds import derive

MAE_LR, MAE_BATCH, MAE_TRUST = 0.1, 4096, 0.001
POINTS = 20  # of a curve
READ = 2**19  # float32 values of the features that are read at once: they stay in a processor's cache


@dataclass(frozen=True)
class Candidate:
    """The heads of one learning rate on one feature type, and how they fared on the validation split.

    Args:
        head: The first seed's, after the last step.
        lr: For 256 images.
        loss: After the last step, mean over the seeds.
        curve: Accuracy after each watched step, mean over the seeds.
        spread: Its standard deviation over the seeds.
    """

    head: Head
    lr: float
    loss: float
    curve: list[float]
    spread: list[float]

    @property
    def order(self) -> tuple[float, float, float]:
        """Sorts from best to worst."""
        return -self.curve[-1], self.loss, self.lr


@final
class Linear(Evaluation[dict[str, Head]]):
    """Softmax regression on random crops: a grid chosen from on the validation split, and MAE's fixed recipe.

    Args:
        iterations: Steps of the grid.
        batch_size: Images per step of the grid; all training images if there are fewer.
        lrs: Learning rates to choose from, for 256 images: each is multiplied by the batch size / 256. A cosine takes
            them to 0, step by step.
        feature_types: Feature types to choose from; all after the final norm when not given.
        views: Random crops of each training image, one per epoch, then the first again; 0 for the images as they are.
        seeds: Heads of each learning rate, which differ in their first weights.
        epochs: Of MAE's recipe; 0 leaves it out.
        seed: Of the first weights and of the order of images.
    """

    version: ClassVar[int] = 2

    def __init__(
        self,
        iterations: PositiveInt = 12_500,
        batch_size: PositiveInt = 1024,
        lrs: Rates = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        feature_types: tuple[FeatureType, ...] | None = None,
        views: NonNegativeInt = 10,
        seeds: PositiveInt = 3,
        epochs: NonNegativeInt = 90,
        seed: Seed = 0,
    ) -> None:
        if min(iterations, batch_size, seeds, len(lrs)) < 1:
            raise ValueError("iterations, batch_size, seeds and the number of lrs must all be at least 1")
        if min(views, epochs) < 0:
            raise ValueError("views and epochs must be at least 0")
        self.iterations = iterations
        self.batch_size = batch_size
        self.lrs = lrs
        self.feature_types = feature_types
        self.views = views
        self.seeds = seeds
        self.epochs = epochs
        self.seed = seed

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[dict[str, Head]]:
        if len(validation) == 0:
            raise UserError("the validation split, on which linear chooses, is empty: raise data.val_fraction")
        feature_types = self.feature_types or tuple(
            feature_type for feature_type in backbone.feature_types if not feature_type.endswith("_raw")
        )
        asked = tuple(dict.fromkeys([*feature_types, *([backbone.primary_feature_type] if self.epochs else [])]))
        norms = {feature_type: Norm.of(*moments(backbone, [train], feature_type, self.crops)) for feature_type in asked}
        batch = min(self.batch_size, len(train))
        per_kind, tried = {}, {}
        for feature_type in feature_types:
            course = Course(feature_type, norms[feature_type], self.lrs, batch, self.iterations)
            candidates = self._trained(backbone, train, validation, course)
            if not candidates:
                raise UserError(
                    f"every linear head on {feature_type!r} diverged: give smaller lrs than {min(self.lrs)}"
                )
            tried[f"lr of {feature_type}"] = [candidate.lr for candidate in candidates]
            tried[f"validation accuracy of {feature_type}"] = [candidate.curve[-1] for candidate in candidates]
            per_kind[feature_type] = min(candidates, key=lambda candidate: candidate.order)
        best = min(per_kind.values(), key=lambda candidate: candidate.order)
        state = {"chosen": best.head} | {feature_type: candidate.head for feature_type, candidate in per_kind.items()}
        curve = _curve("", self.iterations, best)
        if (
            self.epochs
            and (mae := self.mae(backbone, train, validation, norms[backbone.primary_feature_type])) is not None
        ):
            state["mae"] = mae.head
            curve |= _curve("mae ", self._mae_steps(len(train)), mae)
        return Fit(
            state,
            features=asked,
            chosen={"lr": best.lr, "features": best.head.feature_type} | {f"lr {k}": c.lr for k, c in per_kind.items()},
            grid={"lr": list(self.lrs), "features": list(feature_types)},
            at_grid_boundary=len(self.lrs) > 1 and best.lr in (min(self.lrs), max(self.lrs)),
            curve=curve | tried,
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[dict[str, Head]], test: TestImages) -> list[Prediction]:
        predictions = []
        for variant, head in fit.state.items():
            with full_precision():
                logits = head.logits(backbone.features(test, head.feature_type))  # (N, K)
            predictions.append(Prediction(variant, logits.argmax(1).cpu()))
        return predictions

    def mae(
        self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit, norm: Norm
    ) -> Candidate | None:
        """The head of MAE's recipe, behind the norm of its feature type; None if it has diverged."""
        steps = self._mae_steps(len(train))
        batch, feature_type = min(MAE_BATCH, len(train)), backbone.primary_feature_type
        course = Course(feature_type, norm, (MAE_LR,), batch, steps, warmup=steps // 9, trust=MAE_TRUST)
        return next(iter(self._trained(backbone, train, validation, course)), None)

    def _mae_steps(self, images: int) -> int:
        return math.ceil(self.epochs * images / min(MAE_BATCH, images))

    def _trained(
        self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit, course: "Course"
    ) -> list[Candidate]:
        """All heads of a course, trained at once; a learning rate of which any head has diverged is left out."""
        held_out = course.norm(backbone.features(validation, course.feature_type))  # (N, D)
        labels, held_out_labels = (torch.as_tensor(s.labels).to(backbone.device) for s in (train, validation))
        classes = 1 + int(max(labels.max(), held_out_labels.max()))
        generators = [torch.Generator().manual_seed(derive(self.seed, 0, s)) for s in range(self.seeds)]
        starts = [0.01 * torch.randn(classes, held_out.shape[1], generator=generator) for generator in generators]
        peaks = [lr * course.batch_size / 256 for lr in course.lrs for _ in starts]  # of R x S heads
        heads = Heads(torch.stack(starts * len(course.lrs)).to(backbone.device), peaks, trust=course.trust)
        watched, curve = set(_watched(course.steps)), []
        batches = stream(backbone, train, course, self.crops, self.seed)
        with full_precision(), progress(f"linear heads on {course.feature_type}", course.steps, "steps") as bar:
            for step, (rows, inputs) in enumerate(batches):
                heads.step(inputs, labels[rows], warmup_cosine(step, course.steps, course.warmup, 1.0))
                bar.update()
                if step + 1 in watched:
                    accuracy, loss = heads.score(held_out, held_out_labels)  # (RS,) each
                    curve.append(accuracy)
        shape = (len(course.lrs), self.seeds)
        mean_loss = loss.view(shape).mean(1)  # (R,)
        seen = torch.stack(curve, 1).view(*shape, -1)  # (R, S, P)
        spread = seen.std(1) if self.seeds > 1 else torch.zeros_like(seen[:, 0])
        return [
            Candidate(heads.head(r * self.seeds, course.feature_type, course.norm), lr, *numbers)
            for r, (lr, *numbers) in enumerate(
                zip(course.lrs, mean_loss.tolist(), seen.mean(1).tolist(), spread.tolist(), strict=True)
            )
            if math.isfinite(numbers[0])
        ]

    @property
    def crops(self) -> tuple[int | None, ...]:
        """The views of a training image that the epochs go round."""
        return tuple(range(self.views)) or (None,)


@dataclass(frozen=True)
class Course:
    """How some heads are trained.

    Args:
        feature_type: Of features.
        norm: In front of the heads.
        lrs: Of the heads at their peak, for 256 images.
        batch_size: B.
        steps: How many.
        warmup: Of them, in which the learning rates rise from 0.
        trust: Of LARS; SGD when not given.
    """

    feature_type: str
    norm: Norm
    lrs: tuple[float, ...]
    batch_size: int
    steps: int
    warmup: int = 0
    trust: float | None = None


def stream(
    backbone: FeatureExtractor, train: TrainSplit, course: Course, views: tuple[int | None, ...], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B,) rows of the split and their (B, D) normed features, batch after batch.

    One random permutation of the images after another, without a break between; each is of the next view. What is in
    memory beside the float16 cache is a few batches.
    """
    count, end = len(train), course.steps * course.batch_size

    @lru_cache(2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, 1, epoch)))

    at_once = max(1, READ // len(course.norm.mean) // course.batch_size) * course.batch_size
    for start in range(0, end, at_once):
        stop = min(start + at_once, end)
        rows, features = [], []
        for epoch in range(start // count, (stop - 1) // count + 1):
            rows.append(order(epoch)[max(0, start - epoch * count) : stop - epoch * count])
            features.append(backbone.features(train, course.feature_type, rows[-1], view=views[epoch % len(views)]))
        inputs = torch.cat(features) if len(features) > 1 else features[0]
        inputs.sub_(course.norm.mean).div_(course.norm.deviation)  # in place: this costs as much as the reading
        indices = torch.cat(rows).to(backbone.device)
        for at in range(0, stop - start, course.batch_size):
            yield indices[at : at + course.batch_size], inputs[at : at + course.batch_size]


def _watched(steps: int) -> list[int]:
    """Steps, counted from 1, after which validation accuracy is taken; the last is among them."""
    return sorted({max(1, round(steps * point / POINTS)) for point in range(1, POINTS + 1)})


def _curve(prefix: str, steps: int, candidate: Candidate) -> dict[str, list[float]]:
    return {
        f"{prefix}step": [float(step) for step in _watched(steps)],
        f"{prefix}validation accuracy": candidate.curve,
        f"{prefix}deviation over seeds": candidate.spread,
    }
