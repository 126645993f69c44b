"""Softmax regression on given features: the minimum itself, for one penalty after another.

Minimised is (1/n) sum CE + ||W||^2 / (2 C n), the bias free of penalty: scikit-learn's `LogisticRegression(C)` for
three or more classes. The problem is convex: no learning rate, no number of epochs and no seed enter.

Features of pretrained networks are strongly correlated, which slows L-BFGS down. They are therefore turned onto their
principal axes, which leaves ||W|| as it is, and every axis is scaled by the root of its curvature: the minimum stays
where it is and is found in a few dozen steps.

Shapes: n images, D features, K classes, R <= min(n, D) principal axes, T images in one matrix product.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.evaluation.solvers.pca import pca
from ssl_bench.runtime.precision import full_precision

TILE = 2**19  # values of features or logits in one matrix product: they stay in a processor's cache
GPU_TILE = 2**28
MEMORY = 10  # past steps from which L-BFGS guesses the curvature
ITERATIONS = 1000


@dataclass(frozen=True)
class Minimum:
    """A classifier and how near to the minimum it is.

    Args:
        weight: (K, D).
        bias: (K,).
        slope: Largest entry of the gradient there; the minimum counts as found when it is at most the tolerance.
    """

    weight: Tensor
    bias: Tensor
    slope: float


def path(
    inputs: Tensor, labels: Tensor, classes: int, cs: Sequence[float], tolerance: float = 1e-5
) -> Iterator[tuple[Tensor, Tensor]]:
    """The minimum for each C in turn, found from the one before: give small ones first.

    It is lazy: whoever has seen enough need not ask for more. All of them are ``list(path(...))``. A class that no
    image has is given no chance.

    Args:
        inputs: (n, D) features, standardised or at least of like scale. float64 is worked on as such; float32 too, and
            again in float64 for a C whose minimum was not found.
        labels: (n,) int64.
        classes: K.
        cs: Each above 0.
        tolerance: Largest entry of the gradient, by (W, b), at which the minimum counts as found.

    Yields:
        (K, D) weight and (K,) bias of the dtype of the inputs: the logits are ``inputs @ weight.T + bias``.
    """
    problem, finer = Problem(inputs, labels, classes), None
    found = problem.start()
    for c in cs:
        found = problem.minimum(c, found, tolerance)
        if found.slope > tolerance and inputs.dtype != torch.float64:
            finer = finer or Problem(inputs.double(), labels, classes)
            found = finer.minimum(c, found, tolerance)
        yield found.weight.to(inputs.dtype), found.bias.to(inputs.dtype)


class Problem:
    """The loss of a classifier of given images, on their principal axes.

    There a classifier is one (K, R + 1) tensor: weights along the axes, then the bias for features less their mean.

    Args:
        inputs: (n, D).
        labels: (n,).
        classes: K.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, classes: int) -> None:
        self.labels, self.classes = labels, classes
        with full_precision():
            mean = inputs.mean(0, dtype=torch.float64)
            axes, variance = pca(lambda: inputs.split(8192), mean)
            self.mean, self.axes, self.variance = (x.to(inputs.dtype) for x in (mean, axes, variance))  # (D, R), (R,)
            turned = [F.pad((x - self.mean) @ self.axes, (0, 1), value=1.0) for x in inputs.split(8192)]
            self.inputs = torch.cat(turned)  # (n, R + 1)
        values = TILE if inputs.device.type == "cpu" else GPU_TILE
        self.tile = max(1, values // max(classes, self.inputs.shape[1]))

    def start(self) -> Minimum:
        """No weights, and the biases that give the classes' shares: the minimum for C = 0."""
        share = self.labels.bincount(minlength=self.classes).clamp(min=1e-6) / len(self.labels)
        return Minimum(self.axes.new_zeros(self.classes, len(self.axes)), share.log().to(self.axes.dtype), torch.inf)

    def minimum(self, c: float, start: Minimum, tolerance: float) -> Minimum:
        """The minimum for C = ``c`` by L-BFGS."""
        with full_precision():
            weight, bias = start.weight.to(self.axes.dtype), start.bias.to(self.axes.dtype)
            point = torch.cat([weight @ self.axes, (bias + weight @ self.mean)[:, None]], 1)  # (K, R + 1)
            point, slope = self._descend(point, 1 / (c * len(self.labels)), tolerance)
            weight = point[:, :-1] @ self.axes.T
            return Minimum(weight, point[:, -1] - weight @ self.mean, slope)

    def loss(self, point: Tensor, penalty: float) -> tuple[float, Tensor, float]:
        """Mean cross entropy + penalty / 2 ||W||^2, its (K, R + 1) gradient, and the images' mean of 1 - sum p^2."""
        n = len(self.labels)
        total, spread = (point.new_zeros((), dtype=torch.float64) for _ in range(2))
        gradient = torch.zeros_like(point)
        for x, labels in zip(self.inputs.split(self.tile), self.labels.split(self.tile), strict=True):
            target = labels[None]  # (1, T)
            share = point @ x.T  # (K, T), classes first: a softmax along images is several times faster
            share -= share.amax(0)
            total -= share.gather(0, target).sum(dtype=torch.float64)
            sums = share.exp_().sum(0)
            total += sums.log().sum(dtype=torch.float64)
            share /= sums
            spread += len(labels) - share.square().sum(dtype=torch.float64)
            share.scatter_add_(0, target, share.new_tensor(-1.0).expand(target.shape))
            gradient.addmm_(share, x)
        gradient /= n
        gradient[:, :-1].add_(point[:, :-1], alpha=penalty)
        total = total / n + penalty / 2 * point[:, :-1].square().sum(dtype=torch.float64)
        return float(total), gradient, float(spread) / n

    def _descend(self, point: Tensor, penalty: float, tolerance: float) -> tuple[Tensor, float]:
        """The (K, R + 1) minimum, and the largest entry of the gradient there.

        The inverse curvature from which L-BFGS starts is that of a loss whose softmax is as spread out on each image
        as it is on average now: per class, p (1 - p) times the variance along the axis, plus the penalty.
        """
        value, gradient, spread = self.loss(point, penalty)
        curvature = max(spread, 1e-6) / self.classes
        scale = torch.cat([self.variance * curvature + penalty, self.variance.new_tensor([curvature])])  # (R + 1,)
        noise = 8 * torch.finfo(point.dtype).eps
        pairs: deque[Pair] = deque(maxlen=MEMORY)
        for _ in range(ITERATIONS):
            if float(gradient.abs().max()) <= tolerance:
                break
            direction = -newton(gradient, pairs, scale)
            slope, size = inner(gradient, direction), 1.0
            while True:
                there = point + size * direction
                new_value, new_gradient, _ = self.loss(there, penalty)
                new_slope = inner(new_gradient, direction)
                lower = new_value <= value + 1e-4 * size * slope
                # Close to the minimum, rounding hides what the loss gains; the slope still shows it.
                if lower or (new_value <= value * (1 + noise) and abs(new_slope) <= 0.9 * abs(slope)):
                    break
                # Where the slope would be 0, were it straight.
                size *= min(max(slope / (slope - new_slope), 0.1), 0.5) if new_slope > slope else 0.5
                if not size > 1e-6:
                    return point, float(gradient.abs().max())
            pairs.append(Pair.of(there - point, new_gradient - gradient))
            point, value, gradient = there, new_value, new_gradient
        return point, float(gradient.abs().max())


@dataclass(frozen=True)
class Pair:
    """A past step, by how much it changed the gradient, and their inner product."""

    step: Tensor
    change: Tensor
    product: float

    @classmethod
    def of(cls, step: Tensor, change: Tensor) -> "Pair":
        return cls(step, change, inner(step, change))


def inner(a: Tensor, b: Tensor) -> float:
    """Sum of the products of the entries."""
    return float(torch.dot(a.flatten().double(), b.flatten().double()))


def newton(gradient: Tensor, pairs: Sequence[Pair], scale: Tensor) -> Tensor:
    """The gradient divided by the curvature that L-BFGS guesses (Nocedal & Wright 2006, algorithm 7.4).

    Args:
        gradient: (K, R + 1).
        pairs: The past steps, oldest first.
        scale: (R + 1,) curvature guessed without them.
    """
    pairs = [pair for pair in pairs if pair.product > 0]
    gradient, weights = gradient.clone(), []
    for pair in reversed(pairs):
        weights.append(inner(pair.step, gradient) / pair.product)
        gradient.sub_(pair.change, alpha=weights[-1])
    gradient /= scale
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        gradient.add_(pair.step, alpha=weight - inner(pair.change, gradient) / pair.product)
    return gradient
