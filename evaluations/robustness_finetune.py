"""Robustness of the fine-tuned network: its accuracy on corrupted test images, ten kinds by five severities.

In the spirit of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (https://arxiv.org/abs/1903.12261); what the corruptions are stands in
`ssl_bench/evaluation/corruptions.py`. The network is the one that `finetune` trains with the same options, grid and
choice on the validation split included. Only predictions see corrupted images: nothing is learned from them and nothing
chosen on them. Its recipe's augmentation (RandAugment) changes brightness, contrast and colour too, for every method
alike.

Ours, and why:
- The number is the mean accuracy over all kinds and severities, as in `robustness`, with `clean` beside it.
- The network is trained anew. Who has run `finetune` gives what it chose as grids of one value and saves the search.

Shapes: B images, 3 x s x s pixels, K classes.
"""

from typing import Annotated, ClassVar, Literal, final

import torch.distributed as dist
from torch import Tensor

from ssl_bench.config.constraints import (
    FineTunePrecision,
    Fraction,
    NonEmpty,
    NonNegativeFloat,
    PositiveInt,
    ProperFraction,
    RandAugment,
    Rates,
    Seed,
)
from ssl_bench.data.splits import TrainSplit, ValidationSplit
from ssl_bench.evaluation.corrupted_test import CorruptedTest, needs_colours
from ssl_bench.evaluation.evaluation import Fit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluations.finetune import Finetune
from ssl_bench.finetuning.model import FineTuneModel


@final
class RobustnessFinetune(CorruptedTest[FineTuneModel]):
    """A fine-tuned copy of the network on corrupted test images.

    Args:
        epochs: Passes over the training images.
        warmup_epochs: Of them, with a growing rate; in a shorter search proportionally fewer.
        search_epochs: Passes of each combination of the grid; `epochs` when not given.
        batch_size: Images per step.
        lrs: Learning rates to choose from, for 256 images.
        layer_decays: Factors on the rate from block to block, downwards, to choose from.
        drop_paths: Stochastic depths at the last block to choose from.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        randaugment: timm's description; none when null.
        pooling: avg or cls, of ViTs; the same for all methods.
        precision: auto (bf16-mixed where the hardware has it), bf16-mixed or 32-true; of the training.
        seed: Of all that is random in the training; the corruptions are always the same.
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
        mixup: NonNegativeFloat = 0.8,
        cutmix: NonNegativeFloat = 1.0,
        randaugment: RandAugment | None = "rand-m9-mstd0.5-inc1",
        pooling: Literal["avg", "cls"] = "avg",
        precision: FineTunePrecision = "auto",
        seed: Seed = 0,
    ) -> None:
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.search_epochs = search_epochs
        self.batch_size = batch_size
        self.lrs = lrs
        self.layer_decays = layer_decays
        self.drop_paths = drop_paths
        self.mixup = mixup
        self.cutmix = cutmix
        self.randaugment = randaugment
        self.pooling: Literal["avg", "cls"] = pooling
        self.precision = precision
        self.seed = seed
        self._finetune = Finetune(**self.options())

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        return self._finetune.refusal(backbone) or needs_colours(backbone)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[FineTuneModel]:
        found = self._finetune.fit(backbone, train, validation)
        if dist.is_initialized():  # processes share the test images: all with the first one's network, to the last bit
            for tensor in found.state.state_dict().values():
                dist.broadcast(tensor, src=0)
        return found

    def logits(self, backbone: FeatureExtractor, state: FineTuneModel, images: Tensor) -> Tensor:
        logits: Tensor = state.eval()(backbone.normalized(images))
        return logits.float()
