"""Fine-tuning: the accuracy of the whole network after it is trained on all labels.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (https://arxiv.org/abs/2111.06377), as its code
has it (https://github.com/facebookresearch/mae, FINETUNE.md, ViT-B): AdamW, layer-wise rates, stochastic depth, mixup,
cutmix, RandAugment, erasing, label smoothing; the mean patch through a fresh norm into a linear head. The recipe moves
results as much as the method does, so it is the same for all methods, with one declared grid to choose from.

Ours, and why:
- Every combination of the grid is trained for `search_epochs` and judged on the validation split, never on test images;
  what is chosen is then trained once in full. The last epoch counts.
- The validation images are not trained on afterwards either, so that the stored curve says how images do that were not.
- Batch norm of ResNets learns as in training, with the statistics of each batch; running ones are used afterwards.
- Each of several processes (torchrun) does the whole work by itself.

Shapes: N images, K classes.
"""

from dataclasses import replace
from itertools import product
from typing import Annotated, ClassVar, Literal, final

from ssl_bench.config.constraints import (
    FineTunePrecision,
    Fraction,
    NonEmpty,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    RandAugment,
    Rates,
    Seed,
    UnitInterval,
)
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe, refused_pooling
from ssl_bench.finetuning.training import Diverged, accuracy, logits_of, mean_loss, tune


@final
class Finetune(Evaluation[FineTuneModel]):
    """All of the network learns, faster towards the head, from augmented images.

    Args:
        epochs: Passes over the training images; MAE has 100 for ViT-B, 50 for larger ones.
        warmup_epochs: Of them, with a growing rate; in a shorter search proportionally fewer.
        search_epochs: Passes of each combination of the grid; `epochs` when not given.
        batch_size: Images per step.
        lrs: Learning rates to choose from, for 256 images: each is multiplied by the batch size / 256.
        layer_decays: Factors on the rate from block to block, downwards, to choose from.
        drop_paths: Stochastic depths at the last block to choose from; it grows linearly from 0.
        weight_decay: Of AdamW, on matrices and kernels.
        min_lr: Where the cosine ends.
        clip: Largest gradient norm; none when not given.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix, which takes turns with mixup; 0 for none.
        smoothing: Of labels.
        randaugment: timm's description; none when null.
        erase: Chance that a rectangle becomes noise.
        pooling: avg or cls, of ViTs; the same for all methods.
        precision: auto (bf16-mixed where the hardware has it), bf16-mixed or 32-true.
        seed: Of all that is random.
    """

    trains: ClassVar[bool] = True

    def __init__(
        self,
        epochs: PositiveInt = 100,
        warmup_epochs: NonNegativeFloat = 5.0,
        search_epochs: PositiveInt | None = 25,
        batch_size: PositiveInt = 1024,
        lrs: Rates = (5e-4, 1e-3),
        layer_decays: Annotated[tuple[Fraction, ...], NonEmpty()] = (0.65, 0.75),
        drop_paths: Annotated[tuple[ProperFraction, ...], NonEmpty()] = (0.1, 0.2),
        weight_decay: NonNegativeFloat = 0.05,
        min_lr: NonNegativeFloat = 1e-6,
        clip: PositiveFloat | None = None,
        mixup: NonNegativeFloat = 0.8,
        cutmix: NonNegativeFloat = 1.0,
        smoothing: ProperFraction = 0.1,
        randaugment: RandAugment | None = "rand-m9-mstd0.5-inc1",
        erase: UnitInterval = 0.25,
        pooling: Literal["avg", "cls"] = "avg",
        precision: FineTunePrecision = "auto",
        seed: Seed = 0,
    ) -> None:
        if not lrs or not layer_decays or not drop_paths:
            raise ValueError("lrs, layer_decays and drop_paths need at least one value each")
        if search_epochs is not None and search_epochs < 1:
            raise ValueError(f"search_epochs {search_epochs} must be at least 1")
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.search_epochs = search_epochs
        self.batch_size = batch_size
        self.lrs = lrs
        self.layer_decays = layer_decays
        self.drop_paths = drop_paths
        self.weight_decay = weight_decay
        self.min_lr = min_lr
        self.clip = clip
        self.mixup = mixup
        self.cutmix = cutmix
        self.smoothing = smoothing
        self.randaugment = randaugment
        self.erase = erase
        self.pooling: Literal["avg", "cls"] = pooling
        self.precision = precision
        self.seed = seed
        self._recipes()

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        return super().refusal(backbone) or refused_pooling(backbone, self.pooling)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[FineTuneModel]:
        recipes = self._recipes()
        if len(recipes) == 1:
            model, curve = self._trained(recipes[0], backbone, train, validation)
            return Fit(model, (model.feature_type,), curve=curve)
        if len(validation) == 0:
            raise UserError("the validation split, on which finetune chooses, is empty: raise data.val_fraction")
        short = min(self.search_epochs or self.epochs, self.epochs)
        found: list[tuple[tuple[float, float], Recipe, FineTuneModel, dict[str, list[float]]]] = []
        tried: dict[str, list[float]] = {
            f"{name} tried": [] for name in ("lr", "layer_decay", "drop_path", "validation accuracy")
        }
        for recipe in recipes:
            brief = replace(recipe, epochs=short, warmup_epochs=recipe.warmup_epochs * short / self.epochs)
            try:
                model, curve = self._trained(brief, backbone, train, validation)
            except Diverged:
                continue
            logits = logits_of(model, backbone, validation)
            rank = -accuracy(logits, validation), mean_loss(logits, validation)
            point = recipe.lr, recipe.layer_decay, recipe.drop_path, -rank[0]
            for series, value in zip(tried.values(), point, strict=True):
                series.append(value)
            found = sorted([*found, (rank, recipe, model, curve)], key=lambda run: run[0])[:1]
        if not found:
            raise UserError(f"every rate of finetune diverged: give smaller lrs than {min(self.lrs)}")
        _, best, model, curve = found[0]
        if short < self.epochs:
            model, curve = self._trained(best, backbone, train, validation)
        grid = {"lr": self.lrs, "layer_decay": self.layer_decays, "drop_path": self.drop_paths}
        chosen = {name: getattr(best, name) for name in grid}
        return Fit(
            model,
            (model.feature_type,),
            chosen,
            {name: list(values) for name, values in grid.items()},
            at_grid_boundary=any(len(v) > 1 and chosen[name] in (min(v), max(v)) for name, v in grid.items()),
            curve=curve | tried,
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[FineTuneModel], test: TestImages) -> list[Prediction]:
        return [Prediction(fit.state.pooling, logits_of(fit.state, backbone, test).argmax(1))]

    def _recipes(self) -> list[Recipe]:
        """One for each combination of the grid."""
        common = Recipe(
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            min_lr=self.min_lr,
            clip=self.clip,
            mixup=self.mixup,
            cutmix=self.cutmix,
            smoothing=self.smoothing,
            randaugment=self.randaugment,
            erase=self.erase,
            precision=self.precision,
            seed=self.seed,
        )
        grid = product(self.lrs, self.layer_decays, self.drop_paths)
        return [replace(common, lr=lr, layer_decay=decay, drop_path=path) for lr, decay, path in grid]

    def _trained(
        self, recipe: Recipe, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit
    ) -> tuple[FineTuneModel, dict[str, list[float]]]:
        """A copy of the backbone after training, and how it went."""
        classes = int(train.labels.max()) + 1
        model = FineTuneModel(backbone.trainable(), classes, self.pooling, recipe.drop_path, recipe.seed)
        what = f"fine-tuning, lr {recipe.lr:g}, layer decay {recipe.layer_decay:g}, drop path {recipe.drop_path:g}"
        watched = validation if len(validation) > 0 else None
        return model, tune(model, Batches(train, recipe, classes, backbone), recipe, watched, what=what)
