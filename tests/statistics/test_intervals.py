"""Intervals against published numbers, SciPy, and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from ssl_bench.statistics.intervals import mean_of_shares, mean_over_seeds, over_classes, over_images, student_t, wilson


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
    t = stats.t.ppf(0.975, 1 + 0.09 * (images / seeds) ** 2)
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


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.002, 0.01, 0.02, 0.05])
def test_coverage_where_seeds_err_on_the_same_images(seeds: int, spread: float) -> None:
    """The test images move all seeds together: the exact case, held within 1.5 points of 95 %."""
    rng, accuracy, n, repeats = np.random.default_rng(123 + seeds), 0.75, 2000, 5000
    shared = rng.binomial(n, accuracy, (repeats, 1)) / n
    values = np.clip(shared + spread * rng.standard_normal((repeats, seeds)), 0, 1)
    assert coverage(values, accuracy, n) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 0.99, 1.0), (0.01, 0.97, 0.995)])
def test_coverage_where_seeds_err_on_different_images(seeds: int, spread: float, least: float, most: float) -> None:
    """Part of the images' chance is in the spread of the seeds as well, which accuracies do not tell: too wide."""
    rng, accuracy, n, repeats = np.random.default_rng(seeds), 0.75, 2000, 800
    hardness = rng.beta(1.5, 0.5, (repeats, n, 1))  # P(right) of each image, mean 0.75
    values = np.empty((repeats, seeds))
    for seed in range(seeds):
        right = rng.random((repeats, n)) < hardness[:, :, 0]
        values[:, seed] = right.mean(1) + spread * rng.standard_normal(repeats)
    assert least < coverage(values, accuracy, n) <= most


def test_over_images_is_the_interval_that_belongs_to_what_was_repeated() -> None:
    right = np.random.default_rng(0).random((3, 200)) < np.array([[0.6], [0.7], [0.8]])
    assert over_images(right[0]) == (right[0].mean(), wilson(int(right[0].sum()), 200))
    assert over_images(right[:1]) == over_images(right[0])
    assert over_images(right, "conditions") == (right.mean(), mean_of_shares(right.mean(0).tolist()))


def test_over_images_is_wilson_where_draws_agree() -> None:
    for count in (50, 35, 0):
        right = np.broadcast_to(np.arange(50) < count, (3, 50))
        mean, interval = over_images(right)
        assert (mean, *interval) == pytest.approx((count / 50, *wilson(count, 50)), abs=1e-12)


def test_over_images_is_that_of_the_accuracies_where_draws_move_no_image_against_another() -> None:
    """Blocks of images that all draws but one classify alike: hardly any of the spread is in single images."""
    right = np.stack([np.arange(20_000) < count for count in (15_000, 15_040, 15_120)])
    mean, interval = over_images(right)
    assert (mean, *interval) == pytest.approx(mean_over_seeds(right.mean(1).tolist(), 20_000), abs=1e-4)


def test_over_images_is_students_where_draws_err_on_different_images() -> None:
    """Two draws, three wrong each, none the same: all that the images do to the mean is in the draws already."""
    right = np.ones((2, 40), dtype=bool)
    right[0, :3], right[1, 3:8] = False, False
    mean, (low, high) = over_images(right)
    assert mean == 0.9 and (low, high) == pytest.approx((0.9 - 12.7062 * 0.025, 1.0), abs=1e-4)


def test_over_images_of_draws_that_agree_by_chance_is_no_point() -> None:
    """As many wrong, on other images: a quarter of the standard error of 200 answers."""
    right = np.ones((2, 100), dtype=bool)
    right[0, :10], right[1, 10:20] = False, False
    mean, (low, high) = over_images(right)
    assert mean == 0.9 and high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(math.sqrt(0.9 * 0.1 / 200) / 4, rel=0.06)


@pytest.mark.parametrize("draws", [2, 3, 5])
@pytest.mark.parametrize(
    ("images", "spread"), [("same", 0.0), ("same", 0.4), ("different", 0.0), ("different", 0.8), ("both", 0.4)]
)
def test_coverage_over_images(draws: int, images: str, spread: float) -> None:
    """New draws and new images, whichever images draws err on: within 1.5 points of 95 %.

    `spread` is that of the draws' own accuracies, in standard errors of one draw's accuracy by its images' chance.
    """
    rng, accuracy, n = np.random.default_rng(draws), 0.75, 300
    hits = []
    for _ in range(3000):
        own = accuracy + spread * math.sqrt(accuracy * (1 - accuracy) / n) * rng.standard_normal((draws, 1))
        shared, alone = rng.random((1, n)), rng.random((draws, n))
        alike = {"same": True, "different": False, "both": rng.random((draws, n)) < 0.5}[images]
        low, high = over_images(np.where(alike, shared, alone) < own)[1]
        hits.append(low <= accuracy <= high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def by_class(accuracies: list[float], counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Right answers (n,) and labels (n,), with the given accuracy in each class."""
    pairs = list(zip(accuracies, counts, strict=True))
    right = np.concatenate([np.arange(n) < round(p * n) for p, n in pairs])
    return right, np.repeat(np.arange(len(pairs)), [n for _, n in pairs])


@pytest.mark.parametrize("n", [40, 4000])
def test_over_classes_is_students_interval_of_the_classes_where_they_are_of_one_size(n: int) -> None:
    """Of K class accuracies, whether most of their spread is the images' chance (n = 40) or hardly any of it."""
    accuracies = [0.5, 0.6, 0.7, 0.75, 0.8, 0.55, 0.65, 0.85, 0.7, 0.6, 0.75, 0.65]
    right, labels = by_class(accuracies, [n] * 12)
    p = [right[labels == c].mean() for c in range(12)]
    expected = stats.t.interval(0.95, 11, np.mean(p), stats.sem(p))
    found = over_classes(right, labels, draws=40_000)
    assert found is not None
    assert np.subtract(*found) == pytest.approx(np.subtract(*expected), rel=0.03)
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.003)
    assert found == over_classes(right, labels, draws=40_000)
    order = np.random.default_rng(0).permutation(len(labels))
    assert found == over_classes(right[order], labels[order] * 7 - 3, draws=40_000)


def test_over_classes_weighs_a_class_by_its_images() -> None:
    """Against a loop that draws whole classes: with as many images, those within them add nothing."""
    counts = [4000, 5000, 4000, 4500, 4000, 5000, 800, 900, 1000, 800, 700, 900]
    right, labels = by_class([0.72, 0.76, 0.74, 0.78, 0.75, 0.73, 0.5, 0.95, 0.6, 0.55, 0.9, 0.85], counts)
    rights, rng = np.bincount(labels, right), np.random.default_rng(1)
    mean, moved = right.mean(), []
    for _ in range(20_000):
        drawn = rng.integers(0, 12, 12)
        accuracy = sum(rights[c] for c in drawn) / sum(counts[c] for c in drawn)
        moved.append(mean + (accuracy - mean) * math.sqrt(12 / 11) * math.sqrt(11 / rng.chisquare(11)))
    found = over_classes(right, labels, draws=20_000)
    assert found is not None
    low, high = np.quantile(moved, [0.025, 0.975])
    assert found == pytest.approx((low, high), abs=0.05 * (high - low))


def test_over_classes_of_repetitions() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 200)
    hard = rng.beta(8, 3, 20)[labels]
    right = rng.random((4, 4000)) < np.clip(hard + np.array([[-0.04], [0.02], [0.0], [0.02]]), 0, 1)
    conditions, draws = over_classes(right, labels, "conditions"), over_classes(right, labels, "draws")
    assert conditions is not None and draws is not None
    shares = [right[:, labels == c].mean() for c in range(20)]
    expected = stats.t.interval(0.95, 19, np.mean(shares), stats.sem(shares))
    assert conditions == pytest.approx(expected, abs=0.006)
    classes, seeds = stats.sem(shares) ** 2, stats.sem(right.mean(1)) ** 2
    df = (classes + seeds) ** 2 / (classes**2 / 19 + seeds**2 / 3)
    half = stats.t.ppf(0.975, df) * math.sqrt(classes + seeds)
    assert (draws[1] - draws[0]) / 2 == pytest.approx(half, rel=0.05)


def test_over_classes_of_one_condition_twice_is_that_of_the_condition() -> None:
    """Of classes that differ by chance alone: all of the interval comes from the images drawn within them."""
    right = np.random.default_rng(4).random(150) < 0.7
    once = over_classes(right, np.arange(150) % 5, draws=40_000)
    twice = over_classes(np.stack([right, right]), np.arange(150) % 5, "conditions", draws=40_000)
    assert once is not None and once[1] - once[0] > 1.2 * np.ptp(wilson(int(right.sum()), 150))
    assert twice == pytest.approx(once, abs=0.01)


def test_over_classes_is_never_narrower_than_over_images() -> None:
    right, labels = by_class([0.7] * 10, [50] * 10)
    low, high = wilson(350, 500)
    found = over_classes(right, labels)
    assert found is not None and found[0] <= low and found[1] >= high
    assert over_classes(np.ones(50, bool), np.arange(50) % 5) == pytest.approx(wilson(50, 50))
    assert over_classes(np.ones(50, bool), np.zeros(50, int)) is None


@pytest.mark.parametrize(("k", "n", "a", "b"), [(5, 100, 30, 10), (10, 100, 30, 10), (20, 50, 30, 10)])
@pytest.mark.integration
def test_coverage_over_classes(k: int, n: int, a: float, b: float) -> None:
    """Classes of Beta(a, b) accuracy: the interval holds the accuracy over all classes that there might be."""
    rng, labels = np.random.default_rng(k + n), np.repeat(np.arange(k), n)
    hits = []
    for repeat in range(1500):
        right = rng.random(k * n) < rng.beta(a, b, k)[labels]
        found = over_classes(right, labels, draws=400, seed=repeat)
        assert found is not None
        hits.append(found[0] <= a / (a + b) <= found[1])
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)
