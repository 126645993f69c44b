"""Robustness of the linear probe: its accuracy on corrupted test images, ten kinds by five severities.

In the spirit of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (https://arxiv.org/abs/1903.12261); what the corruptions are stands in
`ssl_bench/evaluation/corruptions.py`. The head is the one that `linear` chooses with the same options, trained and
chosen on images as they are. Only predictions see corrupted images: nothing is learned from them and nothing chosen on
them.

Ours, and why:
- The number is the mean accuracy over all kinds and severities. Hendrycks & Dietterich divide each kind's error by
  AlexNet's, which other data and image sizes do not have. `clean` stands beside it: 1 - mean / clean is what is lost.
- The head is applied to float32 features, not to those that `linear` keeps as float16: `clean` may differ from its
  prediction in the odd image.

Shapes: B images, 3 x s x s pixels, K classes.
"""

from dataclasses import replace
from typing import final

from torch import Tensor

from ssl_bench.config.constraints import FeatureType, NonNegativeInt, PositiveInt, Rates, Seed
from ssl_bench.data.splits import TrainSplit, ValidationSplit
from ssl_bench.evaluation.corrupted_test import CorruptedTest
from ssl_bench.evaluation.evaluation import Fit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.probe_heads import Head, side_by_side
from ssl_bench.evaluations.linear import Linear


@final
class Robustness(CorruptedTest[Head]):
    """The linear probe's chosen head on corrupted test images.

    Args:
        iterations: Steps of the probe's grid.
        batch_size: Images per step; all training images if there are fewer.
        lrs: Learning rates to choose from, for 256 images.
        feature_types: Feature types to choose from; all after the final norm when not given.
        views: Random crops of each training image; 0 for the images as they are.
        seeds: Heads of each learning rate, which differ in their first weights.
        seed: Of the first weights and of the order of images; the corruptions are always the same.
    """

    def __init__(
        self,
        iterations: PositiveInt = 12_500,
        batch_size: PositiveInt = 1024,
        lrs: Rates = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        feature_types: tuple[FeatureType, ...] | None = None,
        views: NonNegativeInt = 10,
        seeds: PositiveInt = 3,
        seed: Seed = 0,
    ) -> None:
        self.iterations = iterations
        self.batch_size = batch_size
        self.lrs = lrs
        self.feature_types = feature_types
        self.views = views
        self.seeds = seeds
        self.seed = seed
        self._linear = Linear(iterations, batch_size, lrs, feature_types, views, seeds, epochs=0, seed=seed)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Head]:
        found = self._linear.fit(backbone, train, validation)
        return replace(found, state=found.state["chosen"])  # type: ignore[arg-type, return-value]

    def logits(self, backbone: FeatureExtractor, state: Head, images: Tensor) -> Tensor:
        return state.logits(side_by_side(backbone.embed(images), state.feature_type))
