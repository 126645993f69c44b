"""Predicted masks and what they are scored by: mean IoU, frequency-weighted IoU, pixel accuracy, IoU of each class.

All follow from sums over images of three counts for each class: pixels that are of it and predicted as it, pixels that
are of it, pixels that are predicted as it. Pixels of no class (IGNORE) are not counted. The mean is over the classes
that some test image has or is predicted to have.

Shapes: N images, H x W pixels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from ssl_bench.data.masks import IGNORE, Mask
from ssl_bench.data.splits import TestSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Scored
from ssl_bench.statistics.bootstrap import Floats, Statistic

Counts: TypeAlias = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Segmentations(Scored):
    """A class for each pixel of the test images.

    Args:
        classes: K that the training images have.
        predict: Place in the split -> (H, W) uint8 classes, of as many pixels as the image has.
    """

    classes: int
    predict: Callable[[int], Mask]

    @cached_property
    def _known(self) -> list[tuple[TestSplit, Counts]]:
        return []

    def counts(self, test: TestSplit) -> Counts:
        """(N, 3, K) pixels of each class in each image: rightly predicted, of it, predicted as it."""
        known = next((counts for split, counts in self._known if split is test), None)
        if known is None:
            found = np.stack([self._counts(test, place) for place in range(len(test))])
            classes = max(self.classes, int(np.flatnonzero(found.sum((0, 1))).max(initial=0)) + 1)
            known = found[:, :, :classes]
            self._known.append((test, known))
        return known

    def _counts(self, test: TestSplit, place: int) -> Counts:
        truth, predicted = test.mask(place), self.predict(place)
        if truth.shape != predicted.shape:
            (high, wide), (rows, columns) = truth.shape, predicted.shape
            raise UserError(f"the mask of {test.ids[place]} has {wide} x {high} pixels, the image {columns} x {rows}")
        return counts_of(truth, predicted)

    def scores(self, test: TestSplit) -> dict[str, Statistic]:
        sums = self.counts(test).reshape(len(test), -1).astype(np.float64)
        return {
            "mIoU": Statistic(sums, mean_iou),
            "fwIoU": Statistic(sums, frequency_weighted_iou),
            "pixel accuracy": Statistic(sums, pixel_accuracy),
        }

    def diagnostics(self, test: TestSplit) -> dict[str, float]:
        """IoU of each class, by its number: a record's data name them in that order."""
        both, true, predicted = self.counts(test).sum(0)
        union = true + predicted - both
        return {f"IoU of class {k}": float(both[k] / union[k]) for k in range(len(union)) if union[k]}


def counts_of(truth: Mask, predicted: Mask) -> Counts:
    """(3, 255) of one image."""
    known = truth != IGNORE
    true, said = truth[known], predicted[known]
    return np.stack([np.bincount(values, minlength=IGNORE) for values in (true[true == said], true, said)])


def mean_iou(sums: Floats) -> Floats:
    """(..., 3K) counts -> (...,)."""
    both, union, _ = _parts(sums)
    there = union > 1e-9
    iou = np.where(there, both / np.where(there, union, 1), 0)
    return np.asarray(iou.sum(-1) / np.maximum(there.sum(-1), 1))


def frequency_weighted_iou(sums: Floats) -> Floats:
    """(..., 3K) -> (...,): IoU of each class by the part of the pixels that is of it."""
    both, union, true = _parts(sums)
    iou = both / np.where(union > 1e-9, union, 1)
    return np.asarray((true * iou).sum(-1) / true.sum(-1))


def pixel_accuracy(sums: Floats) -> Floats:
    """(..., 3K) -> (...,)."""
    both, _, true = _parts(sums)
    return np.asarray(both.sum(-1) / true.sum(-1))


def _parts(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Intersection, union and true pixels, (..., K) each."""
    counts = sums.reshape(*sums.shape[:-1], 3, -1)
    both, true, predicted = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    return both, true + predicted - both, true
