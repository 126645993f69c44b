"""A linear classifier in the units of the features themselves, whatever they were standardised by to learn it.

Shapes: N images, D features, K classes, R classifiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data.splits import TestImages
from ssl_bench.evaluation.feature_extractor import FeatureExtractor

ROWS = 8192  # images at a time


@dataclass(frozen=True)
class AffineClassifier:
    """A classifier of features as they are: weight (K, D) and bias (K,), float64."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of_standardised(cls, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> "AffineClassifier":
        """From weights for (features - mean) / deviation."""
        own = weight.double() / deviation
        return cls(own, bias.double() - own @ mean)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K) float64."""
        return F.linear(features.double(), self.weight, self.bias)

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) classes."""
        return self.logits(features).argmax(1)


def predicted_classes(
    heads: Sequence[AffineClassifier], backbone: FeatureExtractor, feature_type: str, test: TestImages
) -> Tensor:
    """(R, N) int64 classes of the test images, by each of R heads."""
    parts = []
    for at in range(0, len(test), ROWS):
        features = backbone.features(test, feature_type, slice(at, at + ROWS)).double()
        parts.append(torch.stack([head(features).cpu() for head in heads]))
    return torch.cat(parts, 1)


def grid_boundary(accuracy: Sequence[float], chosen: int, count: int) -> tuple[bool, bool]:
    """Whether the chosen one of ``count`` values is first or last; and if so, whether its neighbour is as accurate.

    Where all is right whatever the penalty, the loss alone chooses, and a wider grid would change nothing.
    """
    edge = count > 1 and chosen in (0, count - 1)
    return edge, edge and accuracy[chosen] <= accuracy[1 if chosen == 0 else chosen - 1]
