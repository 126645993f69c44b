"""Labels: logistic regression on frozen features of a fraction of the labels.

The protocol of DINO (https://arxiv.org/abs/2104.14294) and iBOT for the subsets of SimCLR
(https://arxiv.org/abs/2002.05709): the backbone stays as it is. ImageNet's 1 % and 10 % are the published lists,
1percent.txt and 10percent.txt of https://github.com/google-research/simclr/tree/master/imagenet_subsets; their md5 is
checked. The presets `labels-1pct` and `labels-10pct` are these two fractions.

Ours, and why:
- C is chosen by stratified cross-validation inside the subset, and the classifier learned again from all of it: no
  other label is seen, not those of the validation split either. Where each class has one image, C is 0.1.
- Features are standardised over all training images, which takes no labels, so that one grid suits all networks.
- Of other data the subset is drawn, from train and validation together: the fraction of each class, rounded, at least
  one image. Three draws, whose mean is reported; a draw of a smaller fraction is part of the same draw of a larger one.

Shapes: N images of all splits together, n labelled ones, D features, K classes, R draws.
"""

from collections.abc import Sequence
from typing import Annotated, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import Ascending, Fraction, PathText, PositiveInt, Range, Rates, Seed
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.label_subsets import (
    concatenated_labels,
    labelled_subsets,
    stratified_folds,
    subset_features,
)
from ssl_bench.evaluation.solvers import logistic
from ssl_bench.evaluation.solvers.affine_classifier import AffineClassifier, grid_boundary, predicted_classes
from ssl_bench.runtime.precision import full_precision
from ssl_bench.runtime.seeds import derive

FIXED_C = 0.1  # where no class has a second image to choose it on
PATIENCE = 4  # values of C without a better one, after which larger ones are not tried


@final
class Labels(Evaluation[list[AffineClassifier]]):
    """Logistic regression from a fraction of the labels; its penalty is chosen by cross-validation inside them.

    Args:
        fraction: Of the labels of each class.
        subset: File that names the labelled images, one in each line; for 1 % and 10 % of ImageNet, 1percent.txt and
            10percent.txt as published. They are drawn when not given.
        draws: Of the labelled images, where they are drawn; the accuracy is the mean.
        cs: Inverse penalties C to choose from, rising.
        folds: Of the cross-validation.
        seed: Of the draws and folds.
    """

    def __init__(
        self,
        fraction: Fraction = 0.1,
        subset: PathText | None = None,
        draws: PositiveInt = 3,
        cs: Annotated[Rates, Ascending()] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0),
        folds: Annotated[int, Range(min=2, max=1000)] = 5,
        seed: Seed = 0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
        if not cs or list(cs) != sorted(set(cs)) or not cs[0] > 0:
            raise ValueError(f"cs must be above 0 and rise, not {tuple(cs)}")
        if draws < 1 or folds < 2:
            raise ValueError(f"draws must be at least 1 and folds at least 2, not {draws} and {folds}")
        self.fraction = fraction
        self.subset = subset
        self.draws = draws
        self.cs = cs
        self.folds = folds
        self.seed = seed

    def fit(
        self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit
    ) -> Fit[list[AffineClassifier]]:
        splits, feature_type = (train, validation), backbone.primary_feature_type
        labels = concatenated_labels(splits)
        seeds = [derive(self.seed, draw) for draw in range(self.draws)]
        subsets = labelled_subsets(splits, self.fraction, self.subset, seeds)
        mean, variance = moments(backbone, splits, feature_type)  # of all images: they need no labels
        variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
        deviation = variance.sqrt()
        heads, chosen, curves, boundaries = [], [], {}, []
        for draw, rows in enumerate(subsets):
            features = subset_features(backbone, splits, feature_type, rows)  # (n, D)
            inputs = ((features.double() - mean) / deviation).float()
            own, classes = torch.as_tensor(labels[rows]).to(inputs.device), int(labels.max()) + 1
            fold = stratified_folds(labels[rows], self.folds, derive(self.seed, draw, 1))
            c = FIXED_C
            if fold.max() >= 0:
                c, accuracy = cross_validated(inputs, own, fold, classes, self.cs)
                chosen.append(c)
                curves[f"accuracy {draw}"] = accuracy
                boundaries.append(grid_boundary(accuracy, self.cs.index(c), len(self.cs)))
            weight, bias = next(logistic.path(inputs, own, classes, [c]))
            heads.append(AffineClassifier.of_standardised(weight, bias, mean, deviation))
        if not chosen:
            return Fit(heads, features=(feature_type,))
        at_grid_boundary = any(at_end for at_end, _ in boundaries)
        return Fit(
            heads,
            features=(feature_type,),
            chosen={"C": chosen if len(chosen) > 1 else chosen[0]},
            grid={"C": list(self.cs)},
            chosen_on="train",
            at_grid_boundary=at_grid_boundary,
            boundary_tied=at_grid_boundary and all(tied for at_end, tied in boundaries if at_end),
            curve={"C": list(self.cs), **curves},
        )

    def predict(
        self, backbone: FeatureExtractor, fit: Fit[list[AffineClassifier]], test: TestImages
    ) -> list[Prediction]:
        classes = predicted_classes(fit.state, backbone, backbone.primary_feature_type, test)  # (R, N)
        return [Prediction("logistic", classes if len(classes) > 1 else classes[0])]


def cross_validated(
    inputs: Tensor, labels: Tensor, held_out: np.ndarray, classes: int, cs: Sequence[float]
) -> tuple[float, list[float]]:
    """The C of the highest accuracy on held-out images, and the accuracy for each C that was tried, in order.

    Of equal accuracies the lowest loss decides. All folds go up the path together; it ends after PATIENCE values that
    are no better than one before.

    Args:
        inputs: (n, D).
        labels: (n,).
        held_out: (n,) fold of each image, -1 for those that are always learned from.
        classes: K.
        cs: Rising.
    """
    fold = torch.as_tensor(held_out, device=inputs.device)
    parts = [(fold != number, fold == number) for number in range(int(held_out.max()) + 1)]
    paths = [logistic.path(inputs[learn], labels[learn], classes, cs) for learn, _ in parts]
    scores: list[tuple[float, float]] = []  # accuracy and minus the loss
    for found in zip(*paths, strict=True):
        right, loss, count = 0, 0.0, 0
        for (weight, bias), (_, held) in zip(found, parts, strict=True):
            with full_precision():
                logits = F.linear(inputs[held], weight, bias)
            right += int((logits.argmax(1) == labels[held]).sum())
            loss += float(F.cross_entropy(logits.double(), labels[held], reduction="sum"))
            count += len(logits)
        scores.append((right / count, -loss / count))
        if len(scores) - 1 - scores.index(max(scores)) >= PATIENCE:
            break
    return cs[scores.index(max(scores))], [accuracy for accuracy, _ in scores]
