"""Out-of-distribution detection: whether images of other data sets can be told from the test images by their features.

Three scores, each larger the more an image is taken for one of the data set:
- minus the distance to the k-th nearest training image, features of length 1, k = 50 (Sun et al., "Out-of-Distribution
  Detection with Deep Nearest Neighbors", ICML 2022, https://arxiv.org/abs/2204.06507); the primary;
- the energy, log sum exp of the logits (Liu et al., NeurIPS 2020, https://arxiv.org/abs/2010.03759);
- the largest softmax probability (Hendrycks & Gimpel, ICLR 2017, https://arxiv.org/abs/1610.02136).

The logits are those of `logistic` on the primary features, C chosen on the validation split, learned from the training
images alone. Nothing sees an image of the other sets before they are scored. AUROC is the probability that a test image
has a higher score than one of the other set, ties counting half; over several sets, their mean. FPR95, the part of the
other images that pass where 95 % of the test images do, is among the diagnostics.

The interval is over test images: the other sets are taken as they are.

Shapes: N test images, M images of another set, D features, K classes.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import NonEmpty, PathText, PositiveInt
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.splits import Split, TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Scored
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.affine_classifier import AffineClassifier
from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.evaluations.logistic import Logistic
from ssl_bench.statistics.bootstrap import Floats, Statistic, mean_of

PASSED = 0.95  # of the test images at the threshold of FPR95


@final
@dataclass(frozen=True)
class Detected(Scored):
    """Scores of the test images and of others.

    Args:
        own: Name of the score -> (N,) of the test images.
        others: Data set -> name of the score -> (M,).
    """

    own: dict[str, Floats]
    others: dict[str, dict[str, Floats]]

    def scores(self, test: TestSplit) -> dict[str, Statistic]:
        found = {}
        for name, own in self.own.items():
            found[f"AUROC {name}"] = mean_of(
                np.mean([above(own, other[name]) for other in self.others.values()], axis=0)
            )
        for title, other in self.others.items() if len(self.others) > 1 else ():
            found |= {f"AUROC {name} {title}": mean_of(above(own, other[name])) for name, own in self.own.items()}
        return found

    def diagnostics(self, test: TestSplit) -> dict[str, float]:
        return {
            f"FPR95 {name} {title}": false_positives(own, other[name])
            for title, other in self.others.items()
            for name, own in self.own.items()
        }


@dataclass(frozen=True)
class Detector:
    """What test images are held against: the classifier, and the training images with their features."""

    classifier: AffineClassifier
    train: TrainSplit


@final
class Ood(Evaluation[Detector]):
    """AUROC of telling test images from those of other data sets, by k-NN distance, energy and largest softmax.

    Args:
        against: Other data sets, whose test images are taken; one that is the data set itself is left out.
        root: Folder of their files; that of downloads when not given.
        k: Of the nearest training images, the one whose distance counts; the farthest if there are fewer.
    """

    metric: ClassVar[str] = "AUROC"

    def __init__(
        self,
        against: Annotated[tuple[str, ...], NonEmpty()] = ("textures", "digits-canvas"),
        root: PathText | None = None,
        k: PositiveInt = 50,
    ) -> None:
        self.against = against
        self.root = root
        self.k = k

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Detector]:
        if len(validation) == 0:
            raise UserError("the validation split, on which ood chooses, is empty: raise data.val_fraction")
        feature_type = backbone.primary_feature_type
        logistic = Logistic()
        best = logistic.chosen(backbone, train, validation, feature_type)
        at_grid_boundary, boundary_tied = best.boundary(logistic.cs)
        return Fit(
            Detector(best.classifier, train),
            features=(feature_type,),
            chosen={"C": best.c},
            grid={"C": list(logistic.cs)},
            at_grid_boundary=at_grid_boundary,
            boundary_tied=boundary_tied,
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[Detector], test: TestImages) -> Detected:
        others = {}
        for name in self.against:
            images = self._images(name)
            if images.pool.digest() != test.pool.digest():
                others[name] = self._scores(backbone, fit.state, images)
        if not others:
            raise UserError(f"--ood.against {','.join(self.against)} is the data set itself: name another")
        return Detected(self._scores(backbone, fit.state, test), others)

    def _images(self, name: str) -> TestImages:
        data = load_dataset(DataOptions(name=name, root=self.root))
        if data.test is None:
            raise UserError(f"--ood.against {name}: it has no test images: {data.remedy or 'name another set'}")
        return data.test.unlabelled()

    def _scores(self, backbone: FeatureExtractor, detector: Detector, images: Split) -> dict[str, Floats]:
        """Name of the score -> (N,)."""
        feature_type = backbone.primary_feature_type
        features = backbone.features(images, feature_type)
        bank = F.normalize(backbone.features(detector.train, feature_type), dim=1)
        similarity, _ = neighbours(lambda: [F.normalize(features, dim=1)], [bank], self.k)  # (N, k)
        logits = detector.classifier.logits(features)
        found: dict[str, Tensor] = {
            "knn": similarity[:, -1],  # of vectors of length 1 the distance falls as the cosine rises
            "energy": logits.logsumexp(1),
            "softmax": logits.softmax(1).amax(1),
        }
        return {name: values.double().cpu().numpy() for name, values in found.items()}


def above(own: Floats, other: Floats) -> Floats:
    """(N,) part of the other set's (M,) scores that each of the (N,) own ones is above, ties counting half."""
    ordered = np.sort(other)
    below, equal = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
    return np.asarray((below + equal) / (2 * len(other)))


def false_positives(own: Floats, other: Floats) -> float:
    """Part of the other scores at or above the threshold that PASSED of the own ones reach."""
    threshold = np.sort(own)[len(own) - int(np.ceil(PASSED * len(own)))]
    return float((other >= threshold).mean())
