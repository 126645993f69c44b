"""The best of many methods against each other one, by Student's t instead of draws.

The bootstrap of `comparison` draws thousands of times for each pair. What it approaches is known in closed form: the
same variances, of test images within their classes and of seeds, and the same degrees of freedom, at the cost of a sum
over the test images. It serves reports of so many pairs that drawing would take minutes.

Letters as in `comparison`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_bench.statistics.comparison import (
    Answers,
    Comparison,
    Floats,
    Pair,
    Verdict,
    answered_alone,
    detectable_difference,
    judged,
    mcnemar,
    places_of_pairs,
    variances,
)
from ssl_bench.statistics.intervals import LEVEL


def compare_with_best(
    methods: Sequence[Answers], labels: NDArray[Any], repeats: str = "", level: float = LEVEL
) -> Comparison:
    """The best method and each other one under one protocol; `comparison.compare` without draws.

    Args:
        methods: M of them, on the same test images in the same order.
        labels: (N,) class of each image.
        repeats: As in `compare`.
        level: Of the intervals.
    """
    shares = np.stack([method.shares for method in methods])  # (M, N)
    accuracy = shares.mean(1)
    order = sorted(range(len(methods)), key=lambda m: -accuracy[m])
    known = [m for m in order if not methods[m].one_seed]
    best = (known or order)[0]
    by_images = variance_by_images(shares - shares[best], labels)
    pairs = [
        _pair(methods[a], methods[b], float(by_images[b if a == best else a]), repeats, level)
        for a, b in places_of_pairs(order, known, most=0)
    ]
    return judged(methods, known, pairs, level)


def variance_by_images(shares: Floats, labels: NDArray[Any]) -> Floats:
    """(M,) variance of each row's mean (M, N) for new test images, each class's drawn among themselves.

    sum over c of n_c s_c^2 / N^2, s_c^2 with n_c - 1. Classes of one image are drawn from together.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    _, strata, n = np.unique(np.where(counts[classes] == 1, -1, classes), return_inverse=True, return_counts=True)
    found = np.zeros(len(shares))
    for place, row in enumerate(shares):
        around = row - (np.bincount(strata, row) / n)[strata]
        found[place] = (np.bincount(strata, around**2) * n / np.maximum(1, n - 1)).sum()
    return np.asarray(found / shares.shape[1] ** 2)


def _pair(a: Answers, b: Answers, images: float, repeats: str, level: float) -> Pair:
    """A pair before Holm."""
    from scipy.special import ndtri, stdtr, stdtrit

    difference = float(a.shares.mean() - b.shares.mean())
    spread, own, df = variances(a, b, images, repeats)
    error = math.sqrt(spread + own)
    degrees = min(df, 1e9)  # beyond which it is the normal distribution
    quantile = float(stdtrit(degrees, (1 + level) / 2))
    p = 2 * float(stdtr(degrees, -abs(difference) / error)) if error else float(difference == 0)
    exact = None
    if (only := answered_alone(a, b)) is not None:
        exact, p = mcnemar(*only)
    verdict: Verdict = "one seed" if a.one_seed or b.one_seed else "undecided"
    interval = difference - quantile * error, difference + quantile * error
    detectable = detectable_difference(error * quantile / float(ndtri((1 + level) / 2)), level)
    share = spread / (spread + own) if error else 0.0
    return Pair(a.name, b.name, difference, interval, p, exact, None, detectable, verdict, share)
