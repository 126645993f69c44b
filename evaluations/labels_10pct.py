"""Labels 10 %: logistic regression on frozen features of 10 % of the labels.

The protocol of DINO (https://arxiv.org/abs/2104.14294) and iBOT for the subsets of SimCLR
(https://arxiv.org/abs/2002.05709): the backbone stays as it is. ImageNet's 10 % is the published list, 10percent.txt of
https://github.com/google-research/simclr/tree/master/imagenet_subsets; its md5 is checked.

Ours, and why:
- C is chosen by stratified cross-validation inside the subset, and the classifier learned again from all of it: no
  other label is seen, not those of the validation split either. Where each class has one image, C is 0.1.
- Features are standardised over all training images, which takes no labels, so that one grid suits all networks.
- Of other data the subset is drawn, from train and validation together: 10 % of each class, rounded, at least one
  image.
  Three draws, whose mean is reported; each includes the 1 % of the same draw.

Shapes: see ssl_bench/few_labels.py, which does the work for 1 % and 10 %.
"""

from typing import Annotated, final

from ssl_bench.config.constraints import Ascending, PathText, PositiveInt, Range, Rates, Seed
from ssl_bench.evaluation.few_labels import FewLabels


@final
class Labels10pct(FewLabels):
    """Logistic regression from 10 % of the labels; its penalty is chosen by cross-validation inside them.

    Args:
        subset: File that names the labelled images, one in each line; for ImageNet 10percent.txt as published. They are
            drawn when not given.
        draws: Of the labelled images, where they are drawn; the accuracy is the mean.
        cs: Inverse penalties C to choose from, rising.
        folds: Of the cross-validation.
        seed: Of the draws and folds.
    """

    fraction = 0.1
    md5 = "b0d861160cc9531910d069ff547fc1b6"

    def __init__(
        self,
        subset: PathText | None = None,
        draws: PositiveInt = 3,
        cs: Annotated[Rates, Ascending()] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0),
        folds: Annotated[int, Range(min=2, max=1000)] = 5,
        seed: Seed = 0,
    ) -> None:
        super().__init__(subset, draws, cs, folds, seed)
