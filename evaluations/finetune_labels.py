"""Fine-tuning on few labels: the accuracy of the network when all of it learns from a fraction of the labels.

The protocol of SimCLR (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709, B.5), of BYOL (Grill et al., NeurIPS
2020, https://arxiv.org/abs/2006.07733, C.1) and of SimCLRv2 (Chen et al., NeurIPS 2020, https://arxiv.org/abs/2006.10029),
which starts not from the encoder but from the first layer of the projection head (`head1`): that alone moves results at
1 % by ten points, so methods with a head get both variants. ResNets are trained as there: SGD with Nesterov's momentum,
crops and flips alone, no warm-up, no weight decay. For other networks these papers have no recipe: theirs is that of
finetune. The presets `finetune-1pct` and `finetune-10pct` are the papers' two fractions.

Ours, and why:
- The rate is chosen by stratified cross-validation inside the labelled images, and the network trained again from all
  of them: no other label is seen, not those of the validation split either. Where each class has one image, it is the
  first of the rates.
- The labelled images are those of `labels` with the same fraction: ImageNet's published list, md5 checked, or drawn
  from train and validation together, at least one of each class; those of 1 % are among those of 10 %.
- Images are normalised as in pretraining. Batches are of 256, so that small data sets have several per epoch.

Shapes: N images of all splits together, n labelled ones, K classes, R draws.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, final

import numpy as np
import torch

from ssl_bench.config.constraints import (
    FineTunePrecision,
    Fraction,
    NonNegativeFloat,
    PathText,
    PositiveInt,
    ProperFraction,
    RandAugment,
    Range,
    Rates,
    Seed,
    UnitInterval,
)
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.label_subsets import concatenated_labels, labelled_subsets
from ssl_bench.finetuning.cross_validation import (
    LabelledSubset,
    choose_recipe,
    crops_only_recipe,
    fine_tune,
)
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.training import logits_of
from ssl_bench.runtime.seeds import derive

Starts = dict[str, list[FineTuneModel]]  # where fine-tuning starts -> the fine-tuned network of each draw


@final
class FinetuneLabels(Evaluation[Starts]):
    """All of the network learns from a fraction of the labels; its rate is chosen by cross-validation inside them.

    Args:
        fraction: Of the labels of each class.
        subset: File that names the labelled images, one in each line; for 1 % and 10 % of ImageNet, 1percent.txt and
            10percent.txt as published. They are drawn when not given.
        draws: Of the labelled images, where they are drawn; the accuracy is the mean.
        folds: Of the cross-validation.
        epochs: Passes over the labelled images; of ViTs and Swins.
        resnet_epochs: The same of ResNets (SimCLR's).
        warmup_epochs: Of `epochs`, with a growing rate.
        batch_size: Images per step.
        lrs: Learning rates of AdamW to choose from, for 256 images.
        resnet_lrs: Learning rates of SGD to choose from, likewise (BYOL's).
        layer_decay: Factor on the rate from block to block, downwards; not in ResNets.
        drop_path: Stochastic depth at the last block; not in ResNets.
        mixup: Alpha of mixup; 0 for none. Not for ResNets, as all that follows.
        cutmix: Alpha of cutmix; 0 for none.
        smoothing: Of labels.
        randaugment: timm's description; none when null.
        erase: Chance that a rectangle becomes noise.
        precision: auto (bf16-mixed where the hardware has it), bf16-mixed or 32-true.
        seed: Of all that is random.
    """

    trains: ClassVar[bool] = True

    def __init__(
        self,
        fraction: Fraction = 0.1,
        subset: PathText | None = None,
        draws: PositiveInt = 1,
        folds: Annotated[int, Range(min=2, max=1000)] = 5,
        epochs: PositiveInt = 100,
        resnet_epochs: PositiveInt = 30,
        warmup_epochs: NonNegativeFloat = 5.0,
        batch_size: PositiveInt = 256,
        lrs: Rates = (5e-4, 1e-3),
        resnet_lrs: Rates = (0.005, 0.01, 0.02, 0.05, 0.1),
        layer_decay: Fraction = 0.75,
        drop_path: ProperFraction = 0.1,
        mixup: NonNegativeFloat = 0.8,
        cutmix: NonNegativeFloat = 1.0,
        smoothing: ProperFraction = 0.1,
        randaugment: RandAugment | None = "rand-m9-mstd0.5-inc1",
        erase: UnitInterval = 0.25,
        precision: FineTunePrecision = "auto",
        seed: Seed = 0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
        if not lrs or not resnet_lrs or min(*lrs, *resnet_lrs) <= 0:
            raise ValueError("lrs and resnet_lrs need at least one value each, all above 0")
        if draws < 1 or folds < 2:
            raise ValueError(f"draws must be at least 1 and folds at least 2, not {draws} and {folds}")
        self.fraction = fraction
        self.subset = subset
        self.draws = draws
        self.folds = folds
        self.epochs = epochs
        self.resnet_epochs = resnet_epochs
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.lrs = lrs
        self.resnet_lrs = resnet_lrs
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.mixup = mixup
        self.cutmix = cutmix
        self.smoothing = smoothing
        self.randaugment = randaugment
        self.erase = erase
        self.precision = precision
        self.seed = seed
        self._recipes(resnet=False), self._recipes(resnet=True)  # refused here if they make no sense

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Starts]:
        assert train.pool is validation.pool, "one pool holds both"
        splits = train, validation
        rows, labels = np.concatenate([split.rows for split in splits]), concatenated_labels(splits)
        seeds = [derive(self.seed, draw) for draw in range(self.draws)]  # the draws of `labels`
        subsets = labelled_subsets(splits, self.fraction, self.subset, seeds)
        recipes = self._recipes(backbone.network.is_resnet)
        lrs = [recipe.lr for recipe in recipes]
        models: Starts = {
            start: [] for start in ("encoder", "head1") if start == "encoder" or backbone.head is not None
        }
        chosen: dict[str, Any] = {}
        curve: dict[str, list[float]] = {}
        for start in models:
            chosen_lrs = []
            for draw, labelled in enumerate(subsets):
                subset = LabelledSubset(train, rows[labelled], int(labels.max()) + 1)
                seed = derive(self.seed, draw, 1)
                recipe, accuracies = choose_recipe(recipes, backbone, subset, start, self.folds, seed)
                model, series = fine_tune(recipe, backbone, subset.train(), subset.classes, start)
                models[start].append(model)
                chosen_lrs.append(recipe.lr)
                if accuracies:
                    curve[f"accuracy {start} {draw}"] = accuracies
                curve |= {f"{name} {start} {draw}": values for name, values in series.items()}
            if any(name.startswith(f"accuracy {start} ") for name in curve):
                chosen[f"lr {start}"] = chosen_lrs if len(chosen_lrs) > 1 else chosen_lrs[0]
        at_grid_boundary = any(lr in (min(lrs), max(lrs)) for each in chosen.values() for lr in np.atleast_1d(each))
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

    def _recipes(self, resnet: bool) -> list[Recipe]:
        """One for each rate."""
        if resnet:
            light = crops_only_recipe(self.resnet_epochs, self.batch_size, self.precision, self.seed)
            return [replace(light, lr=lr) for lr in self.resnet_lrs]
        full = Recipe(
            self.epochs,
            self.warmup_epochs,
            self.batch_size,
            layer_decay=self.layer_decay,
            drop_path=self.drop_path,
            mixup=self.mixup,
            cutmix=self.cutmix,
            smoothing=self.smoothing,
            randaugment=self.randaugment,
            erase=self.erase,
            precision=self.precision,
            seed=self.seed,
        )
        return [replace(full, lr=lr) for lr in self.lrs]
