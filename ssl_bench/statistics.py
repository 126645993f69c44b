"""Intervals of accuracies: over test images, and over seeds and test images together.

S seeds, n test images, p an accuracy in [0, 1].
"""

import functools
import math
from collections.abc import Sequence

LEVEL = 0.95


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of an accuracy: right also near 0 and 1, where p +- z sqrt(p (1 - p) / n) is not.

    (p + z^2 / 2n) / (1 + z^2 / n)  +-  z / (1 + z^2 / n) sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    assert 0 <= correct <= n and n > 0
    return _wilson(correct / n, n, _normal(level))


def mean_over_seeds(values: Sequence[float], n_test: int, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean accuracy of a method and its interval, for new seeds and new test images of the same kind.

    One seed: Wilson's interval, which knows nothing of seeds. S >= 2 seeds with mean p and standard deviation s:

        A = s^2 / S                 from the seeds
        B = p (1 - p) / n           from the test images, which all seeds share: no number of seeds averages it away
        t = Student's quantile with (S - 1) (A + B) / A degrees of freedom
        interval = p -+ t sqrt(A + (p - limit)^2 / z^2), with Wilson's limit on either side in place of B

    It is Wilson's interval when the seeds agree (A = 0), Student's over the seeds when the test set is large (B = 0).
    Satterthwaite's degrees of freedom would be (S - 1) ((A + B) / A)^2; with so few seeds they promise too much,
    because A is itself uncertain. Simulated coverage of the 95 % interval, over all ratios of A to B:

        S               2            3            5
        here        90 to 96     94 to 97     95 to 96
        squared     87 to 95     92 to 95     94 to 95

    That is for seeds that err on the same images. Where they err on different ones, s already holds part of B, which
    accuracies alone cannot tell, and the interval is too wide rather than too narrow (up to 99.9 %).
    """
    count, mean = len(values), math.fsum(values) / len(values)
    z = _normal(level)
    low, high = _wilson(mean, n_test, z)
    seeds = math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)) if count > 1 else 0.0
    if seeds == 0:
        return mean, low, high
    images = mean * (1 - mean) / n_test
    t = student_t(level, (count - 1) * (seeds + images) / seeds)
    below = t * math.sqrt(seeds + ((mean - low) / z) ** 2)
    above = t * math.sqrt(seeds + ((high - mean) / z) ** 2)
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def mean_of_shares(shares: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of each test image's share of right answers under several conditions, for new test images.

    mean -+ t s / sqrt(n), cut to [0, 1]; where all shares are equal (none or all right), Wilson's for one condition.
    """
    n, mean = len(shares), math.fsum(shares) / len(shares)
    variance = math.fsum((share - mean) ** 2 for share in shares) / max(1, n - 1)
    if variance == 0:
        return _wilson(mean, n, _normal(level))
    half = student_t(level, n - 1) * math.sqrt(variance / n)
    return max(0.0, mean - half), min(1.0, mean + half)


def student_t(level: float, df: float) -> float:
    """The t for which Student's distribution has `level` of its mass in [-t, t]; `df` need not be whole."""
    z = _normal(level)
    if df > 1000:  # Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), exact here to 1e-13
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return z + sum(term / df**power for power, term in enumerate(terms, 1))
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    t = z
    while True:  # Newton from the left of a concave function: rises to the root, never passes it
        density = math.exp(log_scale - (df + 1) / 2 * math.log1p(t * t / df))
        step = (_student_tail(t, df) - (1 - level) / 2) / density
        t += step
        if step < 1e-9 * t:  # the next step would be of the order of its square
            return t


def _student_tail(t: float, df: float) -> float:
    """P(T > t) for t > 0: half of the regularised incomplete beta function I_x(df / 2, 1 / 2), x = df / (df + t^2)."""
    x = df / (df + t * t)
    if x < (df / 2 + 1) / (df / 2 + 2.5):
        return _beta(x, df / 2, 0.5) / 2
    return 0.5 - _beta(t * t / (df + t * t), 0.5, df / 2) / 2


def _beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8), evaluated as Lentz does."""
    tiny = 1e-300
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    value = c = 1.0
    d = 0.0
    for i in range(1000):
        m = i // 2
        if i == 0:
            numerator = 1.0
        elif i % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + numerator * d) or tiny)
        c = (1 + numerator / c) or tiny
        value *= c * d
        if abs(1 - c * d) < 1e-15:
            break
    return math.exp(log_front) * (value - 1) / a


def _wilson(p: float, n: int, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # p inside, whatever the rounding


@functools.cache
def _normal(level: float) -> float:
    """The z for which the normal distribution has `level` of its mass in [-z, z]."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)
