"""Calibration: whether the probabilities of a linear classifier on frozen features are what they say.

Expected calibration error (Naeini et al., AAAI 2015; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599): test images are sorted into 15 bins of equal width by the probability of the class
that is predicted; the error is the mean over images of |accuracy - mean probability| of their bin. The number of the
protocol is 1 - ECE, so that more is better, as in every column.

The classifier is `logistic`'s of the network's primary feature: softmax regression at its minimum, C chosen on the
validation split. It is not learned again with the validation images, for the temperature T of softmax(logits / T) is
found on these: it minimises their cross entropy. Variants: `1-ECE`, of the probabilities as they are (the primary),
`1-ECE scaled` with the temperature, and `accuracy`.

Diagnostics: T, Brier score and cross entropy of both; the curves hold what a reliability diagram shows.

Shapes: N images, K classes, R bins.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_bench.config.constraints import Ascending, PositiveInt, Rates
from ssl_bench.data.splits import TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Scored
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.affine_classifier import AffineClassifier
from ssl_bench.evaluations.logistic import Logistic
from ssl_bench.statistics.bootstrap import Floats, Statistic, mean_of

TEMPERATURES = (0.01, 100.0)  # between which T is looked for
HALVINGS = 100  # of the interval: far below what float64 tells apart


@final
@dataclass(frozen=True)
class Probabilities(Scored):
    """Of the classes of each test image.

    Args:
        logits: (N, K) float64.
        temperature: T that was fitted.
        bins: R.
    """

    logits: Tensor
    temperature: float
    bins: int

    def scores(self, test: TestSplit) -> dict[str, Statistic]:
        right, plain = self._right(test), self._confidence(1.0)
        return {
            "1-ECE": calibration_statistic(plain, right, self.bins),
            "1-ECE scaled": calibration_statistic(self._confidence(self.temperature), right, self.bins),
            "accuracy": mean_of(right),
        }

    def diagnostics(self, test: TestSplit) -> dict[str, float]:
        labels = torch.as_tensor(test.labels)
        found = {"temperature": self.temperature}
        for name, temperature in (("", 1.0), (" scaled", self.temperature)):
            logits = self.logits / temperature
            target = F.one_hot(labels, logits.shape[1]).double()
            confidence = self._confidence(temperature)
            found[f"ECE{name}"] = 1 - calibration_statistic(confidence, self._right(test), self.bins).value
            found[f"Brier score{name}"] = float((logits.softmax(1) - target).square().sum(1).mean())
            found[f"cross entropy{name}"] = float(F.cross_entropy(logits, labels))
        return found

    def curves(self, test: TestSplit) -> dict[str, list[float]]:
        """Of each bin that holds images: how many, their mean probability and their accuracy."""
        found: dict[str, list[float]] = {}
        right = self._right(test)
        for name, temperature in (("", 1.0), (" scaled", self.temperature)):
            confidence = self._confidence(temperature)
            place = bin_of(confidence, self.bins)
            count = np.bincount(place, minlength=self.bins)
            there = count > 0
            for what, values in (("confidence", confidence), ("accuracy", right)):
                total = np.bincount(place, values, minlength=self.bins)
                found[f"{what} of bins{name}"] = (total[there] / count[there]).tolist()
            found[f"images in bins{name}"] = count[there].astype(float).tolist()
        return found

    def _right(self, test: TestSplit) -> Floats:
        return np.asarray(self.logits.argmax(1).numpy() == test.labels, dtype=np.float64)

    def _confidence(self, temperature: float) -> Floats:
        return np.asarray((self.logits / temperature).softmax(1).amax(1).numpy())


@dataclass(frozen=True)
class Scaled:
    """A classifier and its temperature."""

    classifier: AffineClassifier
    temperature: float


@final
class Calibration(Evaluation[Scaled]):
    """Expected calibration error of logistic regression, with and without a temperature fitted on the validation split.

    Args:
        cs: To choose C from, as in `logistic`.
        bins: Of equal width, that images are sorted into by their probability.
    """

    metric: ClassVar[str] = "1-ECE"

    def __init__(
        self,
        cs: Annotated[Rates, Ascending()] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
        bins: PositiveInt = 15,
    ) -> None:
        self.cs = cs
        self.bins = bins
        self._logistic = Logistic(cs)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Scaled]:
        if len(validation) == 0:
            raise UserError("the validation split, on which calibration chooses, is empty: raise data.val_fraction")
        feature_type = backbone.primary_feature_type
        best = self._logistic.chosen(backbone, train, validation, feature_type)
        logits = best.classifier.logits(backbone.features(validation, feature_type)).cpu()
        temperature = fitted_temperature(logits, torch.as_tensor(validation.labels))
        at_grid_boundary, boundary_tied = best.boundary(self.cs)
        return Fit(
            Scaled(best.classifier, temperature),
            features=(feature_type,),
            chosen={"C": best.c, "temperature": temperature},
            grid={"C": list(self.cs)},
            at_grid_boundary=at_grid_boundary,
            boundary_tied=boundary_tied,
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[Scaled], test: TestImages) -> Probabilities:
        logits = fit.state.classifier.logits(backbone.features(test, backbone.primary_feature_type))  # (N, K)
        return Probabilities(logits.cpu(), fit.state.temperature, self.bins)


def bin_of(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """(N,) bin of each probability: the r-th is (r / R, (r + 1) / R], counted from 0."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def calibration_statistic(confidence: Floats, right: Floats, bins: int) -> Statistic:
    """1 - ECE of (N,) probabilities of the predicted class, and (N,) whether it is the right one."""
    sums = np.zeros((len(right), bins + 1))
    sums[np.arange(len(right)), bin_of(confidence, bins)] = right - confidence
    sums[:, -1] = 1
    return Statistic(sums, lambda total: 1 - np.abs(total[..., :-1]).sum(-1) / total[..., -1])


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """T that minimises the cross entropy of (N, K) logits / T, by halving: in 1 / T the slope only rises."""
    low, high = (1 / T for T in reversed(TEMPERATURES))
    own = logits.gather(1, labels[:, None])[:, 0]
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        slope = ((middle * logits).softmax(1) * logits).sum(1) - own  # (N,) derivative by 1 / T
        low, high = (low, middle) if float(slope.mean()) > 0 else (middle, high)
    return 1 / high
