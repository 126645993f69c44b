"""Logistic regression: softmax regression on frozen features, at the exact minimum of its loss.

The protocol of Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024
(https://arxiv.org/abs/2304.07193, `eval/log_regression.py`) and, before, of SimCLR's and BYOL's transfer tables: L-BFGS
for one penalty after another, the penalty chosen on held-out training images, then one classifier learned from all.

Ours, and why:
- Features are standardised, for which everyone's C then means the same; DINOv2's are left at their scale.
- 11 values of C, decades, instead of 45; no larger ones are tried after four that each were worse than the one before.
- Converged means: no entry of the gradient above 1e-5. float32 is used, float64 where that falls short.
- The feature type is chosen too, as it is for the linear probe.

Shapes: N images, D features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import Ascending, FeatureType, PositiveFloat, PositiveInt, Rates
from ssl_bench.data.splits import LabelledSplit, TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers import logistic
from ssl_bench.evaluation.solvers.affine_classifier import AffineClassifier, grid_boundary, predicted_classes


@dataclass(frozen=True)
class Head:
    """A classifier of one feature type.

    Args:
        feature_type: Of features.
        classifier: Of them as they are, learned from train and validation images.
        c: That was chosen, for features that are standardised.
        accuracy: On the validation split, before it was learned from, for each C that was tried.
        order: Sorts from best to worst.
    """

    feature_type: str
    classifier: AffineClassifier
    c: float
    accuracy: list[float]
    order: tuple[float, float]


@final
class Logistic(Evaluation[list[Head]]):
    """Softmax regression by L-BFGS; C and feature type are chosen on the validation split.

    Args:
        cs: To choose from: (1/n) sum CE + ||W||^2 / (2 C n) is minimised.
        feature_types: Feature types to choose from; all after the final norm when not given.
        patience: After so many values of C that are each worse than the one before, larger ones are not tried.
        tolerance: Largest entry of the gradient at a minimum.
    """

    def __init__(
        self,
        cs: Annotated[Rates, Ascending()] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
        feature_types: tuple[FeatureType, ...] | None = None,
        patience: PositiveInt = 4,
        tolerance: PositiveFloat = 1e-5,
    ) -> None:
        if not cs or list(cs) != sorted(set(cs)) or not cs[0] > 0:
            raise ValueError(f"cs must be above 0 and rise, not {tuple(cs)}")
        if patience < 1 or not tolerance > 0:
            raise ValueError(f"patience must be at least 1 and tolerance above 0, not {patience} and {tolerance}")
        self.cs = cs
        self.feature_types = feature_types
        self.patience = patience
        self.tolerance = tolerance

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[list[Head]]:
        if len(validation) == 0:
            raise UserError("the validation split, on which logistic chooses, is empty: raise data.val_fraction")
        feature_types = self.feature_types or tuple(
            feature_type for feature_type in backbone.feature_types if not feature_type.endswith("_raw")
        )
        heads = [self._best(backbone, train, validation, feature_type) for feature_type in feature_types]
        best = min(heads, key=lambda head: head.order)
        at_grid_boundary, boundary_tied = grid_boundary(best.accuracy, self.cs.index(best.c), len(self.cs))
        return Fit(
            [best, *heads],
            features=feature_types,
            chosen={"C": best.c, "features": best.feature_type} | {f"C {head.feature_type}": head.c for head in heads},
            grid={"C": list(self.cs), "features": list(feature_types)},
            at_grid_boundary=at_grid_boundary,
            boundary_tied=boundary_tied,
            curve={"C": list(self.cs[: len(best.accuracy)]), "validation accuracy": best.accuracy},
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[list[Head]], test: TestImages) -> list[Prediction]:
        return [
            Prediction(variant, predicted_classes([head.classifier], backbone, head.feature_type, test)[0])
            for variant, head in zip(["chosen", *(head.feature_type for head in fit.state[1:])], fit.state, strict=True)
        ]

    def _best(
        self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit, feature_type: str
    ) -> Head:
        """The classifier of one feature type: C chosen, then learned again from all images."""
        inputs, labels, mean, deviation = standardised(backbone, [train], feature_type)
        held_out = (backbone.features(validation, feature_type) - mean) / deviation
        answers = torch.as_tensor(validation.labels).to(backbone.device)
        classes = int(max(labels.max(), answers.max())) + 1
        scores: list[tuple[float, float]] = []  # of each C, share of wrong ones and loss
        worse = 0
        for weight, bias in logistic.path(inputs, labels, classes, self.cs, self.tolerance):
            logits = F.linear(held_out, weight, bias).double()
            wrong = float((logits.argmax(1) != answers).double().mean())
            scores.append((wrong, float(F.cross_entropy(logits, answers))))
            worse = worse + 1 if len(scores) > 1 and scores[-1][0] > scores[-2][0] else 0
            if worse == self.patience:
                break
        order, c = min(zip(scores, self.cs, strict=False))
        del inputs
        everything, labels, mean, deviation = standardised(backbone, [train, validation], feature_type)
        weight, bias = next(logistic.path(everything, labels, classes, [c], self.tolerance))
        accuracy = [1 - wrong for wrong, _ in scores]
        return Head(
            feature_type,
            AffineClassifier.of_standardised(weight, bias, mean.double(), deviation.double()),
            c,
            accuracy,
            order,
        )


def standardised(
    backbone: FeatureExtractor, splits: Sequence[LabelledSplit], feature_type: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, D) standardised features of all images of the splits, their (N,) classes, and (D,) mean and deviation."""
    mean, variance = backbone.moments(splits, feature_type)
    variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
    mean, deviation = mean.float(), variance.sqrt().float()
    inputs = torch.cat(
        [backbone.features(split, feature_type).sub_(mean).div_(deviation) for split in splits if len(split)]
    )
    labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
    return inputs, labels, mean, deviation
