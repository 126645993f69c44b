"""Few-shot: ridge regression on frozen features of 1, 5, 10 or 25 labelled images per class.

`fewshot_lsr` of big_vision (https://github.com/google-research/big_vision), with which Zhai et al., "Scaling Vision
Transformers", CVPR 2022 (https://arxiv.org/abs/2106.04560) watch pretraining. It is solved, not trained: features
standardised by those few images, a constant feature of 100, whose weight is the bias and is hardly penalised, targets
-1 and 1 for each class against all others, and a penalty of 2^10 fixed beforehand. Nothing is chosen; 10 images per
class were made the primary before any run.

Ours, and why:
- The labelled images are drawn anew for each seed from train and validation together, since nothing is selected.
- They are nested: the images of 5 per class are among those of 10, so more shots differ by what was added alone.
- A class with fewer images than shots gives all it has; it is then that much rarer, and nothing is weighted for it.

Shapes: n labelled images, D features, K classes, R draws.
"""

from typing import Annotated, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import NonEmpty, PositiveFloat, PositiveInt, Seed
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.label_subsets import concatenated_labels, rank_within_class, subset_features
from ssl_bench.evaluation.solvers.affine_classifier import AffineClassifier, predicted_classes
from ssl_bench.runtime.seeds import derive

CONSTANT = 100.0  # the feature whose weight is the bias


@final
class Fewshot(Evaluation[dict[int, list[AffineClassifier]]]):
    """Ridge regression from a few labelled images per class, several draws of them.

    Args:
        shots: Labelled images per class; of a class with fewer, all.
        primary_shots: Those whose accuracy is the protocol's.
        penalty: Of the ridge regression.
        draws: Of labelled images; the accuracy is the mean.
        seed: Of the draws.
    """

    def __init__(
        self,
        shots: Annotated[tuple[PositiveInt, ...], NonEmpty()] = (1, 5, 10, 25),
        primary_shots: PositiveInt = 10,
        penalty: PositiveFloat = 1024.0,
        draws: PositiveInt = 3,
        seed: Seed = 0,
    ) -> None:
        if primary_shots not in shots:
            raise ValueError(f"primary_shots {primary_shots} is not among shots {tuple(shots)}: add it")
        if min(shots) < 1 or len(set(shots)) < len(shots) or draws < 1 or not penalty > 0:
            raise ValueError("shots (each once) and draws must be at least 1, the penalty above 0")
        self.shots = shots
        self.primary_shots = primary_shots
        self.penalty = penalty
        self.draws = draws
        self.seed = seed

    def fit(
        self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit
    ) -> Fit[dict[int, list[AffineClassifier]]]:
        splits, feature_type = (train, validation), backbone.primary_feature_type
        labels = concatenated_labels(splits)
        heads: dict[int, list[AffineClassifier]] = {shots: [] for shots in self.shots}
        for draw in range(self.draws):
            ranks = rank_within_class(labels, derive(self.seed, draw))
            for shots, solved in heads.items():
                rows = np.flatnonzero(ranks < shots)
                features = subset_features(backbone, splits, feature_type, rows).double()  # (n, D)
                own = torch.as_tensor(labels[rows]).to(features.device)
                solved.append(ridge(features, own, int(labels.max()) + 1, self.penalty))
        return Fit(heads, features=(feature_type,))

    def predict(
        self, backbone: FeatureExtractor, fit: Fit[dict[int, list[AffineClassifier]]], test: TestImages
    ) -> list[Prediction]:
        ordered = sorted(self.shots, key=lambda shots: shots != self.primary_shots)
        feature_type = backbone.primary_feature_type
        return [
            Prediction(f"{shots}-shot", predicted_classes(fit.state[shots], backbone, feature_type, test))
            for shots in ordered
        ]


def ridge(features: Tensor, labels: Tensor, classes: int, penalty: float) -> AffineClassifier:
    """The weights that least squares with a penalty on their squares gives, of (n, D) features and (n,) labels.

    By the eigenvalues of X^T X, or of X X^T where there are fewer images than features; X has the constant feature too.
    """
    mean, deviation = features.mean(0), features.std(0, unbiased=False) + 1e-5
    x = F.pad((features - mean) / deviation, (0, 1), value=CONSTANT)  # (n, D + 1)
    y = 2.0 * F.one_hot(labels, classes).to(x) - 1  # (n, K)
    if len(x) >= x.shape[1]:
        values, vectors = torch.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ y)
    else:
        values, vectors = torch.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ y
    solution = left @ (right / (values + penalty)[:, None])  # (D + 1, K)
    return AffineClassifier.of_standardised(solution[:-1].T, CONSTANT * solution[-1], mean, deviation)
