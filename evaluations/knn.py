"""k-NN: an image is of the class that its nearest training images vote for.

The protocol of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018
(https://arxiv.org/abs/1805.01978) as DINO has it (https://github.com/facebookresearch/dino): cosine similarity s, the k
nearest, each vote weighted exp(s / T). Nothing is learned and nothing is chosen, k = 20 was fixed beforehand, so the
bank is every training image, the validation part included.

The order of neighbours depends on the features' scale and on the final norm (MAE's accuracy halves with it), so the
same votes are also counted on the features before that norm, and on features standardised over the bank. Without any
normalisation (`-none`), the k nearest by Euclidean distance have a vote each.

Ours: similarities are float32, votes float64, and of two equally near images the one first in the bank is the nearer.
They are found without ranking the whole bank (`ssl_bench/evaluation/solvers/knn_search.py`).

Shapes: Q queries, N images in the bank, D features, K classes, k neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from ssl_bench.config.constraints import NonEmpty, PositiveFloat, PositiveInt
from ssl_bench.data.splits import Split, TestImages, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.knn_search import nearest, neighbours

QUERIES = 512  # at a time
EUCLIDEAN = "-none"  # suffix of the variants whose features are not normalised
BANK_VALUES = 40 * 2**20  # of the bank's features at a time: 160 MiB


@dataclass(frozen=True)
class Space:
    """Where similarities are taken: a feature type, standardised first where mean and deviation (D,) are given."""

    suffix: str
    feature_type: str
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def rows(self, backbone: FeatureExtractor, splits: Sequence[Split], count: int) -> Iterator[Tensor]:
        """(<= count, D) vectors at a time, of length 1 but for `-none`."""
        for split in splits:
            for at in range(0, len(split), count):
                features = backbone.features(split, self.feature_type, slice(at, at + count))
                if self.mean is not None and self.deviation is not None:
                    features.sub_(self.mean).div_(self.deviation)
                if self.suffix != EUCLIDEAN:
                    features.div_(features.norm(dim=1, keepdim=True).clamp(min=1e-12))
                yield features
                del features  # before the next are there


@dataclass(frozen=True)
class Reference:
    """The bank: which images, their (N,) classes, and the spaces to search, the primary's first."""

    splits: tuple[TrainSplit, ValidationSplit]
    labels: Tensor
    spaces: list[Space]


@final
class Knn(Evaluation[Reference]):
    """Weighted k-NN on cosine similarity.

    Args:
        k: Numbers of neighbours to report.
        primary_k: The one whose accuracy is the protocol's.
        temperature: T of the weights exp(s / T).
    """

    def __init__(
        self,
        k: Annotated[tuple[PositiveInt, ...], NonEmpty()] = (1, 5, 10, 20, 50, 100, 200),
        primary_k: PositiveInt = 20,
        temperature: PositiveFloat = 0.07,
    ) -> None:
        if primary_k not in k:
            raise ValueError(f"primary_k {primary_k} is not among k {tuple(k)}: add it")
        if min(k) < 1 or not temperature > 0:
            raise ValueError(f"every k and the temperature must be above 0, not {tuple(k)} and {temperature}")
        self.k = k
        self.primary_k = primary_k
        self.temperature = temperature

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Reference]:
        splits = train, validation
        feature_type = backbone.primary_feature_type
        mean, variance = moments(backbone, splits, feature_type)
        variance[variance <= 1e-12 * variance.max()] = torch.inf  # a feature that is constant says nothing
        spaces = [Space("", feature_type), Space("-standardised", feature_type, mean.float(), variance.sqrt().float())]
        if f"{feature_type}_raw" in backbone.feature_types:
            spaces.append(Space("-raw", f"{feature_type}_raw"))
        spaces.append(Space(EUCLIDEAN, feature_type))
        labels = torch.cat([torch.as_tensor(split.labels) for split in splits]).to(backbone.device)
        return Fit(Reference(splits, labels, spaces), features=tuple({space.feature_type: None for space in spaces}))

    def predict(self, backbone: FeatureExtractor, fit: Fit[Reference], test: TestImages) -> list[Prediction]:
        bank, predictions = fit.state, []
        classes = int(bank.labels.max()) + 1
        for space in bank.spaces:
            dim = backbone.features(test, space.feature_type, slice(0, 1)).shape[1]
            reference = space.rows(backbone, bank.splits, max(1, BANK_VALUES // dim))
            queries = lambda space=space: space.rows(backbone, [test], QUERIES)  # noqa: E731
            if space.suffix == EUCLIDEAN:
                similarity, row = nearest(queries, reference, max(self.k))
                similarity = torch.zeros_like(similarity)  # equal votes
            else:
                similarity, row = neighbours(queries, reference, max(self.k))  # (Q, k) each
                fit.diagnostics.update(closeness(similarity, self.primary_k, space.suffix))
            for k, predicted in votes(similarity, bank.labels[row], classes, self.k, self.temperature).items():
                predictions.append(Prediction(f"k{k}{space.suffix}", predicted.cpu()))
        return sorted(predictions, key=lambda p: p.variant != f"k{self.primary_k}")


def closeness(similarity: Tensor, k: int, suffix: str) -> dict[str, float]:
    """Ends of (Q, most) sorted cosines, and how many test images have a tie that decides which neighbours vote."""
    found = {f"largest cosine{suffix}": similarity[:, 0].max(), f"smallest cosine{suffix}": similarity[:, -1].min()}
    if similarity.shape[1] > k:
        found[f"tied at k{k}{suffix}"] = (similarity[:, k - 1] == similarity[:, k]).double().mean()
    return {name: float(value) for name, value in found.items()}


def votes(similarity: Tensor, labels: Tensor, classes: int, ks: Sequence[int], temperature: float) -> dict[int, Tensor]:
    """k -> (Q,) class with the largest sum of exp(s / T) among the first k of (Q, most) sorted neighbours."""
    similarity = similarity.double()
    exponent = (similarity - similarity[:, :1]) / temperature  # 0 for the nearest: the order of classes stays
    score = exponent.new_zeros(len(labels), classes)
    weight, predictions, done = exponent.exp(), {}, 0
    for k in sorted(ks):
        new = slice(done, k)
        score.scatter_add_(1, labels[:, new], weight[:, new])  # (Q, K)
        predictions[k], done = score.argmax(1), k
    return {k: predictions[k] for k in ks}
