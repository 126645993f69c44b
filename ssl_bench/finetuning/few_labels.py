"""Fine-tuning on a share of all labels: the protocol of finetune-1pct and finetune-10pct.

Shapes: N images of all splits together, n labelled ones, K classes, R draws.
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from ssl_bench.data.splits import Split, TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.few_labels import folds_of, labelled, labels_of
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.training import Diverged, logits_of, tune
from ssl_bench.runtime.seeds import derive

Starts = dict[str, list[FineTuneModel]]  # where fine-tuning starts -> the fine-tuned network of each draw


@dataclass(frozen=True)
class Labelled:
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


class FinetuneFewLabels(Evaluation[Starts], ABC):
    """All of a network learns from a share of all labels; its rate is chosen by cross-validation inside them.

    Attributes:
        fraction: The share.
        md5: Of ImageNet's published list of that share.
    """

    trains: ClassVar[bool] = True
    fraction: ClassVar[float]
    md5: ClassVar[str]

    def __init__(
        self,
        *,
        subset: str | None,
        draws: int,
        folds: int,
        epochs: int,
        resnet_epochs: int,
        warmup_epochs: float,
        batch_size: int,
        lrs: tuple[float, ...],
        resnet_lrs: tuple[float, ...],
        seed: int,
        precision: str,
        **augmentation: Any,
    ) -> None:
        if not lrs or not resnet_lrs or min(*lrs, *resnet_lrs) <= 0:
            raise ValueError("lrs and resnet_lrs need at least one value each, all above 0")
        if draws < 1 or folds < 2:
            raise ValueError(f"draws must be at least 1 and folds at least 2, not {draws} and {folds}")
        self.subset = subset
        self.draws = draws
        self.folds = folds
        self.epochs = epochs
        self.resnet_epochs = resnet_epochs
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.lrs = lrs
        self.resnet_lrs = resnet_lrs
        self.seed = seed
        self.precision = precision
        vars(self).update(augmentation)
        self._vit = Recipe(epochs, warmup_epochs, batch_size, precision=precision, seed=seed, **augmentation)
        self._resnet = crops_alone(resnet_epochs, batch_size, precision, seed)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Starts]:
        assert train.pool is validation.pool, "one pool holds both"
        splits = train, validation
        rows, labels = np.concatenate([split.rows for split in splits]), labels_of(splits)
        seeds = [derive(self.seed, draw) for draw in range(self.draws)]  # the draws of labels-1pct and labels-10pct
        option = f"--finetune_{round(100 * self.fraction)}pct.subset"
        subsets = labelled(splits, self.fraction, self.subset, seeds, self.md5, option)
        starts = ["encoder", *(["head1"] if backbone.head is not None else [])]
        models: Starts = {start: [] for start in starts}
        chosen: dict[str, Any] = {}
        curve: dict[str, list[float]] = {}
        lrs = self.resnet_lrs if is_resnet(backbone) else self.lrs
        for start in starts:
            found = []
            for draw, places in enumerate(subsets):
                some = Labelled(train, rows[places], int(labels.max()) + 1)
                recipes = [replace(self._resnet if is_resnet(backbone) else self._vit, lr=lr) for lr in lrs]
                seed = derive(self.seed, draw, 1)
                recipe, accuracies = chosen_by_folds(recipes, backbone, some, start, self.folds, seed)
                model, taken = trained(recipe, backbone, some.train(), some.classes, start)
                models[start].append(model)
                found.append(recipe.lr)
                if accuracies:
                    curve[f"accuracy {start} {draw}"] = accuracies
                curve |= {f"{name} {start} {draw}": series for name, series in taken.items()}
            if any(name.startswith(f"accuracy {start} ") for name in curve):
                chosen[f"lr {start}"] = found if len(found) > 1 else found[0]
        at_grid_boundary = any(lr in (min(lrs), max(lrs)) for found in chosen.values() for lr in np.atleast_1d(found))
        feature_types = tuple({model.feature_type: None for each in models.values() for model in each})
        return Fit(
            models,
            feature_types,
            chosen,
            {name: list(lrs) for name in chosen},
            at_grid_boundary,
            curve,
            chosen_on="train",
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[Starts], test: TestImages) -> list[Prediction]:
        predictions = []
        for start, models in fit.state.items():
            labels = torch.stack([logits_of(model, backbone, test).argmax(1) for model in models])  # (R, N)
            predictions.append(Prediction(start, labels if len(labels) > 1 else labels[0]))
        return predictions


def chosen_by_folds(
    recipes: Sequence[Recipe], backbone: FeatureExtractor, some: Labelled, start: str, folds: int, seed: int
) -> tuple[Recipe, list[float]]:
    """The recipe with the highest accuracy on held-out folds of the labelled images, and the accuracy with each.

    Of equals, that with the lower loss; the first recipe where no class has a second image to hold out.

    Raises:
        UserError: Every recipe diverges.
    """
    own = some.train().labels
    fold = folds_of(own, folds, seed)
    if len(recipes) == 1 or fold.max() < 0:
        return recipes[0], []
    scores = []
    for recipe in recipes:
        right, loss = 0, 0.0
        try:
            for held_out in np.unique(fold[fold >= 0]):
                model, _ = trained(recipe, backbone, some.train(fold != held_out), some.classes, start)
                logits = logits_of(model, backbone, some.held_out(fold == held_out))
                labels = torch.as_tensor(own[fold == held_out])
                right += int((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        except Diverged:
            right, loss = -1, float("inf")
        scores.append((right, -loss))
    best = max(range(len(recipes)), key=lambda at: scores[at])
    if scores[best][0] < 0:
        raise UserError(f"every rate diverged on {len(some.rows)} labels: give smaller ones than {recipes[best].lr}")
    return recipes[best], [max(right, 0) / int((fold >= 0).sum()) for right, _ in scores]


def trained(
    recipe: Recipe, backbone: FeatureExtractor, train: TrainSplit, classes: int, start: str
) -> tuple[FineTuneModel, dict[str, list[float]]]:
    """A copy of the backbone after training, and how that went; from the `encoder`, or from the first layer of its
    projection head too (`head1`).
    """
    first = backbone.trainable_head() if start == "head1" else None
    model = FineTuneModel(backbone.trainable(), classes, "avg", recipe.drop_path, recipe.seed, first)
    what = f"fine-tuning from the {start} on {len(train)} labels, lr {recipe.lr:g}"
    return model, tune(model, Batches(train, recipe, classes, backbone), recipe, what=what)


def crops_alone(epochs: int, batch_size: int, precision: str, seed: int) -> Recipe:
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


def is_resnet(backbone: FeatureExtractor) -> bool:
    return not isinstance(backbone.network, Pixels) and backbone.network.is_resnet
