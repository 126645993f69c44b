"""Fine-tune 10 %: what a network can be made to tell apart when all of it learns from 10 % of the labels.

The protocol of SimCLR (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709, B.5), of BYOL (Grill et al., NeurIPS
2020, https://arxiv.org/abs/2006.07733, C.1) and of SimCLRv2 (Chen et al., NeurIPS 2020, https://arxiv.org/abs/2006.10029),
which starts not from the encoder but from the first layer of the projection head (`head1`): that alone moves results at
1 % by ten points, so methods with a head get both variants. ResNets are trained as there: SGD with Nesterov's momentum,
crops and flips alone, no warm-up, no weight decay. For other networks these papers have no recipe: theirs is that of
finetune.

Ours, and why:
- The rate is chosen by stratified cross-validation inside the labelled images, and the network trained again from all
  of them: no other label is seen, not those of the validation split either. Where each class has one image, it is the
  first of the rates.
- The labelled images are those of labels-10pct: ImageNet's published list, md5 checked, or drawn from train and
  validation together, at least one of each class; those of 1 % are among those of 10 %.
- Images are normalised as in pretraining. Batches are of 256, so that small data sets have several per epoch.

Shapes: see ssl_bench/few_labels_finetuning.py, which does the work for 1 % and 10 %.
"""

from typing import Annotated, final

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
from ssl_bench.finetuning.few_labels import FinetuneFewLabels


@final
class Finetune10pct(FinetuneFewLabels):
    """All of the network learns from 10 % of the labels; its rate is chosen by cross-validation inside them.

    Args:
        subset: File that names the labelled images, one in each line; for ImageNet 10percent.txt as published. They are
            drawn when not given.
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

    fraction = 0.1
    md5 = "b0d861160cc9531910d069ff547fc1b6"

    def __init__(
        self,
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
        super().__init__(
            subset=subset,
            draws=draws,
            folds=folds,
            epochs=epochs,
            resnet_epochs=resnet_epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            lrs=lrs,
            resnet_lrs=resnet_lrs,
            layer_decay=layer_decay,
            drop_path=drop_path,
            mixup=mixup,
            cutmix=cutmix,
            smoothing=smoothing,
            randaugment=randaugment,
            erase=erase,
            precision=precision,
            seed=seed,
        )
