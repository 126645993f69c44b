"""Fine-tuning on a subset of the labels: the recipe chosen by cross-validation inside it.

Shapes: n labelled images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ssl_bench.data.splits import Split, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.label_subsets import stratified_folds
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.training import Diverged, logits_of, tune


@dataclass(frozen=True)
class LabelledSubset:
    """The labelled images, as rows of the pool of train and validation together.

    Args:
        split: A split of that pool.
        rows: (n,).
        classes: K, of all images.
    """

    split: Split
    rows: np.ndarray
    classes: int

    def train(self, which: np.ndarray | slice = slice(None)) -> TrainSplit:
        """Some of them to learn from."""
        return TrainSplit(self.split.pool, self.rows[which])

    def held_out(self, which: np.ndarray) -> ValidationSplit:
        """Some of them to choose on."""
        return ValidationSplit(self.split.pool, self.rows[which])


def choose_recipe(
    recipes: Sequence[Recipe], backbone: FeatureExtractor, subset: LabelledSubset, start: str, folds: int, seed: int
) -> tuple[Recipe, list[float]]:
    """The recipe with the highest accuracy on held-out folds of the labelled images, and the accuracy with each.

    Of equals, that with the lower loss; the first recipe where no class has a second image to hold out.

    Raises:
        UserError: Every recipe diverges.
    """
    own = subset.train().labels
    fold = stratified_folds(own, folds, seed)
    if len(recipes) == 1 or fold.max() < 0:
        return recipes[0], []
    scores = []
    for recipe in recipes:
        right, loss = 0, 0.0
        try:
            for held_out in np.unique(fold[fold >= 0]):
                model, _ = fine_tune(recipe, backbone, subset.train(fold != held_out), subset.classes, start)
                logits = logits_of(model, backbone, subset.held_out(fold == held_out))
                labels = torch.as_tensor(own[fold == held_out])
                right += int((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        except Diverged:
            right, loss = -1, float("inf")
        scores.append((right, -loss))
    best = max(range(len(recipes)), key=lambda at: scores[at])
    if scores[best][0] < 0:
        raise UserError(f"every rate diverged on {len(subset.rows)} labels: give smaller ones than {recipes[best].lr}")
    return recipes[best], [max(right, 0) / int((fold >= 0).sum()) for right, _ in scores]


def fine_tune(
    recipe: Recipe, backbone: FeatureExtractor, train: TrainSplit, classes: int, start: str
) -> tuple[FineTuneModel, dict[str, list[float]]]:
    """A copy of the backbone after training, and how that went; from the `encoder`, or from the first layer of its
    projection head too (`head1`).
    """
    first = backbone.trainable_head() if start == "head1" else None
    model = FineTuneModel(backbone.trainable(), classes, "avg", recipe.drop_path, recipe.seed, first)
    what = f"fine-tuning from the {start} on {len(train)} labels, lr {recipe.lr:g}"
    return model, tune(model, Batches(train, recipe, classes, backbone), recipe, what=what)


def crops_only_recipe(epochs: int, batch_size: int, precision: str, seed: int) -> Recipe:
    """How ResNets are fine-tuned on few labels: SGD, crops and flips, nothing else (SimCLR B.5, BYOL C.1)."""
    return Recipe(
        epochs,
        0.0,
        batch_size,
        layer_decay=1.0,
        drop_path=0.0,
        weight_decay=0.0,
        min_lr=0.0,
        optimizer="sgd",
        mixup=0.0,
        cutmix=0.0,
        smoothing=0.0,
        randaugment=None,
        erase=0.0,
        precision=precision,
        seed=seed,
    )
