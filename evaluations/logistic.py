"""Logistic regression: softmax regression on frozen features, at the exact minimum of its loss.

The protocol of Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024
(https://arxiv.org/abs/2304.07193, `eval/log_regression.py`) and, before, of SimCLR's and BYOL's transfer tables: L-BFGS
for one penalty after another, the penalty chosen on held-out training images, then one classifier learned from all.

Ours, and why:
- Features are standardised, for which everyone's C then means the same; DINOv2's are left at their scale.
- 11 values of C, decades, instead of 45; no larger ones are tried after four that each were worse than the one before.
- Converged means: no entry of the gradient above 1e-5. float32 is used, float64 where that falls short.
- The feature type is chosen too, as it is for the linear probe.

How features are normalised can change which method is ahead (Marks et al., "A Closer Look at Benchmarking
Self-Supervised Pre-training with Image Classification", IJCV 2025, https://arxiv.org/abs/2407.12210). So the primary
feature type is also reported as it is (`-none`) and of length 1 (`-l2`), each with its own C; neither is chosen.

Shapes: N images, D features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import Ascending, FeatureType, PositiveFloat, PositiveInt, Rates
from ssl_bench.data.splits import LabelledSplit, Split, TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers import logistic
from ssl_bench.evaluation.solvers.affine_classifier import ROWS, AffineClassifier, grid_boundary, predicted_classes

Normalisation: TypeAlias = Literal["none", "l2", "standardised"]


@dataclass(frozen=True)
class Head:
    """A classifier of one feature type.

    Args:
        feature_type: Of features.
        classifier: Of them as they are, or brought to length 1 by `l2`.
        c: That was chosen, for features that are standardised.
        accuracy: On the validation split, before it was learned from, for each C that was tried.
        order: Sorts from best to worst.
        normalisation: Of the features that it learned from.
    """

    feature_type: str
    classifier: AffineClassifier
    c: float
    accuracy: list[float]
    order: tuple[float, float]
    normalisation: Normalisation = "standardised"

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.feature_type + ("" if self.normalisation == "standardised" else f"-{self.normalisation}")

    def boundary(self, cs: Sequence[float]) -> tuple[bool, bool]:
        """Whether C lies at an end of its grid, and if so, whether the value next to it is as accurate."""
        return grid_boundary(self.accuracy, cs.index(self.c), len(cs))


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
        at_grid_boundary, boundary_tied = best.boundary(self.cs)
        others: tuple[Normalisation, ...] = ("none", "l2")
        reported = [self._best(backbone, train, validation, backbone.primary_feature_type, how) for how in others]
        return Fit(
            [best, *heads, *reported],
            features=feature_types,
            chosen={"C": best.c, "features": best.feature_type}
            | {f"C {head.name}": head.c for head in [*heads, *reported]},
            grid={"C": list(self.cs), "features": list(feature_types)},
            at_grid_boundary=at_grid_boundary,
            boundary_tied=boundary_tied,
            curve={"C": list(self.cs[: len(best.accuracy)]), "validation accuracy": best.accuracy},
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[list[Head]], test: TestImages) -> list[Prediction]:
        return [
            Prediction(variant, predicted(head, backbone, test))
            for variant, head in zip(["chosen", *(head.name for head in fit.state[1:])], fit.state, strict=True)
        ]

    def chosen(
        self,
        backbone: FeatureExtractor,
        train: TrainSplit,
        validation: ValidationSplit,
        feature_type: str,
        how: Normalisation = "standardised",
    ) -> Head:
        """The classifier of one feature type with the best C, learned from the training images alone."""
        inputs, labels, mean, deviation = normalised(backbone, [train], feature_type, how)
        held_out = (_features(backbone, validation, feature_type, how) - mean) / deviation
        answers = torch.as_tensor(validation.labels).to(backbone.device)
        classes = int(max(labels.max(), answers.max())) + 1
        scores: list[tuple[float, float]] = []  # of each C, share of wrong ones and loss
        found: list[tuple[Tensor, Tensor]] = []
        worse = 0
        for weight, bias in logistic.path(inputs, labels, classes, self.cs, self.tolerance):
            logits = F.linear(held_out, weight, bias).double()
            wrong = float((logits.argmax(1) != answers).double().mean())
            scores.append((wrong, float(F.cross_entropy(logits, answers))))
            found.append((weight, bias))
            worse = worse + 1 if len(scores) > 1 and scores[-1][0] > scores[-2][0] else 0
            if worse == self.patience:
                break
        order, c = min(zip(scores, self.cs, strict=False))
        accuracy = [1 - wrong for wrong, _ in scores]
        classifier = AffineClassifier.of_standardised(*found[self.cs.index(c)], mean.double(), deviation.double())
        return Head(feature_type, classifier, c, accuracy, order, how)

    def _best(
        self,
        backbone: FeatureExtractor,
        train: TrainSplit,
        validation: ValidationSplit,
        feature_type: str,
        how: Normalisation = "standardised",
    ) -> Head:
        """The classifier of one feature type: C chosen, then learned again from all images."""
        best = self.chosen(backbone, train, validation, feature_type, how)
        everything, labels, mean, deviation = normalised(backbone, [train, validation], feature_type, how)
        classes = len(best.classifier.bias)
        weight, bias = next(logistic.path(everything, labels, classes, [best.c], self.tolerance))
        classifier = AffineClassifier.of_standardised(weight, bias, mean.double(), deviation.double())
        return replace(best, classifier=classifier)


def predicted(head: Head, backbone: FeatureExtractor, test: TestImages) -> Tensor:
    """(N,) int64 classes of the test images."""
    if head.normalisation != "l2":
        return predicted_classes([head.classifier], backbone, head.feature_type, test)[0]
    parts = [
        head.classifier(_features(backbone, test, head.feature_type, "l2", slice(at, at + ROWS))).cpu()
        for at in range(0, len(test), ROWS)
    ]
    return torch.cat(parts)


def _features(
    backbone: FeatureExtractor, split: Split, feature_type: str, how: Normalisation, rows: slice = slice(None)
) -> Tensor:
    """(N, D), of length 1 where ``how`` is `l2`."""
    features = backbone.features(split, feature_type, rows)
    return F.normalize(features, dim=1) if how == "l2" else features


def normalised(
    backbone: FeatureExtractor, splits: Sequence[LabelledSplit], feature_type: str, how: Normalisation
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, D) features of all images of the splits, their (N,) classes, and the (D,) mean and deviation taken off."""
    if how == "standardised":
        return standardised(backbone, splits, feature_type)
    inputs = torch.cat([_features(backbone, split, feature_type, how) for split in splits if len(split)])
    labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
    return inputs, labels, torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])


def standardised(
    backbone: FeatureExtractor, splits: Sequence[LabelledSplit], feature_type: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, D) standardised features of all images of the splits, their (N,) classes, and (D,) mean and deviation."""
    mean, variance = moments(backbone, splits, feature_type)
    variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
    mean, deviation = mean.float(), variance.sqrt().float()
    inputs = torch.cat(
        [backbone.features(split, feature_type).sub_(mean).div_(deviation) for split in splits if len(split)]
    )
    labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
    return inputs, labels, mean, deviation
