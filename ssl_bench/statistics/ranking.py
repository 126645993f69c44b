"""Which method is ahead over several protocols and data sets, how sure that is, and whether protocols agree.

Accuracies of different protocols and data sets are not of one scale, so ranks are averaged, never accuracies; beside
them the share of the error that the best method would save, improvability, and the rate of wins against other methods,
both as TabArena has them (Erickson et al., 2025, https://arxiv.org/abs/2506.16791). Protocols that measure nearly the
same (k-NN, ridge, linear) would be counted several times: they are averaged in families first.

Symbols: M methods, P protocols, T data sets, B draws. Rank 1 is the best.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

FAMILIES = {
    "frozen-global": ("knn", "ridge", "logistic", "linear"),
    "frozen-token": ("attentive",),
    "low-label": ("fewshot", "labels-1pct", "labels-10pct", "finetune-1pct", "finetune-10pct"),
    "full-tune": ("partial-finetune", "finetune"),
    "dense": ("segmentation", "segmentation-knn", "segmentation-finetune"),
    "robustness": ("robustness", "robustness-finetune"),
}


@final
@dataclass(frozen=True, eq=False)
class Task:
    """What methods were measured by.

    Args:
        data: What tells its test images from others.
        protocol: Of the evaluation.
        accuracy: (M,) of each method.
        draws: (B, M) accuracies as they might have come out, for other test images and seeds.
    """

    data: Hashable
    protocol: str
    accuracy: Floats
    draws: Floats


@dataclass(frozen=True)
class Average:
    """A mean over protocols and data sets, and the ends that hold it in nine of ten draws."""

    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Rank:
    """A method's rank.

    Args:
        name: Of the method.
        mean: Mean over data sets of the mean over families of the mean over protocols.
        first: Probability that it is first.
        interval: Ranks that hold it with probability 0.9 at least.
        probabilities: Of rank 1, 2 ... M.
        win_rate: Share of the other methods that it is above, equal ones counted half: (M - rank) / (M - 1).
        improvability: 1 - e / E, of its error rate E and the lowest one, e; 0 where it is the best.
    """

    name: str
    mean: float
    first: float
    interval: tuple[int, int]
    probabilities: tuple[float, ...]
    win_rate: Average
    improvability: Average


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all methods are alike.

    Args:
        chi2: Friedman's statistic.
        f: That of Iman and Davenport, (T - 1) chi2 / (T (M - 1) - chi2); None where it is infinite.
        p: Of f.
    """

    chi2: float
    f: float | None
    p: float


def family(protocol: str) -> str:
    """The family a protocol counts in; one that is not known is a family of its own."""
    return next((name for name, members in FAMILIES.items() if protocol in members), protocol)


def ranks(scores: Floats) -> Floats:
    """(..., M) rank of each score, 1 for the highest; equal ones share the mean of their ranks."""
    above, equal = _places(scores)
    return np.asarray(above + (equal + 1) / 2)


def improvability(accuracies: Floats) -> Floats:
    """(..., M) share of each method's error rate that it has over the lowest; 0 of an error rate of 0."""
    errors = np.clip(1 - accuracies, 0.0, None)  # draws may pass 1
    best = errors.min(-1, keepdims=True)
    return np.asarray(1 - np.divide(best, errors, out=np.ones_like(errors), where=errors > 0))


def mean_ranks(tasks: Iterable[Task], scores: Iterable[Floats]) -> tuple[list[Hashable], Floats]:
    """Data sets, and (T, ..., M) mean rank of each method in each: over protocols in families, then over families.

    Args:
        tasks: What was measured.
        scores: (..., M) for each task.
    """
    sums = _FamilySums()
    for task, values in zip(tasks, scores, strict=True):
        sums.add(task, ranks(values))
    return sums.means()


@final
class _FamilySums:
    """Values summed in each family of each data set, so that those of single tasks need not be kept.

    Single precision is enough: ranks are whole numbers or halves, whose sums are exact.
    """

    def __init__(self) -> None:
        self.found: dict[Hashable, dict[str, tuple[int, NDArray[np.float32]]]] = defaultdict(dict)

    def add(self, task: Task, values: Floats) -> None:
        """Count a task's values, (..., M)."""
        count, total = self.found[task.data].get(family(task.protocol), (0, np.zeros((), np.float32)))
        self.found[task.data][family(task.protocol)] = count + 1, total + values.astype(np.float32)

    def means(self) -> tuple[list[Hashable], Floats]:
        """Data sets, and (T, ..., M) as `mean_ranks` gives them."""
        means = [
            np.mean([total.astype(np.float64) / count for count, total in families.values()], axis=0)
            for families in self.found.values()
        ]
        return list(self.found), np.stack(means)


def rank_distribution(names: Sequence[str], tasks: Iterable[Task], level: float = 0.9, seed: int = 0) -> list[Rank]:
    """Ranks over all tasks, the best mean first, by joint bootstrap of data sets, test images and seeds.

    Each draw takes the accuracies of its test images and seeds, and as many data sets with replacement as there are;
    one data set shows nothing of others. Equal places are shared: a draw in which two are first gives half to each.

    Args:
        names: Of the M methods.
        tasks: P of them, in any number of data sets; each is looked at once.
        level: Of the intervals.
        seed: Of the draw of data sets.
    """
    accuracies, draws_of, errors, errors_drawn = (_FamilySums() for _ in range(4))
    for task in tasks:
        accuracies.add(task, ranks(task.accuracy))
        draws_of.add(task, ranks(task.draws))
        errors.add(task, improvability(task.accuracy))
        errors_drawn.add(task, improvability(task.draws))
    observed, drawn = accuracies.means()[1], draws_of.means()[1]  # (T, M), (T, B, M)
    sets, draws, m = drawn.shape
    times = np.random.default_rng(seed).multinomial(sets, np.full(sets, 1 / sets), draws)  # (B, T)
    average, improvable = (np.einsum("bt,tbm->bm", times, values) / sets for values in (drawn, errors_drawn.means()[1]))
    above, equal = _places(-average)  # (B, M): it holds the places above + 1 to above + equal
    place = np.arange(1, m + 1)
    held = (place > above[..., None]) & (place <= (above + equal)[..., None])  # (B, M, M)
    probabilities = (held / equal[..., None]).mean(0)  # (M, M)
    tail = (1 - level) / 2
    low = np.quantile(above + 1, tail, axis=0, method="inverted_cdf")
    high = np.quantile(above + equal, 1 - tail, axis=0, method="inverted_cdf")
    mean = observed.mean(0)
    wins = _averages((m - mean) / max(1, m - 1), (m - average) / max(1, m - 1), tail)
    to_gain = _averages(errors.means()[1].mean(0), improvable, tail)
    return [
        Rank(
            *(names[i], float(mean[i]), float(chance[0]), (int(low[i]), int(high[i])), tuple(map(float, chance))),
            *(wins[i], to_gain[i]),
        )
        for i, chance in sorted(enumerate(probabilities), key=lambda item: float(mean[item[0]]))
    ]


def _averages(means: Floats, draws: Floats, tail: float) -> list[Average]:
    """Of (M,) means and (B, M) draws."""
    ends = np.quantile(draws, (tail, 1 - tail), axis=0)
    return [Average(float(mean), (float(low), float(high))) for mean, low, high in zip(means, *ends, strict=True)]


def friedman(scores: Floats) -> Friedman:
    """Friedman's test with Iman and Davenport's statistic, which is less timid.

    Args:
        scores: (T, M) of each method on each data set, T and M at least 2; data sets are independent of each other.
    """
    from scipy.special import fdtrc

    sets, m = scores.shape
    assert sets > 1 and m > 1
    placed = ranks(scores)
    _, equal = _places(scores)
    alike = 1 - float((equal**2 - 1).sum()) / (sets * m * (m * m - 1))  # sum over ties of t^3 - t, each member t^2 - 1
    if alike == 0:
        return Friedman(0.0, 0.0, 1.0)  # all methods equal on all data sets
    squares = float(((placed.sum(0)) ** 2).sum()) / sets
    chi2 = (12 * squares / (m * (m + 1)) - 3 * sets * (m + 1)) / alike
    rest = sets * (m - 1) - chi2
    if rest < 1e-9 * sets:  # all data sets order the methods alike
        return Friedman(chi2, None, 0.0)
    f = (sets - 1) * chi2 / rest
    return Friedman(chi2, f, float(fdtrc(m - 1, (m - 1) * (sets - 1), max(0.0, f))))


def kendall(scores: Floats) -> Floats:
    """(P, P) Kendall's tau-b between protocols: 1 if they order the methods alike, -1 if in reverse.

    NaN beside a protocol by which all methods are equal.

    Args:
        scores: (P, M) of each method by each protocol.
    """
    first, second = np.triu_indices(scores.shape[1], 1)
    signs = np.sign(scores[:, first] - scores[:, second])  # (P, pairs of methods)
    untied = np.abs(signs).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(signs @ signs.T / np.sqrt(np.outer(untied, untied)))


def _places(scores: Floats) -> tuple[NDArray[Any], NDArray[Any]]:
    """(..., M) how many are above each, and how many equal it, itself included; equal to nine digits."""
    above = np.zeros(scores.shape, np.int64)
    equal = np.zeros(scores.shape, np.int64)
    for m in range(scores.shape[-1]):  # one method at a time: all at once is (..., M, M)
        difference = scores[..., m, None] - scores
        above += difference > 1e-9
        equal += np.abs(difference) <= 1e-9
    return above, equal
