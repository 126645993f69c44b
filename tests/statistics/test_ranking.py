"""Ranks against SciPy, hand-worked cases and simulation."""

import numpy as np
import pytest
from scipy import stats

from ssl_bench.config.registry import names
from ssl_bench.statistics.ranking import (
    FAMILIES,
    Task,
    family,
    friedman,
    improvability,
    kendall,
    mean_ranks,
    rank_distribution,
    ranks,
)

# Four methods on 14 data sets, some of them equal, some always.
SCORES = np.round(np.random.default_rng(2).normal([0.70, 0.72, 0.70, 0.73], 0.02, (14, 4)), 2)
SCORES[9] = 1.0


def task(data: str, protocol: str, accuracy: list[float], draws: np.ndarray | None = None) -> Task:
    values = np.array(accuracy)
    return Task(data, protocol, values, np.tile(values, (40, 1)) if draws is None else draws)


def test_ranks_against_scipy() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (50, 6)) / 7
    np.testing.assert_array_equal(ranks(scores), stats.rankdata(-scores, axis=1))


def test_friedman_against_scipy_with_ties() -> None:
    found = friedman(SCORES)
    assert found.chi2 == pytest.approx(stats.friedmanchisquare(*SCORES.T).statistic, rel=1e-12)
    f = 13 * found.chi2 / (14 * 3 - found.chi2)
    assert found.f == pytest.approx(f, rel=1e-12) and found.p == pytest.approx(stats.f.sf(f, 3, 39), rel=1e-9)


def test_friedman_by_hand() -> None:
    """Ranks 123, 132, 123 of sums 3, 7, 8: chi2 = 12 / (3 x 3 x 4) x 122 - 3 x 3 x 4, F = 2 chi2 / (6 - chi2)."""
    found = friedman(np.array([[3.0, 2, 1], [3, 1, 2], [30, 20, 10]]))
    assert found.chi2 == pytest.approx(14 / 3) and found.f == pytest.approx(7.0)
    assert found.p == pytest.approx(stats.f.sf(7, 2, 4))


def test_friedman_at_its_ends() -> None:
    same = friedman(np.array([[3.0, 2, 1]] * 4))
    assert (same.f, same.p) == (None, 0.0) and same.chi2 == pytest.approx(8)
    equal = friedman(np.ones((3, 4)))
    assert (equal.chi2, equal.f, equal.p) == (0.0, 0.0, 1.0)


def test_friedman_rejects_five_times_in_a_hundred() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([friedman(rng.random((12, 6))).p < 0.05 for _ in range(2000)]) == pytest.approx(0.05, abs=0.015)


def test_kendall_against_scipy_with_ties() -> None:
    scores = np.random.default_rng(1).integers(0, 6, (5, 8)).astype(float)
    found = kendall(scores)
    for i in range(5):
        for j in range(5):
            assert found[i, j] == pytest.approx(stats.kendalltau(scores[i], scores[j]).statistic, rel=1e-12)


def test_kendall_by_hand() -> None:
    found = kendall(np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 2, 4, 3], [5, 5, 5, 5]]))
    assert found[0, 1] == -1 and found[0, 2] == pytest.approx(2 / 3) and found[0, 0] == 1
    assert np.isnan(found[0, 3])


def test_every_ranked_page_has_a_family_and_every_family_has_pages() -> None:
    known = [protocol for members in FAMILIES.values() for protocol in members]
    assert set(known) <= set(names("evaluations")), "a family names a protocol that is none"
    assert len(known) == len(set(known)) and family("knn") == "frozen-global" and family("my.Probe") == "my.Probe"


def test_protocols_of_a_family_count_once() -> None:
    """Three frozen protocols say a, one fine-tuning says b: a tie, not three to one."""
    frozen = [task("x", protocol, [0.9, 0.8]) for protocol in ("knn", "ridge", "linear")]
    tasks = [*frozen, task("x", "finetune", [0.8, 0.9])]
    assert mean_ranks(tasks, [t.accuracy for t in tasks])[1].tolist() == [[1.5, 1.5]]
    first, second = rank_distribution(["a", "b"], tasks)
    assert first.mean == second.mean == 1.5 and first.first == 0.5 and first.interval == (1, 2)
    assert rank_distribution(["a", "b"], frozen)[0].first == 1.0


def test_data_sets_count_alike_whatever_their_number_of_protocols() -> None:
    tasks = [task("x", protocol, [0.9, 0.8]) for protocol in ("knn", "finetune")] + [task("y", "knn", [0.8, 0.9])]
    sets, means = mean_ranks(tasks, [t.accuracy for t in tasks])
    assert sets == ["x", "y"] and means.tolist() == [[1, 2], [2, 1]]


def test_the_draw_of_data_sets_by_hand() -> None:
    """On two of three sets a leads: of three draws, two or three are of those with probability 20 / 27."""
    draws = 20_000
    tasks = [
        task(data, "knn", accuracy, np.tile(np.array(accuracy), (draws, 1)))
        for data, accuracy in (("x", [0.9, 0.8]), ("y", [0.7, 0.6]), ("z", [0.5, 0.6]))
    ]
    first, second = rank_distribution(["a", "b"], tasks)
    assert (first.name, second.name) == ("a", "b") and first.mean == pytest.approx(4 / 3)
    assert first.first == pytest.approx(20 / 27, abs=0.01) and second.first == pytest.approx(7 / 27, abs=0.01)
    assert first.interval == (1, 2) and sum(second.probabilities) == pytest.approx(1)


def test_the_draws_of_accuracies_by_hand() -> None:
    accuracy = [0.5, 0.7, 0.6]
    draws = np.tile(np.array(accuracy), (100, 1))
    draws[:30, 2] = 0.8  # c is first in 30 of 100
    draws[30:50, 2] = 0.7  # and shares it in 20
    draws[:4, 0] = 0.9  # a is first in 4, too few for the interval
    b, c, a = rank_distribution(["a", "b", "c"], [task("x", "knn", accuracy, draws)])
    assert [a.name, b.name, c.name] == ["a", "b", "c"]
    assert a.first == pytest.approx(0.04) and b.first == pytest.approx(0.6) and c.first == pytest.approx(0.36)
    assert a.interval == (3, 3) and b.interval == (1, 2) and c.interval == (1, 2)
    assert b.probabilities == pytest.approx((0.6, 0.36, 0.04))


@pytest.mark.parametrize(("times", "interval"), [(4, (3, 3)), (8, (1, 3))])
def test_an_interval_leaves_out_what_comes_five_times_in_a_hundred(times: int, interval: tuple[int, int]) -> None:
    draws = np.tile([0.5, 0.7, 0.6], (100, 1))
    draws[:times, 0] = 0.9
    first, _, last = rank_distribution("abc", [task("x", "knn", [0.5, 0.7, 0.6], draws)])
    assert (first.name, last.name) == ("b", "a") and last.interval == interval
    assert first.interval == ((1, 1) if times == 4 else (1, 2))


def test_intervals_of_ranks_hold_the_rank() -> None:
    """Accuracies a point apart, measured with a standard error of a point: at least nine times in ten."""
    rng, truth, held = np.random.default_rng(0), np.array([0.72, 0.71, 0.70, 0.65]), []
    for _ in range(400):
        seen = truth + 0.01 * rng.standard_normal(4)
        draws = seen + 0.01 * rng.standard_normal((500, 4))
        found = {rank.name: rank for rank in rank_distribution("abcd", [Task("x", "knn", seen, draws)])}
        held.append(
            [found[name].interval[0] <= place <= found[name].interval[1] for place, name in enumerate("abcd", 1)]
        )
    assert (np.mean(held, axis=0) >= 0.9).all()


def test_improvability_in_loops() -> None:
    """1 - best error / error, as TabArena's leaderboard has it; the best one's is 0, an error of 0 is the best."""
    for accuracies in (*SCORES, np.array([1.0, 1.0, 0.5]), np.array([1.02, 0.9])):
        errors = [max(0.0, 1 - accuracy) for accuracy in accuracies]
        loops = [1 - min(errors) / error if error else 0.0 for error in errors]
        np.testing.assert_allclose(improvability(np.array(accuracies)), loops, atol=1e-12)


def test_win_rate_is_the_share_of_others_that_are_below() -> None:
    accuracies = {"knn": [0.9, 0.8, 0.8, 0.4], "finetune": [0.5, 0.8, 0.6, 0.7]}
    found = rank_distribution("abcd", [task("x", protocol, values) for protocol, values in accuracies.items()])
    for rank in found:
        at = "abcd".index(rank.name)
        shares = [
            sum(1.0 if values[at] > other else 0.5 for i, other in enumerate(values) if i != at and values[at] >= other)
            for values in accuracies.values()
        ]
        assert rank.win_rate.mean == pytest.approx(np.mean(shares) / 3)
        gains = [1 - min(1 - v for v in values) / (1 - values[at]) for values in accuracies.values()]
        assert rank.improvability.mean == pytest.approx(np.mean(gains), abs=1e-6)
        assert rank.win_rate.interval == pytest.approx((rank.win_rate.mean,) * 2), "draws that are all alike"


def test_intervals_of_win_rate_and_improvability_by_hand() -> None:
    """b beats a in 90 of 100 draws; in the other ten a's error is half of b's."""
    draws = np.tile([0.5, 0.75], (100, 1))
    draws[:10, 0] = 0.875
    b, a = rank_distribution("ab", [task("x", "knn", [0.5, 0.75], draws)])
    assert (a.win_rate.mean, b.win_rate.mean) == (0, 1) and (a.improvability.mean, b.improvability.mean) == (0.5, 0)
    assert a.win_rate.interval == (0, 1) and b.win_rate.interval == (0, 1)
    assert a.improvability.interval == (0, 0.5) and b.improvability.interval == (0, 0.5)
