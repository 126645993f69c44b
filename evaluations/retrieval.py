"""Retrieval: whether the images most similar to a test image are of its class.

Each test image is a query, and all the others are ranked by cosine similarity of a descriptor. Mean average precision
(mAP) is the number, by trapezoids as in the revisited Oxford and Paris benchmarks
(`evaluation/solvers/average_precision.py`); recall at k, the variants, is the part of the queries with an image of
their class among the first k (Jegou et al., TPAMI 2011; the metric of CUB and Cars). A class with one test image has no
query. Nothing is learned unless whitening is asked for, and nothing is chosen.

The descriptor is the network's primary feature. Options: GeM pooling of patches (Radenovic et al., "Fine-tuning CNN
Image Retrieval with No Human Annotation", TPAMI 2019, https://arxiv.org/abs/1711.02512), the p-th root of their mean
p-th power with negative values cut at 1e-6, p = 4 as DINO has it for Copydays; and whitening along the principal axes
of the training images (Jegou & Chum, ECCV 2012), without their labels.

Shapes: N test images, D features.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import NonEmpty, PositiveFloat, PositiveInt
from ssl_bench.data.splits import Split, TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Scored
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.patch_features import patch_features
from ssl_bench.evaluation.solvers.average_precision import average_precision
from ssl_bench.runtime.precision import full_precision
from ssl_bench.statistics.bootstrap import Floats, Statistic

QUERIES = 256  # at a time
LEAST = 1e-6  # that GeM takes of a feature


@final
@dataclass(frozen=True)
class Descriptors(Scored):
    """Of the test images.

    Args:
        values: (N, D) of length 1.
        ks: Of the recalls.
    """

    values: Tensor
    ks: tuple[int, ...]

    def scores(self, test: TestSplit) -> dict[str, Statistic]:
        n, labels = len(test), np.asarray(test.labels)
        precision, first = np.zeros(n), np.full(n, n)
        asked = np.bincount(labels)[labels] > 1  # another image is of the class
        for start in range(0, n, QUERIES):
            with full_precision():
                similarity = self.values[start : start + QUERIES] @ self.values.T
            order = similarity.argsort(dim=1, descending=True, stable=True).cpu().numpy()  # (q, N)
            for query, ranked in enumerate(order, start):
                others = ranked[ranked != query]
                right = labels[others] == labels[query]
                if asked[query]:
                    precision[query] = average_precision(right)
                    first[query] = int(right.argmax())
        if not asked.any():
            raise UserError("no two test images are of one class: there is nothing to retrieve")
        found = {"mAP": _mean_of_asked(precision, asked)}
        return found | {f"recall@{k}": _mean_of_asked((first < k).astype(float), asked) for k in self.ks}


@dataclass(frozen=True)
class Whitening:
    """Less the mean, then along axes of unit variance: mean (D,), projection (D, E)."""

    mean: Tensor
    projection: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        return ((features.double() - self.mean) @ self.projection).float()


@final
class Retrieval(Evaluation[Whitening | None]):
    """Mean average precision and recall at k among the test images.

    Args:
        k: Of the recalls.
        pooling: primary: the network's primary feature; gem: generalised mean of the patches of whole images.
        gem_power: p.
        whitening: Whether descriptors are whitened by the training images.
    """

    metric: ClassVar[str] = "mAP"

    def __init__(
        self,
        k: Annotated[tuple[PositiveInt, ...], NonEmpty()] = (1, 5, 10),
        pooling: Literal["primary", "gem"] = "primary",
        gem_power: PositiveFloat = 4.0,
        whitening: bool = False,
    ) -> None:
        self.k = k
        self.pooling = pooling
        self.gem_power = gem_power
        self.whitening = whitening

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Whitening | None]:
        features = (backbone.primary_feature_type,) if self.pooling == "primary" else ()
        return Fit(whitened(self._pooled(backbone, train)) if self.whitening else None, features=features)

    def predict(self, backbone: FeatureExtractor, fit: Fit[Whitening | None], test: TestImages) -> Descriptors:
        descriptors = self._pooled(backbone, test)
        if fit.state is not None:
            descriptors = fit.state(descriptors)
        return Descriptors(F.normalize(descriptors, dim=1), tuple(self.k))

    def _pooled(self, backbone: FeatureExtractor, split: Split) -> Tensor:
        """(N, D) of length 1."""
        if self.pooling == "primary":
            return F.normalize(backbone.features(split, backbone.primary_feature_type), dim=1)
        features = patch_features(backbone, split)
        pooled = [gem(features.of(place).flatten(0, 1), self.gem_power) for place in range(len(split))]
        return F.normalize(torch.stack(pooled), dim=1)


def gem(patches: Tensor, power: float) -> Tensor:
    """(T, D) patches of an image -> (D,)."""
    patches = patches.clamp(min=LEAST)
    largest = patches.amax(0)
    return largest * (patches / largest).pow(power).mean(0).pow(1 / power)  # no power of a large number


def whitened(features: Tensor) -> Whitening:
    """The whitening of (N, D) features; axes along which they hardly vary are left out."""
    values = features.double()
    mean = values.mean(0)
    variance, axes = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    kept = variance > 1e-9 * variance.max()
    return Whitening(mean, axes[:, kept] / variance[kept].sqrt())


def _mean_of_asked(values: Floats, asked: "np.ndarray") -> Statistic:
    """The mean over queries; an image that is none adds nothing."""
    sums = np.stack([np.where(asked, values, 0.0), asked.astype(float)], 1)
    return Statistic(sums, lambda total: total[..., 0] / np.maximum(total[..., 1], 1e-9))
