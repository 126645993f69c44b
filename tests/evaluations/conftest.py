"""A backbone that is only its features, for tests of what evaluations do with them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import Split, TestSplit, TrainSplit, ValidationSplit


@dataclass
class Given:
    """Stands for a FeatureExtractor whose features of a pool's images are given."""

    values: dict[str, Tensor]  # feature type -> (all images of the pool, D)
    primary_feature_type: str = "cls"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    most_rows: int = 0  # that were ever asked for at once

    @property
    def feature_types(self) -> tuple[str, ...]:
        return tuple(self.values)

    def features(self, split: Split, feature_type: str, rows: slice = slice(None), view: int | None = None) -> Tensor:
        found = self.values[feature_type][torch.as_tensor(split.rows)][rows]
        self.most_rows = max(self.most_rows, len(found))
        return found.clone()


Problem = tuple[Given, TrainSplit, ValidationSplit, TestSplit]


@pytest.fixture
def problem() -> Callable[..., Problem]:
    """Builds (backbone, train, validation, test) from features (N, D) by feature type, (N,) labels and three sizes."""

    def build(values: dict[str, Tensor], labels: np.ndarray, train: int, validation: int) -> Problem:
        images = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
        pool = ResidentPool(images=images, labels=labels.astype(np.int64), ids=[str(i) for i in range(len(labels))])
        first, second = train, train + validation
        rows = np.arange(len(labels))
        backbone = Given(
            {feature_type: feature.float() for feature_type, feature in values.items()},
            primary_feature_type=next(iter(values)),
        )
        train_split, test_split = TrainSplit(pool, rows[:first]), TestSplit(pool, rows[second:])
        return backbone, train_split, ValidationSplit(pool, rows[first:second]), test_split

    return build
