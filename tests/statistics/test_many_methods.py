"""Student's t for the best of many methods: as the bootstrap that it stands for, and as SciPy's tests."""

import numpy as np
import pytest
from scipy import stats

from ssl_bench.statistics.comparison import Answers, Comparison, compare, image_draws, mcnemar, seed_draws
from ssl_bench.statistics.many_methods import compare_with_best, variance_by_images

LABELS = np.arange(1200) % 8
DRAWS = 40_000
RATES = np.array([0.62, 0.60, 0.55, 0.70])


def methods(seeds: int, repeats: int = 1) -> list[Answers]:
    """Of runs that err on the same hard images, each with a luck of its own."""
    rng = np.random.default_rng(3)
    hard, shape = rng.random(len(LABELS)), (len(RATES), seeds, repeats)
    levels = RATES[:, None, None] + 0.02 * rng.standard_normal(shape)
    right = 0.5 * hard + 0.5 * rng.random((*shape, len(LABELS))) < levels[..., None]
    return [Answers(f"m{i}", own, tuple(range(seeds))) for i, own in enumerate(right)]


def drawn(given: list[Answers], repeats: str = "") -> Comparison:
    shares = np.stack([method.shares for method in given])
    seeds = seed_draws(given, repeats, draws=DRAWS)
    return compare(given, image_draws(shares, LABELS, DRAWS), seeds, repeats, most=0)


@pytest.mark.parametrize(("seeds", "repeats", "kind"), [(3, 1, ""), (5, 1, ""), (1, 4, "draws"), (3, 3, "conditions")])
def test_it_is_what_the_bootstrap_approaches(seeds: int, repeats: int, kind: str) -> None:
    given = methods(seeds, repeats)
    found, expected = compare_with_best(given, LABELS, kind), drawn(given, kind)
    assert [pair.a for pair in found.pairs] == ["m3", "m3", "m3"] and found.unbeaten == expected.unbeaten
    for one, other in zip(found.pairs, expected.pairs, strict=True):
        width = other.interval[1] - other.interval[0]
        assert one.interval == pytest.approx(other.interval, abs=0.03 * width)
        chance = 4 * (2 * one.p / DRAWS) ** 0.5  # of so many draws
        assert one.p == pytest.approx(other.p, rel=0.02, abs=chance + 6 / DRAWS) and one.exact is None
        assert one.detectable == pytest.approx(other.detectable, rel=0.04)
        assert one.seed_share == pytest.approx(other.seed_share, abs=0.02)
        assert (one.b, one.difference, one.verdict) == (other.b, other.difference, other.verdict)


def test_single_runs_are_compared_by_mcnemars_test() -> None:
    given = [Answers(name, own.right, one_seed=True) for name, own in zip("ab", methods(1)[:2], strict=True)]
    (pair,) = compare_with_best(given, LABELS).pairs
    one, other = sorted(given, key=lambda method: method.name != pair.a)
    only = [int((x.right & ~y.right).sum()) for x, y in ((one, other), (other, one))]
    assert (pair.exact, pair.p) == mcnemar(*only) and (pair.adjusted, pair.verdict) == (None, "one seed")
    (draws,) = drawn(given).pairs
    assert pair.interval == pytest.approx(draws.interval, abs=0.03 * float(np.ptp(draws.interval)))


def test_where_images_do_not_matter_it_is_welchs_test() -> None:
    rng, n = np.random.default_rng(0), 2000
    rates = {"a": [0.70, 0.75, 0.80], "b": [0.62, 0.71, 0.66, 0.69]}
    given = [
        Answers(name, rng.random((len(p), 1, n)) < np.array(p)[:, None, None], tuple(range(len(p))))
        for name, p in rates.items()
    ]
    (pair,) = compare_with_best(given, np.arange(n) % 10).pairs
    welch = stats.ttest_ind(*(method.right.mean((1, 2)) for method in given), equal_var=False)
    low, high = welch.confidence_interval()
    assert pair.p == pytest.approx(welch.pvalue, rel=0.1)
    assert pair.interval == pytest.approx((low, high), abs=0.05 * (high - low))


def test_variance_by_images_against_a_loop() -> None:
    labels = np.array([0] * 5 + [1] * 7 + [2, 3])  # two classes of one image, drawn from together
    shares = np.random.default_rng(1).random((3, len(labels)))
    strata = [np.arange(5), np.arange(5, 12), np.array([12, 13])]
    expected = [sum(len(own) * row[own].var(ddof=1) for own in strata) / len(labels) ** 2 for row in shares]
    assert variance_by_images(shares, labels) == pytest.approx(expected)


def test_the_same_answers_are_equal() -> None:
    own = methods(1)[0].right
    (pair,) = compare_with_best([Answers("a", np.repeat(own, 2, 0), (0, 1)), Answers("b", own)], LABELS).pairs
    assert (pair.difference, pair.interval, pair.p, pair.verdict) == (0.0, (0.0, 0.0), 1.0, "tie")
