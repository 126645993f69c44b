"""Numbers of sums over images: their intervals and the parts of images, against means, loops and simulation."""

import numpy as np
import pytest

from ssl_bench.statistics.bootstrap import Statistic, mean_of
from ssl_bench.statistics.comparison import Answers, compare, image_draws, seed_draws


def ratio(seed: int, n: int = 400) -> Statistic:
    """Sum of one over sum of another, as an IoU is."""
    rng = np.random.default_rng(seed)
    union = rng.integers(20, 200, n).astype(float)
    inner = np.rint(union * rng.beta(4, 2, n))
    return Statistic(np.stack([inner, union], 1), lambda sums: sums[..., 0] / sums[..., 1])


def test_of_a_mean_the_parts_are_the_values() -> None:
    values = np.random.default_rng(0).random(50)
    statistic = mean_of(values)
    assert statistic.value == pytest.approx(values.mean())
    np.testing.assert_allclose(statistic.parts(), values, atol=1e-6)
    low, high = statistic.interval()
    error = values.std(ddof=1) / 50**0.5
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_parts_are_derivatives_by_the_weight_of_an_image() -> None:
    statistic = ratio(1)
    parts = statistic.parts()
    assert parts.mean() == pytest.approx(statistic.value, abs=1e-12)
    inner, union = statistic.sums.sum(0)
    expected = statistic.value + 400 * (statistic.sums[:, 0] * union - inner * statistic.sums[:, 1]) / union**2
    np.testing.assert_allclose(parts, expected, atol=1e-7)


def test_the_interval_covers_what_it_promises() -> None:
    """Images drawn from a large collection, whose ratio is the truth."""
    everyone = ratio(2, 100_000)
    truth, rng = everyone.value, np.random.default_rng(3)
    inside = 0
    for _ in range(400):
        some = Statistic(everyone.sums[rng.integers(0, 100_000, 60)], everyone.of)
        low, high = some.interval(draws=400)
        inside += low <= truth <= high
    assert 0.91 < inside / 400 < 0.98


def test_two_methods_are_compared_by_their_parts() -> None:
    """The interval of their difference is that of drawing images and taking both ratios anew."""
    a, b = ratio(4), ratio(4)
    b.sums[:, 0] = np.maximum(0, b.sums[:, 0] - np.random.default_rng(5).integers(0, 9, 400))
    methods = [Answers(name, s.parts()[None, None], one_seed=False) for name, s in (("a", a), ("b", b))]
    shares = np.stack([m.shares for m in methods])
    pair = compare(methods, image_draws(shares, np.zeros(400, int)), seed_draws(methods)).pairs[0]
    times = np.random.default_rng(6).multinomial(400, np.full(400, 1 / 400), 4000)
    drawn = a.of(times @ a.sums) - b.of(times @ b.sums)
    assert pair.difference == pytest.approx(a.value - b.value, abs=1e-9)
    assert pair.interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=0.05)
    assert pair.exact is None, "McNemar's test is of right and wrong answers alone"
    assert pair.adjusted is not None and pair.adjusted < 0.01


def test_one_image_says_nothing_of_others() -> None:
    assert mean_of(np.array([0.7])).interval() == (0.0, 1.0)
