"""Average precision of a ranking, as the revisited Oxford and Paris benchmarks take it.

Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018
(https://arxiv.org/abs/1803.11285); `compute_map` of DINO's code (https://github.com/facebookresearch/dino, utils.py).

N images of a database, P of them positive for a query.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def average_precision(positive: NDArray[Any], junk: NDArray[Any] | None = None) -> float | None:
    """Area under the precision-recall curve of one query, by trapezoids.

    Junk is neither right nor wrong: it is taken out, and what comes after it moves up. At the i-th positive (from 0),
    of rank r (from 0) without junk, recall grows by 1 / P and precision goes from i / r (1 where r = 0) to
    (i + 1) / (r + 1).

    Args:
        positive: (N,) whether each image is right, the most similar first.
        junk: (N,) whether each is to be ignored, in the same order; none when not given.

    Returns:
        In [0, 1]; None where nothing is positive.
    """
    right = np.asarray(positive, dtype=bool)
    if junk is not None:
        assert not (right & junk).any(), "an image is positive and junk"
        right = right[~np.asarray(junk, dtype=bool)]
    ranks = np.flatnonzero(right)  # (P,)
    if len(ranks) == 0:
        return None
    before = np.arange(len(ranks))
    left = np.where(ranks == 0, 1.0, before / np.maximum(ranks, 1))
    return float(np.mean((left + (before + 1) / (ranks + 1)) / 2))


def medium(easy: NDArray[Any], hard: NDArray[Any], junk: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positives and junk of the protocol in which easy and hard images are positive."""
    return easy | hard, junk


def hard(easy: NDArray[Any], hard: NDArray[Any], junk: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positives and junk of the protocol in which only hard images are positive, and easy ones are junk."""
    return hard, junk | easy


def mean_average_precision(found: list[float | None]) -> float:
    """Mean over the queries that have a positive image."""
    return float(np.mean([value for value in found if value is not None]))
