"""The k-NN protocol as an estimator of scikit-learn.

Shapes: N images to learn from, Q to predict, D features, K classes.
"""

from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.evaluations.knn import votes
from ssl_bench.runtime.devices import own_device

QUERIES = 512  # at a time


@final
class KNN(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Weighted k-NN on cosine similarity, as `ssl-bench evaluate --protocols knn` has it (Wu et al., CVPR 2018).

    The k most similar training images vote, each with weight exp(s / temperature).

    Args:
        k: Neighbours that vote; all, where there are fewer images.
        temperature: Of the weights; infinite for equal ones.
        device: Where similarities are computed: cpu, cuda, auto.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, device: str = "cpu") -> None:
        self.k = k
        self.temperature = temperature
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Remember (N, D) features and their N labels, numbers or text.

        Raises:
            ValueError: They do not fit together, or k or the temperature is not above 0.
        """
        if not (self.k >= 1 and self.temperature > 0):
            raise ValueError(f"k and temperature must be above 0, not {self.k} and {self.temperature}")
        features, labels = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        self.bank_ = _unit(features)
        self.labels_ = np.asarray(numbers, dtype=np.int64)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The (Q,) label of each of (Q, D) features."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float32, reset=False)
        device = own_device(self.device)
        queries = _unit(features).to(device)
        k = min(self.k, len(self.bank_))
        similarity, row = neighbours(lambda: queries.split(QUERIES), [self.bank_.to(device)], k)  # (Q, k) each
        voters = torch.as_tensor(self.labels_).to(device)[row]
        predicted = votes(similarity, voters, len(self.classes_), [k], self.temperature)[k]
        return self.classes_[predicted.cpu().numpy()]  # type: ignore[no-any-return]


def _unit(features: NDArray[Any]) -> Tensor:
    """(N, D) vectors of length 1; one that is 0 stays so."""
    rows = torch.tensor(features, dtype=torch.float32)  # a copy
    return rows.div_(rows.norm(dim=1, keepdim=True).clamp(min=1e-12))
