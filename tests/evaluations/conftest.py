"""A backbone that is only its features, for tests of what evaluations do with them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import SelectionSplit, Split, TestSplit, TrainSplit
from ssl_bench.evaluation.features import FrozenBackbone


@dataclass
class Given:
    """Stands for a FrozenBackbone whose features of a pool's images are given."""

    values: dict[str, Tensor]  # kind -> (all images of the pool, D)
    headline_kind: str = "cls"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    most_rows: int = 0  # that were ever asked for at once

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.values)

    def features(self, split: Split, kind: str, rows: slice = slice(None), view: int | None = None) -> Tensor:
        found = self.values[kind][torch.as_tensor(split.rows)][rows]
        self.most_rows = max(self.most_rows, len(found))
        return found.clone()

    moments = FrozenBackbone.moments


Problem = tuple[Given, TrainSplit, SelectionSplit, TestSplit]


@pytest.fixture
def problem() -> Callable[..., Problem]:
    """Builds (backbone, train, selection, test) from features (N, D) by kind, (N,) labels and three sizes."""

    def build(values: dict[str, Tensor], labels: np.ndarray, train: int, selection: int) -> Problem:
        images = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
        pool = ResidentPool(images=images, labels=labels.astype(np.int64), ids=[str(i) for i in range(len(labels))])
        first, second = train, train + selection
        rows = np.arange(len(labels))
        backbone = Given({kind: feature.float() for kind, feature in values.items()}, headline_kind=next(iter(values)))
        train_split, test_split = TrainSplit(pool, rows[:first]), TestSplit(pool, rows[second:])
        return backbone, train_split, SelectionSplit(pool, rows[first:second]), test_split

    return build
