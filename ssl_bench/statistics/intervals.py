"""Intervals of accuracies: over test images, over seeds and test images together, over classes and test images.

S seeds, R repetitions, n test images, K classes, p an accuracy in [0, 1].
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # NumPy is imported where it is needed: the leaderboard does without
    from numpy.typing import NDArray

LEVEL = 0.95


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of an accuracy: right also near 0 and 1, where p +- z sqrt(p (1 - p) / n) is not.

    (p + z^2 / 2n) / (1 + z^2 / n)  +-  z / (1 + z^2 / n) sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    assert 0 <= correct <= n and n > 0
    return _wilson(correct / n, n, _normal(level))


def mean_over_seeds(
    values: Sequence[float], n_test: int, level: float = LEVEL, images: float | None = None
) -> tuple[float, float, float]:
    """Mean accuracy of a method and its interval, for new seeds and new test images of the same kind.

    One seed: Wilson's interval, which knows nothing of seeds. S >= 2 seeds with mean p and standard deviation s:

        A = s^2 / S                 from the seeds
        B = p (1 - p) / n           from the test images, which all seeds share: no number of seeds averages it away
        t = Student's quantile with (S - 1) (1 + B / A)^1.1 degrees of freedom; of two seeds, 1 + 0.09 (B / A)^2
        interval = p -+ t sqrt(A + (p - limit)^2 / z^2), with Wilson's limit on either side in place of B

    It is Wilson's interval when the seeds agree (A = 0), Student's over the seeds when the test set is large (B = 0).
    Satterthwaite's degrees of freedom would be (S - 1) (1 + B / A)^2; with so few seeds they promise too much, because
    A is itself uncertain. No interval is exact here for every A / B; these are fitted to be near. Coverage of the 95 %
    interval, over all ratios of A to B:

        S                  2               3               5
        here           93.6 to 96.5    94.0 to 96.1    95.0 to 95.9
        Satterthwaite  87.2 to 95.1    92.2 to 95.0    94.1 to 95.0

    That is for seeds that err on the same images. Where they err on different ones, s already holds part of B, which
    accuracies alone cannot tell, and the interval is too wide rather than too narrow: 97 to 100 % as long as seeds
    differ by no more than the images' chance. `over_images` has the answers themselves, and counts it once.

    Args:
        values: Of each seed.
        n_test: Test images.
        level: Of the interval.
        images: B of a number that is no accuracy, for which p (1 - p) / n is not the images' variance.
    """
    count, mean = len(values), math.fsum(values) / len(values)
    z = _normal(level)
    if images is None:
        low, high = _wilson(mean, n_test, z)
        images = mean * (1 - mean) / n_test
    else:
        low, high = max(0.0, mean - z * math.sqrt(images)), min(1.0, mean + z * math.sqrt(images))
    seeds = math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)) if count > 1 else 0.0
    if seeds == 0:
        return mean, low, high
    t = student_t(level, _degrees_of_freedom(count, images / seeds))
    below = t * math.sqrt(seeds + ((mean - low) / z) ** 2)
    above = t * math.sqrt(seeds + ((high - mean) / z) ** 2)
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def _degrees_of_freedom(count: int, ratio: float) -> float:
    """Of a mean of ``count`` draws whose test images' variance is ``ratio`` of theirs: see `mean_over_seeds`."""
    return 1 + 0.09 * ratio**2 if count == 2 else (count - 1) * (1 + ratio) ** 1.1


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


def over_images(
    right: "NDArray[Any]", repeats: str = "draws", level: float = LEVEL
) -> tuple[float, tuple[float, float]]:
    """Accuracy and its interval for new test images of the same kind.

    That of draws is the one of `mean_over_seeds`, but what a draw does to single images, which is in the spread of the
    draws and in that of the images, is counted once (Owen, "The pigeonhole bootstrap", 2007). Its half width is at
    least a quarter of the standard error of R n separate answers: draws that agree by chance are no certainty.
    Simulated coverage of the 95 % interval with 2, 3 and 5 draws: 93.5 to 96.5 %, whichever images they err on.

    Args:
        right: (n,) whether each test image was classified rightly; or (R, n), as often as something was repeated.
        repeats: What the R are: `draws` at random, of which there will be new ones too (seeds, few labelled images), or
            `conditions` that are all there are.
        level: Of the interval.
    """
    n = right.shape[-1]
    if right.ndim == 1:
        return float(right.mean()), wilson(int(right.sum()), n, level)
    if repeats == "draws":
        return _over_draws(right, level)
    return float(right.mean()), mean_of_shares(right.mean(0).tolist(), level)


def _over_draws(right: "NDArray[Any]", level: float) -> tuple[float, tuple[float, float]]:
    count, n = right.shape
    mean, z = float(right.mean()), _normal(level)
    low, high = _wilson(mean, n, z)
    draws, twice = variance_of_draws(right)
    if count == 1 or draws == twice == 0:
        return mean, (low, high)
    images = float(right.mean(0).var(ddof=1)) / n - twice
    part = min(1.0, max(0.0, images * n / (mean * (1 - mean))))  # of what the images would be alone
    t = student_t(level, _degrees_of_freedom(count, images / draws) if images > 0 < draws else max(1, count - 1))
    below, above = (
        max(t * math.sqrt(draws + part * ((mean - end) / z) ** 2), math.sqrt(twice) / 4) for end in (low, high)
    )
    return mean, (max(0.0, mean - below), min(1.0, mean + above))


def variance_of_draws(values: "NDArray[Any]") -> tuple[float, float]:
    """Of values (S, N): the variance of their mean that comes from the S, and what of it the N have as well."""
    s, n = values.shape
    if s == 1:
        return 0.0, 0.0
    rows, columns = values.mean(1, keepdims=True), values.mean(0)
    mixed = float(((values - rows - columns + values.mean()) ** 2).sum()) / ((s - 1) * max(1, n - 1))
    return float(rows.var(ddof=1)) / s, mixed / (n * s)


def over_classes(
    right: "NDArray[Any]",
    labels: "NDArray[Any]",
    repeats: str = "draws",
    level: float = LEVEL,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of an accuracy for new classes of the same kind, and new test images of them: a cluster bootstrap.

    K classes are drawn with replacement, then each drawn class's images; in a draw, class c with n_c images comes m_c
    times and has Binomial(m_c n_c, p_c) right answers. As it stands that is too wide in one way and too narrow in two,
    which is corrected:

    - The p_c differ more than the classes do, by the chance of the images, which the second stage adds again: they are
      shrunk to their mean by sqrt(1 - w / s^2), w being the mean of their variances p_c (1 - p_c) / (n_c - 1), s^2
      their variance (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
    - K drawn of K vary by (K - 1) / K of what they should: deviations are scaled by sqrt(K / (K - 1)).
    - The variance is itself uncertain: deviations are scaled by sqrt(df / chi^2_df), as Student's are, df = K - 1.

    Simulated coverage of the 95 % interval for 5 to 40 classes: 93.5 to 95.5 %, least where the classes' accuracies are
    skewed. Never narrower than `over_images`. Repeated `draws` add their own variance, counted once as there.

    Args:
        right: As in `over_images`.
        labels: (n,) class of each image.
        repeats: As in `over_images`.
        level: Of the interval.
        draws: B, of the bootstrap.
        seed: Of the bootstrap: the same predictions have the same interval.

    Returns:
        Lower and upper end; None where there is one class only.
    """
    import numpy as np

    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    k = len(counts)
    if k < 2:
        return None
    rng = np.random.default_rng(seed)
    mean, (least, most) = over_images(right, repeats, level)
    shares = right.astype(float) if right.ndim == 1 else right.mean(0)  # (n,)
    p = np.bincount(classes, shares) / counts  # (K,)
    variances = np.bincount(classes, (shares - p[classes]) ** 2) / counts  # (K,) of one image
    between, within = p.var(ddof=1), np.mean(variances / np.maximum(1, counts - 1))
    shrink = math.sqrt(max(0.0, 1 - within / between)) if between > 0 else 0.0
    times, state = _classes_drawn(k, draws, seed)
    rng.bit_generator.state = state
    drawn = times * counts  # (B, K): m_c n_c
    if right.ndim == 1:
        chance = rng.binomial(drawn, p) - drawn * p
    else:  # the sum of as many shares
        chance = np.sqrt(drawn * variances) * rng.standard_normal(drawn.shape)
    scaled = drawn * ((p - mean) * shrink * math.sqrt(k / (k - 1)))
    error = (scaled + chance).sum(1) / drawn.sum(1)  # (B,)
    df, spread = k - 1.0, float(error.var())
    if right.ndim == 2 and len(right) > 1 and repeats == "draws":
        repetitions, twice = variance_of_draws(right)
        if spread > 0:
            error = error * math.sqrt(max(0.0, 1 - twice / spread))
            spread = max(0.0, spread - twice)
        error = error + math.sqrt(repetitions) * rng.standard_normal(draws)
        if spread + repetitions > 0:
            df = (spread + repetitions) ** 2 / (spread**2 / (k - 1) + repetitions**2 / (len(right) - 1))
    error = error * np.sqrt(df / rng.chisquare(df, draws))
    low, high = np.quantile(mean + error, [(1 - level) / 2, (1 + level) / 2])
    return max(0.0, min(least, float(low))), min(1.0, max(most, float(high)))


@functools.lru_cache(maxsize=2)  # the same for all methods and protocols of as many classes
def _classes_drawn(k: int, draws: int, seed: int) -> "tuple[NDArray[Any], Mapping[str, Any]]":
    """(B, K) how often each class is drawn, and the state that drawing leaves the generator in."""
    import numpy as np

    rng = np.random.default_rng(seed)
    picks = rng.integers(0, k, (draws, k)) + k * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * k).reshape(draws, k), rng.bit_generator.state


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
