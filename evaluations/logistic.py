"""Logistic regression: softmax regression on frozen features, at its very minimum.

The protocol of Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024
(https://arxiv.org/abs/2304.07193, `eval/log_regression.py`) and, before, of SimCLR's and BYOL's transfer tables: L-BFGS
for one penalty after another, the penalty chosen on held-out training images, then one classifier learned from all.

Ours, and why:
- Features are standardised, for which everyone's C then means the same; DINOv2's are left at their scale.
- 11 values of C, decades, instead of 45; no larger ones are tried after four that each were worse than the one before.
- Converged means: no entry of the gradient above 1e-5. float32 is used, float64 where that falls short.
- The kind of features is chosen too, as it is for the linear probe.

Shapes: N images, D features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data.splits import LabelledSplit, SelectionSplit, TestImages, TrainSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation import logistic
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.features import FrozenBackbone
from ssl_bench.evaluation.few_labels import Affine, at_an_end, voted


@dataclass(frozen=True)
class Head:
    """A classifier of one kind of features.

    Args:
        kind: Of features.
        classifier: Of them as they are, learned from train and selection images.
        c: That was chosen, for features that are standardised.
        accuracy: On the selection split, before it was learned from, for each C that was tried.
        order: Sorts from best to worst.
    """

    kind: str
    classifier: Affine
    c: float
    accuracy: list[float]
    order: tuple[float, float]


@final
class Logistic(Evaluation[list[Head]]):
    """Softmax regression by L-BFGS; C and kind of features are chosen on the selection split.

    Args:
        cs: To choose from: (1/n) sum CE + ||W||^2 / (2 C n) is minimised.
        kinds: Kinds of features to choose from; all after the final norm when not given.
        patience: After so many values of C that are each worse than the one before, larger ones are not tried.
        tolerance: Largest entry of the gradient at a minimum.
    """

    def __init__(
        self,
        cs: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
        kinds: tuple[str, ...] | None = None,
        patience: int = 4,
        tolerance: float = 1e-5,
    ) -> None:
        if not cs or list(cs) != sorted(set(cs)) or not cs[0] > 0:
            raise ValueError(f"cs must be above 0 and rise, not {tuple(cs)}")
        if patience < 1 or not tolerance > 0:
            raise ValueError(f"patience must be at least 1 and tolerance above 0, not {patience} and {tolerance}")
        self.cs = cs
        self.kinds = kinds
        self.patience = patience
        self.tolerance = tolerance

    def fit(self, backbone: FrozenBackbone, train: TrainSplit, selection: SelectionSplit) -> Fit[list[Head]]:
        if len(selection) == 0:
            raise UserError("the selection split, on which logistic chooses, is empty: raise data.selection_fraction")
        kinds = self.kinds or tuple(kind for kind in backbone.kinds if not kind.endswith("_raw"))
        heads = [self._best(backbone, train, selection, kind) for kind in kinds]
        best = min(heads, key=lambda head: head.order)
        on_edge, edge_tied = at_an_end(best.accuracy, self.cs.index(best.c), len(self.cs))
        return Fit(
            [best, *heads],
            features=kinds,
            chosen={"C": best.c, "features": best.kind} | {f"C {head.kind}": head.c for head in heads},
            grid={"C": list(self.cs), "features": list(kinds)},
            on_edge=on_edge,
            edge_tied=edge_tied,
            curve={"C": list(self.cs[: len(best.accuracy)]), "selection accuracy": best.accuracy},
        )

    def predict(self, backbone: FrozenBackbone, fit: Fit[list[Head]], test: TestImages) -> list[Prediction]:
        return [
            Prediction(variant, voted([head.classifier], backbone, head.kind, test)[0])
            for variant, head in zip(["chosen", *(head.kind for head in fit.state[1:])], fit.state, strict=True)
        ]

    def _best(self, backbone: FrozenBackbone, train: TrainSplit, selection: SelectionSplit, kind: str) -> Head:
        """The classifier of one kind of features: C chosen, then learned again from all images."""
        inputs, labels, mean, deviation = standardised(backbone, [train], kind)
        held_out = (backbone.features(selection, kind) - mean) / deviation
        answers = torch.as_tensor(selection.labels).to(backbone.device)
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
        everything, labels, mean, deviation = standardised(backbone, [train, selection], kind)
        weight, bias = next(logistic.path(everything, labels, classes, [c], self.tolerance))
        accuracy = [1 - wrong for wrong, _ in scores]
        return Head(kind, Affine.of_standardised(weight, bias, mean.double(), deviation.double()), c, accuracy, order)


def standardised(
    backbone: FrozenBackbone, splits: Sequence[LabelledSplit], kind: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, D) standardised features of all images of the splits, their (N,) classes, and (D,) mean and deviation."""
    mean, variance = backbone.moments(splits, kind)
    variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
    mean, deviation = mean.float(), variance.sqrt().float()
    inputs = torch.cat([backbone.features(split, kind).sub_(mean).div_(deviation) for split in splits if len(split)])
    labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
    return inputs, labels, mean, deviation
