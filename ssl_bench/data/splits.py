"""Train, validation and test: three types, so that what chooses cannot be handed the test images.

What predicts is handed a fourth, the test images without their labels.

Shapes: N images, H x W pixels.
"""

from abc import ABC
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from ssl_bench.data.masks import Mask
from ssl_bench.data.pool import Pool


@dataclass(frozen=True)
class Split(ABC):
    """Some rows of a pool of images.

    Args:
        pool: The images, and their labels where they may be seen.
        rows: (N,) int64 rows of the pool, each once.
    """

    pool: Pool
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, names: Collection[str]) -> Self:
        """The split without some of its images, by their names."""
        if not names:
            return self
        return replace(self, rows=np.array([r for r in self.rows if self.pool.ids[r] not in names], dtype=np.int64))

    @property
    def ids(self) -> list[str]:
        """A name for each image that does not depend on the order of the split."""
        return [self.pool.ids[row] for row in self.rows]


class LabelledSplit(Split, ABC):
    """Images whose classes may be seen, or the class of each of their pixels."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class of each image."""
        assert self.pool.labels is not None, "labelled data only"
        labels: np.ndarray = self.pool.labels[self.rows]
        return labels

    def mask(self, place: int) -> Mask:
        """(H, W) class of each pixel of the image at a place of the split."""
        assert self.pool.masks is not None, "data with masks only"
        return self.pool.masks.mask(int(self.rows[place]))


@final
class TrainSplit(LabelledSplit):
    """What heads and probes learn from."""


@final
class ValidationSplit(LabelledSplit):
    """A class-stratified part of the official training images: all that anything may be chosen on."""


@final
class TestSplit(LabelledSplit):
    """The official test images: predicted once, by what was chosen before."""

    __test__ = False  # pytest: not a test class

    def unlabelled(self) -> "TestImages":
        """The same images without their labels."""
        return TestImages(self.pool.unlabelled(), self.rows)


@final
class TestImages(Split):
    """The test images as `predict` is handed them: without labels."""

    __test__ = False

    if not TYPE_CHECKING:  # mypy says it in its own words

        def __getattr__(self, name: str) -> Any:
            if name in ("labels", "mask"):
                raise AttributeError("test images have no labels here: predict gives classes, which are scored outside")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


FIFTH = "a fifth of each class of the training images, seed 0"


def split_off_test(pool: Pool) -> tuple[Pool, Pool]:
    """Train and test of a data set without official test images: FIFTH, the same for every run."""
    assert pool.labels is not None or pool.masks is not None, "labelled data only"
    labels = pool.labels if pool.labels is not None else np.zeros(len(pool), dtype=np.int64)
    test = stratified_validation(labels, 0.2, seed=0)
    return pool.take(np.flatnonzero(~test)), pool.take(np.flatnonzero(test))


def stratified_validation(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool, True for the part set aside: ``fraction`` of each class, at least one image of a class of two."""
    chosen = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(len(rows) - 1, max(1, round(fraction * len(rows)))) if fraction > 0 else 0
        chosen[rng.permutation(rows)[:count]] = True
    return chosen


def balanced(split: LabelledSplit, each: int, seed: int) -> np.ndarray:
    """(M,) sorted rows of ``each`` images of every class; a class with fewer gives all. More include the fewer."""
    rng = np.random.default_rng(seed)
    labels = split.labels
    return np.sort(np.concatenate([rng.permutation(split.rows[labels == k])[:each] for k in np.unique(labels)]))
