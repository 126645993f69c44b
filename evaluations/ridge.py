"""Ridge: a linear classifier by penalised least squares, in closed form.

One-against-all regression on targets of +1 and -1, as the few-shot probe of big_vision
(https://github.com/google-research/big_vision, `evaluators/fewshot_lsr.py`). There is no learning rate, no schedule and
no seed, and the penalty is chosen by the exact error of leaving each image out, which a closed form gives too. So no
images need be held out: train and selection images together are what is learned from.

Ours, and why:
- The penalty is chosen, by leave-one-out accuracy, instead of fixed at 2^10: what suits 768 features of 10,000 images
  does not suit 3,072 of 50. So is the kind of features.
- The bias is free of penalty, instead of a constant feature of value 100.

Shapes: N images, D features, K classes, P penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from ssl_bench.data.splits import LabelledSplit, SelectionSplit, TestImages, TrainSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.features import FrozenBackbone
from ssl_bench.evaluation.few_labels import Affine, at_an_end, voted
from ssl_bench.evaluation.ridge import LeastSquares, LeftOut

ROWS = 8192  # images whose features are looked at together


@dataclass(frozen=True)
class Head:
    """A classifier of one kind of features.

    Args:
        kind: Of features.
        classifier: Of them as they are.
        penalty: That was chosen, for features that are standardised.
        left_out: How images fare under each penalty of the grid.
        order: Sorts from best to worst.
    """

    kind: str
    classifier: Affine
    penalty: float
    left_out: LeftOut
    order: tuple[float, float]


@final
class Ridge(Evaluation[list[Head]]):
    """Penalised least squares on standardised features; penalty and kind of features are chosen by leave-one-out.

    Args:
        penalties: To choose from: the loss is the mean squared error plus the penalty times the squared weights.
        kinds: Kinds of features to choose from; all after the final norm when not given.
    """

    def __init__(
        self,
        penalties: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0),
        kinds: tuple[str, ...] | None = None,
    ) -> None:
        if not penalties or list(penalties) != sorted(set(penalties)) or not penalties[0] > 0:
            raise ValueError(f"penalties must be above 0 and rise, not {tuple(penalties)}")
        self.penalties = penalties
        self.kinds = kinds

    def fit(self, backbone: FrozenBackbone, train: TrainSplit, selection: SelectionSplit) -> Fit[list[Head]]:
        kinds = self.kinds or tuple(kind for kind in backbone.kinds if not kind.endswith("_raw"))
        heads = [self._best(backbone, (train, selection), kind) for kind in kinds]
        best = min(heads, key=lambda head: head.order)
        on_edge, edge_tied = at_an_end(best.left_out.accuracy, self.penalties.index(best.penalty), len(self.penalties))
        return Fit(
            [best, *heads],
            features=kinds,
            chosen={"penalty": best.penalty, "features": best.kind} | {f"penalty {h.kind}": h.penalty for h in heads},
            grid={"penalty": list(self.penalties), "features": list(kinds)},
            chosen_on="train",
            on_edge=on_edge,
            edge_tied=edge_tied,
            curve={
                "penalty": list(self.penalties),
                "leave-one-out accuracy": best.left_out.accuracy,
                "leave-one-out error": best.left_out.error,
            },
        )

    def predict(self, backbone: FrozenBackbone, fit: Fit[list[Head]], test: TestImages) -> list[Prediction]:
        predictions = []
        for variant, head in zip(["chosen", *(head.kind for head in fit.state[1:])], fit.state, strict=True):
            predictions.append(Prediction(variant, voted([head.classifier], backbone, head.kind, test)[0]))
        return predictions

    def _best(self, backbone: FrozenBackbone, splits: Sequence[LabelledSplit], kind: str) -> Head:
        """The classifier of one kind of features, its penalty chosen."""
        mean, variance = backbone.moments(splits, kind)
        variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
        deviation = variance.sqrt()
        labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
        chunks = [(split, slice(at, at + ROWS)) for split in splits for at in range(0, len(split), ROWS)]
        standardised = lambda: ((backbone.features(s, kind, rows) - mean) / deviation for s, rows in chunks)  # noqa: E731
        problem = LeastSquares(standardised, labels, int(labels.max()) + 1)
        left_out = problem.leave_one_out(self.penalties)
        found = zip(left_out.accuracy, left_out.error, self.penalties, strict=True)
        order, penalty = min(((-accuracy, error), penalty) for accuracy, error, penalty in found)
        classifier = Affine.of_standardised(*problem.classifier(penalty), mean, deviation)
        return Head(kind, classifier, penalty, left_out, order)
