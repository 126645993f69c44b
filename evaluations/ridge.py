"""Ridge: a linear classifier by penalised least squares, in closed form.

One-against-all regression on targets of +1 and -1, as the few-shot probe of big_vision
(https://github.com/google-research/big_vision, `evaluators/fewshot_lsr.py`). There is no learning rate, no schedule and
no seed, and the penalty is chosen by the exact error of leaving each image out, which a closed form gives too. So no
images need be held out: train and validation images together are what is learned from.

Ours, and why:
- The penalty is chosen, by leave-one-out accuracy, instead of fixed at 2^10: what suits 768 features of 10,000 images
  does not suit 3,072 of 50. So is the feature type.
- The bias is free of penalty, instead of a constant feature of value 100.

Shapes: N images, D features, K classes, P penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch

from ssl_bench.config.constraints import Ascending, FeatureType, Rates
from ssl_bench.data.splits import LabelledSplit, TestImages, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.affine_classifier import AffineClassifier, grid_boundary, predicted_classes
from ssl_bench.evaluation.solvers.ridge import LeastSquares, LeftOut

ROWS = 8192  # images whose features are looked at together


@dataclass(frozen=True)
class Head:
    """A classifier of one feature type.

    Args:
        feature_type: Of features.
        classifier: Of them as they are.
        penalty: That was chosen, for features that are standardised.
        left_out: How images fare under each penalty of the grid.
        order: Sorts from best to worst.
    """

    feature_type: str
    classifier: AffineClassifier
    penalty: float
    left_out: LeftOut
    order: tuple[float, float]


@final
class Ridge(Evaluation[list[Head]]):
    """Penalised least squares on standardised features; penalty and feature type are chosen by leave-one-out.

    Args:
        penalties: To choose from: the loss is the mean squared error plus the penalty times the squared weights.
        feature_types: Feature types to choose from; all after the final norm when not given.
    """

    def __init__(
        self,
        penalties: Annotated[Rates, Ascending()] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0),
        feature_types: tuple[FeatureType, ...] | None = None,
    ) -> None:
        if not penalties or list(penalties) != sorted(set(penalties)) or not penalties[0] > 0:
            raise ValueError(f"penalties must be above 0 and rise, not {tuple(penalties)}")
        self.penalties = penalties
        self.feature_types = feature_types

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[list[Head]]:
        feature_types = self.feature_types or tuple(
            feature_type for feature_type in backbone.feature_types if not feature_type.endswith("_raw")
        )
        heads = [self._best(backbone, (train, validation), feature_type) for feature_type in feature_types]
        best = min(heads, key=lambda head: head.order)
        at_grid_boundary, boundary_tied = grid_boundary(
            best.left_out.accuracy, self.penalties.index(best.penalty), len(self.penalties)
        )
        return Fit(
            [best, *heads],
            features=feature_types,
            chosen={"penalty": best.penalty, "features": best.feature_type}
            | {f"penalty {h.feature_type}": h.penalty for h in heads},
            grid={"penalty": list(self.penalties), "features": list(feature_types)},
            chosen_on="train",
            at_grid_boundary=at_grid_boundary,
            boundary_tied=boundary_tied,
            curve={
                "penalty": list(self.penalties),
                "leave-one-out accuracy": best.left_out.accuracy,
                "leave-one-out error": best.left_out.error,
            },
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[list[Head]], test: TestImages) -> list[Prediction]:
        predictions = []
        for variant, head in zip(["chosen", *(head.feature_type for head in fit.state[1:])], fit.state, strict=True):
            predictions.append(
                Prediction(variant, predicted_classes([head.classifier], backbone, head.feature_type, test)[0])
            )
        return predictions

    def _best(self, backbone: FeatureExtractor, splits: Sequence[LabelledSplit], feature_type: str) -> Head:
        """The classifier of one feature type, its penalty chosen."""
        mean, variance = moments(backbone, splits, feature_type)
        variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
        deviation = variance.sqrt()
        labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
        chunks = [(split, slice(at, at + ROWS)) for split in splits for at in range(0, len(split), ROWS)]
        standardised = lambda: ((backbone.features(s, feature_type, rows) - mean) / deviation for s, rows in chunks)  # noqa: E731
        problem = LeastSquares(standardised, labels, int(labels.max()) + 1)
        left_out = problem.leave_one_out(self.penalties)
        found = zip(left_out.accuracy, left_out.error, self.penalties, strict=True)
        order, penalty = min(((-accuracy, error), penalty) for accuracy, error, penalty in found)
        classifier = AffineClassifier.of_standardised(*problem.classifier(penalty), mean, deviation)
        return Head(feature_type, classifier, penalty, left_out, order)
