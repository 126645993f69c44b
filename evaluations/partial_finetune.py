"""Partial fine-tuning: how good a classifier becomes when only the last k blocks may still learn.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 4.3 and figure 9
(https://arxiv.org/abs/2111.06377): from k = 0, a linear probe, to k = L, full fine-tuning. Its code was not published;
the recipe is that of MAE's fine-tuning (FINETUNE.md). k = 0.5 is the MLP of the last block, its norm included.

What the paper leaves open, as it is here:
- At every k > 0 the norm next to the pooling and the head learn, too. Embeddings, tokens and relative positions that
  blocks share are frozen unless k = L. The frozen part is in eval mode and without stochastic depth.
- Layer-wise rates and stochastic depth are those that a block has when all blocks learn.
- k = 0 is the linear probe of MAE (as in `linear`, variant `mae`), not this recipe without blocks.
- Pooling is as the method's authors fine-tune: the mean patch through a fresh norm for MAE, SimMIM, CAE and networks
  that have learned nothing, the class token for all others. The other pooling is one more variant.
- ResNets are tuned from 0 over their last block, last stage and last two stages to all; k counts their residual blocks,
  and batch norms of the frozen part stay in eval mode. In networks that are neither, k counts stages
  (`ssl_bench.models.stages`). In Swins the merging of patches belongs to the block before it.
- A k > 0 that diverges is left out, and said so in the curve; the one that is the number must not.
- The number of the protocol is that of k = 4, or of the most blocks below it that are not all of them, fixed
  beforehand: there the paper's methods differ most, and it is neither the probe's number nor fine-tuning's.

Ours: the frozen part runs once for all k, on the same augmented and mixed batches; the curve comes with the area under
accuracy over log2(1 + numbers that learn), and with k*, the fewest blocks that come within half a point of all of them.
Both are taken on the validation split, as is the choice of epochs where several are asked for.

Shapes: N images, B of a batch, D features, K classes, L blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import numpy as np

from ssl_bench.config.constraints import (
    FineTunePrecision,
    Fraction,
    NonEmpty,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    RandAugment,
    Range,
    Seed,
    UnitInterval,
)
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.probe_heads import Head, Norm
from ssl_bench.evaluations.linear import Linear
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe, refused_pooling
from ssl_bench.finetuning.shared_trunk import Top, exists, logits_of_all, tune_together, usual_depths
from ssl_bench.finetuning.training import VALIDATION, Diverged
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import depth_of
from ssl_bench.runtime.precision import full_precision

Pooling = Literal["avg", "cls"]
PRIMARY_DEPTH = 4  # blocks
MEAN_POOLED = ("cae", "mae", "simmim", "random")  # methods; the others have learned a class token
NEAR = 0.005  # of full fine-tuning's accuracy: half a point


@dataclass(frozen=True)
class Tuning:
    """What was learned: variant -> top, the primary first, and the head of k = 0 if that is among the depths."""

    tops: dict[str, Top]
    probe: Head | None


@final
class PartialFinetune(Evaluation[Tuning]):
    """Fine-tuning of the last k blocks, for several k at once.

    Args:
        depths: Each k: 0, 0.5, whole numbers, and .inf for all blocks; those that the network has not are left out.
            When not given, 0, 0.5, 1, 2, 4, 6, 12, 18, 24 and all; a ResNet's last block, last stages and all.
        epochs: Passes over the training images; of several, each k's is chosen on the validation split.
        warmup_epochs: Of them, in which the learning rate rises from 0.
        batch_size: Images per step, at most.
        lr: For 256 images.
        layer_decay: Factor on the learning rate per block, from the head down.
        drop_path: Stochastic depth at the last block.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        randaugment: timm's description of RandAugment; None for none.
        erase: Chance that a rectangle of an image becomes noise.
        pooling: avg: the mean patch; cls: the class token; auto: as the method's authors do. Of ViTs.
        other_pooling: Tune the primary's k with the other pooling, too.
        precision: auto (bf16-mixed where the hardware has it), bf16-mixed or 32-true.
        seed: Of all that is random.
    """

    trains: ClassVar[bool] = True

    def __init__(
        self,
        depths: Annotated[tuple[Annotated[float, Range(min=0, infinite=True)], ...], NonEmpty()] | None = None,
        epochs: Annotated[tuple[PositiveInt, ...], NonEmpty()] = (50,),
        warmup_epochs: NonNegativeFloat = 5.0,
        batch_size: PositiveInt = 1024,
        lr: PositiveFloat = 5e-4,
        layer_decay: Fraction = 0.65,
        drop_path: ProperFraction = 0.1,
        mixup: NonNegativeFloat = 0.8,
        cutmix: NonNegativeFloat = 1.0,
        randaugment: RandAugment | None = "rand-m9-mstd0.5-inc1",
        erase: UnitInterval = 0.25,
        pooling: Literal["auto", "avg", "cls"] = "auto",
        other_pooling: bool = True,
        precision: FineTunePrecision = "auto",
        seed: Seed = 0,
    ) -> None:
        if not epochs or (depths is not None and not any(depth > 0 for depth in depths)):
            raise ValueError(f"epochs {epochs} and the depths above 0 of {depths} must be at least one")
        self.depths = depths
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.mixup = mixup
        self.cutmix = cutmix
        self.randaugment = randaugment
        self.erase = erase
        self.pooling: Literal["auto", "avg", "cls"] = pooling
        self.other_pooling = other_pooling
        self.precision = precision
        self.seed = seed
        self._recipes = [self._recipe(count) for count in sorted(set(epochs))]

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        return super().refusal(backbone) or refused_pooling(backbone, self.pooling)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Tuning]:
        if len(validation) == 0:
            raise UserError("the validation split, on which depths are compared, is empty: raise data.val_fraction")
        depths = self._depths(backbone)
        classes = 1 + int(max(train.labels.max(), validation.labels.max()))
        primary, wanted = self._wanted(backbone, depths)
        candidates = {
            name: [self._top(backbone, classes, depth, pooling, recipe) for recipe in self._recipes]
            for name, (depth, pooling) in wanted.items()
        }
        every = [top for tops in candidates.values() for top in tops]
        tune_together(every, Batches(train, self._recipes[-1], classes, backbone), validation, "partial fine-tuning")
        # Of equals the one with fewer epochs: recipes are in the order of their epochs.
        whole = {name: [top for top in some if top.diverged is None] for name, some in candidates.items()}
        tops = {name: max(some, key=lambda top: top.curve[VALIDATION][-1]) for name, some in whole.items() if some}
        if primary not in tops:
            raise Diverged(f"partial fine-tuning of {primary}, its number, diverged: give a smaller lr than {self.lr}")
        probe, points = None, []
        if depths[0] == 0:
            probe, point = probed(backbone, train, validation, self.seed)
            points.append(point)
        own = [top for name, top in tops.items() if wanted[name][1] == self._pooling(backbone)]
        points += [(top.trainable, top.curve[VALIDATION][-1]) for top in own]
        curve = summary([depth for depth in depths if depth == 0] + [top.depth for top in own], points, own[-1].whole)
        curve |= {
            f"{name} diverged by epoch": [float(some[-1].diverged or 0)]
            for name, some in candidates.items()
            if name not in tops
        }
        curve |= {f"{name} {series}": values for name, top in tops.items() for series, values in top.curve.items()}
        chosen, grid = {}, {}
        if len(self._recipes) > 1:
            chosen = {f"epochs {name}": top.recipe.epochs for name, top in tops.items()}
            grid = {name: [recipe.epochs for recipe in self._recipes] for name in chosen}
        return Fit(
            Tuning({primary: tops[primary]} | tops, probe),
            features=(probe.feature_type,) if probe is not None else (),
            chosen=chosen,
            grid=grid,
            at_grid_boundary=any(chosen[name] in (values[0], values[-1]) for name, values in grid.items()),
            curve=curve,
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[Tuning], test: TestImages) -> list[Prediction]:
        state = fit.state
        logits = logits_of_all(list(state.tops.values()), backbone, test)
        found = [Prediction(name, some.argmax(1)) for name, some in zip(state.tops, logits, strict=True)]
        if state.probe is not None:
            with full_precision():
                below = state.probe.logits(backbone.features(test, state.probe.feature_type))  # (N, K)
            found.append(Prediction("k0", below.argmax(1).cpu()))
        return found

    def _recipe(self, epochs: int) -> Recipe:
        return Recipe(
            epochs=epochs,
            warmup_epochs=self.warmup_epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            layer_decay=self.layer_decay,
            drop_path=self.drop_path,
            mixup=self.mixup,
            cutmix=self.cutmix,
            randaugment=self.randaugment,
            erase=self.erase,
            precision=self.precision,
            seed=self.seed,
        )

    def _depths(self, backbone: FeatureExtractor) -> tuple[float, ...]:
        """Rising; those asked for that there are."""
        network = _network(backbone)
        if self.depths is None:
            return usual_depths(network)
        asked = {depth_of(network) if depth == math.inf else depth for depth in self.depths}
        found = tuple(sorted(depth for depth in asked if exists(network, depth)))
        if not any(found):
            raise UserError(f"none of the depths {self.depths} fits {depth_of(network)} blocks: add .inf for all")
        return found

    def _pooling(self, backbone: FeatureExtractor) -> Pooling:
        """That of the depths; a network without a class token has but one."""
        if "cls" not in backbone.feature_types:
            return "avg"
        if self.pooling != "auto":
            return self.pooling
        return "avg" if backbone.identity.get("method", "random") in MEAN_POOLED else "cls"

    def _wanted(
        self, backbone: FeatureExtractor, depths: Sequence[float]
    ) -> tuple[str, dict[str, tuple[float, Pooling]]]:
        """The primary variant, and of each variant that is tuned its depth and pooling."""
        total, own = depth_of(_network(backbone)), self._pooling(backbone)
        names = {depth: "all" if depth == total else f"k{depth:g}" for depth in depths if depth > 0}
        primary = max([depth for depth in names if depth <= PRIMARY_DEPTH and depth < total], default=min(names))
        wanted = {name: (depth, own) for depth, name in names.items()}
        if self.other_pooling and "cls" in backbone.feature_types:
            other: Pooling = "avg" if own == "cls" else "cls"
            wanted[f"{names[primary]}-{other}"] = primary, other
        return names[primary], wanted

    def _top(self, backbone: FeatureExtractor, classes: int, depth: float, pooling: Pooling, recipe: Recipe) -> Top:
        return Top(FineTuneModel(backbone.trainable(), classes, pooling, recipe.drop_path, recipe.seed), depth, recipe)


def summary(depths: Sequence[float], points: Sequence[tuple[int, float]], complete: bool) -> dict[str, list[float]]:
    """Series over the depths, their area, and k* where the last depth is all blocks.

    Args:
        depths: Rising.
        points: At each, how many numbers learn and the accuracy on the validation split.
        complete: Whether the last is all blocks.
    """
    counts, accuracies = [count for count, _ in points], [accuracy for _, accuracy in points]
    curve = {"k": list(depths), "trainable": [float(count) for count in counts], VALIDATION: accuracies}
    curve["area"] = [area(counts, accuracies)]
    if complete:
        curve["k*"] = [fewest(depths, accuracies)]
    return curve


def area(counts: Sequence[int], accuracies: Sequence[float]) -> float:
    """Under accuracy over log2(1 + numbers that learn), by trapezoids."""
    widths = [math.log2(1 + count) for count in counts]
    return float(np.trapezoid(accuracies, widths))


def fewest(depths: Sequence[float], accuracies: Sequence[float]) -> float:
    """The smallest depth whose accuracy is at most half a point below that of the last."""
    near = accuracies[-1] - NEAR - 1e-9  # which whole numbers of images rarely make an exact half point
    return next(depth for depth, accuracy in zip(depths, accuracies, strict=True) if accuracy >= near)


def probed(
    backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit, seed: int
) -> tuple[Head, tuple[int, float]]:
    """The head of k = 0, by MAE's recipe; how many numbers learned, and the accuracy on the validation split.

    Raises:
        Diverged: Its loss is not a number.
    """
    probe = Linear(seeds=1, seed=seed)
    norm = Norm.of(*moments(backbone, [train], backbone.primary_feature_type, probe.crops))
    found = probe.mae(backbone, train, validation, norm)
    if found is None:
        raise Diverged("the linear probe of k = 0 diverged: leave 0 out of --partial_finetune.depths")
    return found.head, (found.head.weight.numel() + found.head.bias.numel(), found.curve[-1])


def _network(backbone: FeatureExtractor) -> Backbone:
    assert isinstance(backbone.network, Backbone), "see refusal"
    return backbone.network
