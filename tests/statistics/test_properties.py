"""What holds of every interval, comparison and rank, whatever the numbers."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ssl_bench.statistics.comparison import Answers, compare, holm, image_draws, mcnemar, paired_error, seed_draws, tied
from ssl_bench.statistics.intervals import mean_of_shares, mean_over_seeds, over_images, student_t, wilson
from ssl_bench.statistics.ranking import Task, friedman, kendall, mean_ranks, rank_distribution, ranks

COUNTS = st.integers(1, 5000)
ACCURACIES = st.lists(st.floats(0, 1), min_size=1, max_size=6)
SCORES = st.lists(st.integers(0, 6), min_size=2, max_size=6)


@given(COUNTS, st.data())
def test_wilson_holds_the_accuracy_and_mirrors(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1 and low < high
    assert (1 - high, 1 - low) == pytest.approx(wilson(n - correct, n), abs=1e-12)
    assert wilson(correct, n, 0.8)[0] >= low and wilson(correct, n, 0.8)[1] <= high, "a lower level is narrower"
    more = wilson(4 * correct, 4 * n)
    assert more[1] - more[0] < high - low, "more images are narrower"


@given(ACCURACIES, COUNTS)
def test_the_mean_over_seeds_lies_in_its_interval_whatever_their_order(values: list[float], n: int) -> None:
    mean, low, high = mean_over_seeds(values, n)
    assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert mean_over_seeds(values[::-1], n) == pytest.approx((mean, low, high), abs=1e-9)
    mirrored = mean_over_seeds([1 - value for value in values], n)
    assert mirrored == pytest.approx((1 - mean, 1 - high, 1 - low), abs=1e-9)


@given(st.integers(1, 400), st.floats(0.5, 0.999))
def test_students_quantile_falls_towards_the_normal_one(df: int, level: float) -> None:
    assert student_t(level, df) >= student_t(level, df + 1) >= student_t(level, 10**7) > 0


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
def test_the_mean_of_shares_lies_in_its_interval(fifths: list[int]) -> None:
    shares = [fifth / 5 for fifth in fifths]
    low, high = mean_of_shares(shares)
    assert 0 <= low <= math.fsum(shares) / len(shares) + 1e-12 and math.fsum(shares) / len(shares) - 1e-12 <= high <= 1


@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 10**6), st.sampled_from(["draws", "conditions"]))
def test_an_interval_over_images_does_not_depend_on_their_order(draws: int, n: int, seed: int, repeats: str) -> None:
    rng = np.random.default_rng(seed)
    right = rng.random((draws, n)) < rng.random(n)
    mean, (low, high) = over_images(right, repeats)
    assert mean == pytest.approx(right.mean()) and 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1
    mixed = over_images(right[:, rng.permutation(n)][rng.permutation(draws)], repeats)
    assert mixed[0] == pytest.approx(mean) and mixed[1] == pytest.approx((low, high), abs=1e-9)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_of_two_sides_and_never_certain(only_a: int, only_b: int, both: int) -> None:
    exact, mid = mcnemar(only_a, only_b)
    assert mcnemar(only_b, only_a) == (exact, mid)
    assert 0 < mid <= exact <= 1
    assert mcnemar(only_a, only_a)[0] == 1
    n = only_a + only_b + both
    if n:
        assert 0 <= paired_error(only_a, only_b, n) == paired_error(only_b, only_a, n) <= 1 / math.sqrt(n)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_raises_p_values_and_keeps_their_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(before <= after <= min(1, len(p) * before) for before, after in zip(p, adjusted, strict=True))
    assert all((p[i] < p[j]) <= (adjusted[i] <= adjusted[j]) for i in range(len(p)) for j in range(len(p)))
    assert not p or max(adjusted) >= max(p) and min(adjusted) == min(1.0, len(p) * min(p))


@given(st.floats(-0.01, 0.01), st.floats(0, 0.01))
def test_a_tie_has_no_side(low: float, width: float) -> None:
    assert tied((low, low + width)) == tied((-low - width, -low))


def answers(rng: np.random.Generator, names: str, seeds: int, n: int) -> list[Answers]:
    level = rng.random(n)
    numbers = tuple(range(seeds))
    return [Answers(name, rng.random((seeds, 1, n)) < level, numbers, one_seed=seeds == 1) for name in names]


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_a_comparison_does_not_depend_on_the_order_of_methods(count: int, seeds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    methods = answers(rng, "abcd"[:count], seeds, 60)
    labels = np.arange(60) % 3

    def compared(order: list[Answers]) -> dict[tuple[str, str], object]:
        shares = np.stack([method.shares for method in order])
        images = image_draws(shares, labels, draws=200, seed=1)
        found = compare(order, images, seed_draws(order, block="block", protocol="knn", draws=200, seed=1))
        assert all(pair.interval[0] <= pair.difference + 1e-12 for pair in found.pairs)
        assert all(pair.difference >= 0 and 0 < pair.p <= 1 for pair in found.pairs)
        if seeds == 1:
            assert not found.unbeaten and {pair.verdict for pair in found.pairs} == {"one seed"}
        else:
            assert max(order, key=lambda m: m.shares.mean()).name in found.unbeaten
            assert all(pair.p >= 2 / 201 for pair in found.pairs), "a bootstrap of B draws shows no p below 2 / (B + 1)"
        rounded = {}
        for pair in found.pairs:
            if pair.difference:
                rounded[pair.a, pair.b] = (round(pair.difference, 9), round(pair.p, 9), pair.verdict)
        return rounded

    assert compared(methods) == compared(methods[::-1])


@given(st.lists(SCORES, min_size=2, max_size=5).filter(lambda rows: len({len(row) for row in rows}) == 1))
def test_ranks_share_their_places_and_turn_with_the_scores(rows: list[list[int]]) -> None:
    scores = np.array(rows, dtype=float)
    t, m = scores.shape
    placed = ranks(scores)
    assert placed.sum(1) == pytest.approx([m * (m + 1) / 2] * t)
    assert ranks(-scores) == pytest.approx(m + 1 - placed)
    assert ranks(3 * scores + 1) == pytest.approx(placed)
    test, mirrored = friedman(scores), friedman(-scores)
    assert 0 <= test.p <= 1 and test.chi2 == pytest.approx(mirrored.chi2)
    tau = kendall(scores)
    own = np.diag(tau)
    assert np.all((np.abs(tau) <= 1 + 1e-12) | np.isnan(tau))
    assert np.all((own > 1 - 1e-12) | np.isnan(own)) and np.allclose(tau, tau.T, equal_nan=True)


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_the_distribution_of_ranks_is_one(methods: int, sets: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = []
    for data in range(sets):
        accuracy = rng.random(methods)
        tasks.append(Task(f"set {data}", "knn", accuracy, accuracy + rng.normal(0, 0.05, (50, methods))))
    found = rank_distribution([f"m{i}" for i in range(methods)], tasks)
    assert [rank.mean for rank in found] == sorted(rank.mean for rank in found)
    assert math.fsum(rank.mean for rank in found) == pytest.approx(methods * (methods + 1) / 2)
    for place in range(methods):
        assert math.fsum(rank.probabilities[place] for rank in found) == pytest.approx(1)
    for rank in found:
        assert math.fsum(rank.probabilities) == pytest.approx(1) and rank.first == rank.probabilities[0]
        assert 1 <= rank.interval[0] <= rank.interval[1] <= methods
    assert mean_ranks(tasks, [task.accuracy for task in tasks])[1].mean(0) == pytest.approx(
        [next(r.mean for r in found if r.name == f"m{i}") for i in range(methods)]
    )
