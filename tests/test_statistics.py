"""Intervals against published numbers, SciPy, and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from ssl_bench.statistics import mean_over_seeds, student_t, wilson


@pytest.mark.parametrize(
    ("accuracy", "n", "half"),
    [(0.76, 50_000, 0.0037), (0.83, 50_000, 0.0033), (0.65, 50_000, 0.0042), (0.9, 10_000, 0.0059), (0.7, 3669, 0.015)],
)
def test_wilson_at_sizes_of_known_test_sets(accuracy: float, n: int, half: float) -> None:
    low, high = wilson(round(accuracy * n), n)
    assert (high - low) / 2 == pytest.approx(half, abs=6e-5 if n > 5000 else 3e-4)


def test_wilson_against_scipy() -> None:
    for correct, n, level in [(0, 10, 0.95), (10, 10, 0.95), (3, 7, 0.9), (1999, 2000, 0.99), (500, 1000, 0.95)]:
        expected = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
        assert wilson(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99, 0.999])
def test_student_quantile_against_scipy(level: float) -> None:
    for df in (1, 1.0001, 1.5, 2, 2.7, 3, 5, 10, 33.3, 100, 500, 999.9, 1000.1, 1e5, 1e12):
        assert student_t(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-11)


def test_one_seed_is_wilson_and_so_are_seeds_that_agree() -> None:
    assert mean_over_seeds([0.72], 2000) == (0.72, *wilson(1440, 2000))
    assert mean_over_seeds([0.72] * 4, 2000) == (0.72, *wilson(1440, 2000))
    assert mean_over_seeds([1.0, 1.0], 50) == (1.0, *wilson(50, 50))


def test_many_test_images_leave_students_interval() -> None:
    values = [0.70, 0.72, 0.77]
    mean, low, high = mean_over_seeds(values, 10**12)
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *expected), rel=1e-6)


def test_formula_by_hand() -> None:
    values, n = [0.80, 0.82], 1000
    seeds, images = 0.0002 / 2, 0.81 * 0.19 / n  # s^2 / S and p (1 - p) / n
    t = stats.t.ppf(0.975, (seeds + images) / seeds)
    low, high = wilson(810, n)
    z = stats.norm.ppf(0.975)
    expected = (
        0.81,
        0.81 - t * math.sqrt(seeds + ((0.81 - low) / z) ** 2),
        0.81 + t * math.sqrt(seeds + ((high - 0.81) / z) ** 2),
    )
    assert mean_over_seeds(values, n) == pytest.approx(expected, rel=1e-12)


def test_the_interval_stays_between_0_and_1() -> None:
    mean, low, high = mean_over_seeds([0.1, 0.9], 100)
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def coverage(values: np.ndarray, accuracy: float, n: int) -> float:
    """Share of the rows (one simulated benchmark each, a column per seed) whose interval holds the accuracy."""
    intervals = [mean_over_seeds(row.tolist(), n)[1:] for row in values]
    return float(np.mean([low <= accuracy <= high for low, high in intervals]))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.002, 0.01, 0.02, 0.05])
def test_coverage_where_seeds_err_on_the_same_images(seeds: int, spread: float) -> None:
    """The test images move all seeds together: the exact case, held within 1.5 points of 95 %."""
    rng, accuracy, n, repeats = np.random.default_rng(123 + seeds), 0.75, 2000, 5000
    shared = rng.binomial(n, accuracy, (repeats, 1)) / n
    values = np.clip(shared + spread * rng.standard_normal((repeats, seeds)), 0, 1)
    assert coverage(values, accuracy, n) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_coverage_where_seeds_err_on_different_images(seeds: int, spread: float) -> None:
    """Part of the images' chance is in the spread of the seeds as well: never less than promised."""
    rng, accuracy, n, repeats = np.random.default_rng(seeds), 0.75, 2000, 800
    hardness = rng.beta(1.5, 0.5, (repeats, n, 1))  # P(right) of each image, mean 0.75
    values = np.empty((repeats, seeds))
    for seed in range(seeds):
        right = rng.random((repeats, n)) < hardness[:, :, 0]
        values[:, seed] = right.mean(1) + spread * rng.standard_normal(repeats)
    assert coverage(values, accuracy, n) > 0.95 - 0.015


def test_coverage_of_two_seeds_is_as_documented() -> None:
    rng, accuracy, n, repeats = np.random.default_rng(0), 0.75, 2000, 3000
    for spread, least in ((0.002, 0.94), (0.01, 0.94), (0.05, 0.89)):
        shared = rng.binomial(n, accuracy, (repeats, 1)) / n
        values = np.clip(shared + spread * rng.standard_normal((repeats, 2)), 0, 1)
        assert least < coverage(values, accuracy, n) < 0.975
