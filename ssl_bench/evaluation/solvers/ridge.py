"""Least squares with a penalty, in closed form, and what each image's error would be had it been left out.

Minimised is (1/n) ||Y - X W' - b||^2 + penalty ||W||^2 for Y of +1 at an image's class and -1 elsewhere, b free of
penalty. One eigendecomposition serves all penalties, and the errors of leaving one image out come without fitting
again: (y - y^) / (1 - h), h the image's leverage. So the penalty needs no held-out images. All in float64.

Shapes: n images, D features, K classes, R <= min(n, D) principal axes, P penalties, T images at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.evaluation.solvers.pca import Rows, pca

TILE = 2**22  # float64 values of features or scores at once


@dataclass(frozen=True)
class LeftOut:
    """How images fare under the classifiers of all others.

    Args:
        accuracy: (P,) share of them that get their class.
        error: (P,) mean squared error over images and classes.
    """

    accuracy: list[float]
    error: list[float]


@final
class LeastSquares:
    """Images on their principal axes, from where each penalty is one division away.

    Args:
        rows: (n, D) features, standardised or at least of like scale.
        labels: (n,) int64.
        classes: K.
    """

    def __init__(self, rows: Rows, labels: Tensor, classes: int) -> None:
        self.rows, self.labels, self.classes = rows, labels, classes
        self.mean = torch.stack([x.sum(0, dtype=torch.float64) for x in rows()]).sum(0) / len(labels)
        self.axes, self.variance = pca(rows, self.mean)  # (D, R), (R,)
        self.target_mean = 2 * labels.bincount(minlength=classes).double() / len(labels) - 1  # (K,)
        self.covariance = self.mean.new_zeros(len(self.variance), classes)  # (R, K), of features with targets
        for x, labels in self._turned(TILE // max(len(self.mean), classes)):
            self.covariance.addmm_(x.T, self._targets(labels) - self.target_mean, alpha=1 / len(self.labels))

    def classifier(self, penalty: float) -> tuple[Tensor, Tensor]:
        """(K, D) weight and (K,) bias, float64: the scores are ``inputs @ weight.T + bias``."""
        weight = (self.axes @ (self.covariance / (self.variance + penalty)[:, None])).T
        return weight, self.target_mean - weight @ self.mean

    def leave_one_out(self, penalties: Sequence[float]) -> LeftOut:
        """How images fare under each penalty, each of them judged by what all others teach."""
        n, count = len(self.labels), len(penalties)
        inverse = 1 / (self.variance[:, None] + self.variance.new_tensor(penalties))  # (R, P)
        weights = (inverse[:, :, None] * self.covariance[:, None]).flatten(1)  # (R, PK)
        right, error = inverse.new_zeros(count), inverse.new_zeros(count)
        for x, labels in self._turned(TILE // max(len(self.mean), weights.shape[1])):
            targets = self._targets(labels)[:, None]  # (T, 1, K)
            scores = (x @ weights).unflatten(1, (count, self.classes)) + self.target_mean  # (T, P, K)
            leverage = 1 / n + x.square() @ inverse / n  # (T, P)
            residual = (targets - scores) / (1 - leverage).clamp(min=1e-12)[:, :, None]
            right += (targets - residual).argmax(2).eq(labels[:, None]).sum(0)
            error += residual.square().mean(2).sum(0)
        return LeftOut((right / n).tolist(), (error / n).tolist())

    def _targets(self, labels: Tensor) -> Tensor:
        """(T,) classes -> (T, K), 1 there and -1 elsewhere."""
        return 2 * F.one_hot(labels, self.classes).double() - 1

    def _turned(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most ``count`` images at a time: (T, R) features along the axes, and (T,) classes."""
        done = 0
        for x in self.rows():
            for part in x.split(max(1, count)):
                yield (part.double() - self.mean) @ self.axes, self.labels[done : done + len(part)]
                done += len(part)
