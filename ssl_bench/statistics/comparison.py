"""Methods on the same test images: how much they differ, how sure that is, and what could have been seen.

Two methods err mostly on the same images, so the interval of their difference is narrower than the intervals of either
suggest. Everything here pairs them image by image. It is longer than 300 lines because draws of images and of seeds and
what is concluded from them are one model of the error: neither is right beside another version of the other.

Letters: M methods, S seeds (runs), R repetitions within a run, N test images, B draws.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from ssl_bench.statistics.intervals import LEVEL, variance_of_draws

Floats: TypeAlias = NDArray[np.float64]
Verdict: TypeAlias = Literal["better", "tie", "undecided", "one seed"]

DRAWS = 10_000
MARGIN = 0.003  # two accuracies closer than this are equal for all practical purposes
POWER = 0.8
MOST_KEPT = 20_000_000  # draws of images that are kept, a byte each


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """What a method answered.

    Args:
        name: Of the method.
        right: (S, R, N) whether each test image was classified rightly; or the part of each image in a number
            that is no accuracy, whose mean the number is.
        seeds: Of the S runs. The same name and seed is the same run, whatever the protocol.
        one_seed: Whether this is one run where another seed would give another: it stands for itself, and nothing that
            is found of it is found of its method.
    """

    name: str
    right: NDArray[Any]
    seeds: tuple[int, ...] = (0,)
    one_seed: bool = False

    def __post_init__(self) -> None:
        assert self.right.ndim == 3 and len(self.right) == len(self.seeds), (self.right.shape, self.seeds)

    @functools.cached_property
    def shares(self) -> Floats:
        """(N,) share of right answers to each image."""
        return np.asarray(self.right.mean((0, 1)))

    @functools.cached_property
    def variance_of_seeds(self) -> tuple[float, float]:
        """What the S runs add to the variance of their mean, as `variance_of_draws` has it."""
        return variance_of_draws(self.right.mean(1))


@dataclass(frozen=True)
class Pair:
    """A method and one that is not above it.

    Args:
        a: The method with the higher accuracy.
        b: The other.
        difference: Accuracy of a less that of b.
        interval: Its 95 % interval.
        p: Of no difference: McNemar's mid-p between two runs, otherwise by hierarchical bootstrap.
        exact: McNemar's exact p; None where there are several seeds or repetitions.
        adjusted: p after Holm, over all pairs of methods; None where one of the two is a single run.
        detectable: The difference that would be found significant four times in five, one test alone.
        verdict: `tie`: the interval lies within +-0.3 points, whichever is ahead. `better`: a is, adjusted p < 0.05.
            `undecided`: neither is shown. `one seed`: one of the two is a single run, so that interval and p are of
            these two networks on other test images, and of no method.
        seed_share: Part of the difference's variance that is of seeds; the rest is of test images.
    """

    a: str
    b: str
    difference: float
    interval: tuple[float, float]
    p: float
    exact: float | None
    adjusted: float | None
    detectable: float
    verdict: Verdict
    seed_share: float = 0.0

    def times_needed(self, more: Literal["seeds", "images"]) -> float | None:
        """How many times as many seeds, or test images, would show this difference four times in five, one test alone.

        None where the other's variance alone is too much for that; the quantile of so few seeds is kept, so that it is
        a few more than needed.
        """
        own = self.seed_share if more == "seeds" else 1 - self.seed_share
        left = (self.difference / self.detectable) ** 2 - (1 - own) if self.detectable > 0 else 1.0
        return max(1.0, own / left) if left > 0 else None


@dataclass(frozen=True)
class Comparison:
    """Pairs, and the names of the methods that are not significantly worse than the best; none of a single run."""

    pairs: tuple[Pair, ...]
    unbeaten: tuple[str, ...]


def compare(
    methods: Sequence[Answers],
    images: Floats,
    seeds: Floats,
    repeats: str = "",
    level: float = LEVEL,
    most: int | None = None,
) -> Comparison:
    """All pairs of methods under one protocol.

    Args:
        methods: M of them, on the same test images in the same order.
        images: (B, M) of `image_draws`.
        seeds: (B, M) of `seed_draws`.
        repeats: What the R are: `draws` at random, the same ones for all methods, or `conditions` that are all there
            are.
        level: Of the intervals; 1 - level is the rate of false findings in the whole table.
        most: Methods of which all pairs are made; of more, the best alone is compared with each other one.
    """
    assert len({method.right.shape[1:] for method in methods}) == 1, "not the same images, or not as many repetitions"
    accuracy = [float(method.shares.mean()) for method in methods]
    order = sorted(range(len(methods)), key=lambda m: -accuracy[m])
    known = [m for m in order if not methods[m].one_seed]
    raw = [
        _pair(methods[a], methods[b], images[:, a] - images[:, b], seeds[:, a] - seeds[:, b], repeats, level)
        for a, b in places_of_pairs(order, known, most)
    ]
    return judged(methods, known, raw, level)


def judged(methods: Sequence[Answers], known: Sequence[int], raw: Sequence[Pair], level: float) -> Comparison:
    """Pairs after Holm, with verdicts, and the methods that are not significantly worse than the best.

    Args:
        methods: M of them.
        known: Places of those of several seeds, the highest accuracy first.
        raw: Pairs with their own p.
        level: Of the intervals.
    """
    tested = [index for index, pair in enumerate(raw) if pair.verdict != "one seed"]
    pairs = list(raw)
    for index, adjusted in zip(tested, holm([raw[index].p for index in tested]), strict=True):
        significant = adjusted < 1 - level
        verdict: Verdict = "tie" if tied(raw[index].interval) else "better" if significant else "undecided"
        pairs[index] = replace(raw[index], adjusted=adjusted, verdict=verdict)
    if len(known) < 2:
        return Comparison(tuple(pairs), ())
    best = methods[known[0]].name
    beaten = {pair.b for pair in pairs if pair.a == best and pair.adjusted is not None and pair.adjusted < 1 - level}
    return Comparison(tuple(pairs), tuple(methods[m].name for m in known if methods[m].name not in beaten))


def places_of_pairs(order: Sequence[int], known: Sequence[int], most: int | None) -> list[tuple[int, int]]:
    """Pairs of methods, the higher accuracy first: all, or those of the best (of several seeds, if any is)."""
    if most is None or len(order) <= most:
        return list(itertools.combinations(order, 2))
    best = (known or order)[0]
    place = order.index(best)
    return [(best, m) if order.index(m) > place else (m, best) for m in order if m != best]


def image_draws(shares: Floats, labels: NDArray[Any], draws: int = DRAWS, seed: int = 0) -> Floats:
    """(B, M) how far accuracies move when the test images are drawn again, each class's among themselves.

    A draw takes the same images for all rows: differences of columns are a paired bootstrap. Deviations of a class of n
    images are scaled by sqrt(n / (n - 1)), for n drawn of n vary by (n - 1) / n of what they should. Classes of one
    image are drawn from together.

    Args:
        shares: (M, N) right answers, or their share.
        labels: (N,) class of each image.
        draws: B.
        seed: The same seed draws the same images, whatever the rows.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    classes = np.where(counts[classes] == 1, -1, classes)
    moved = np.zeros((draws, len(shares)))
    members = [np.flatnonzero(classes == one) for one in np.unique(classes)]
    times = _times_drawn(tuple(map(len, members)), draws, seed)
    for own, parts in zip(members, times, strict=True):
        n = len(own)
        values = shares[:, own].T.astype(float)  # (n, M)
        for start, drawn in parts:
            moved[start : start + len(drawn)] += ((drawn - 1.0) @ values) * math.sqrt(n / (n - 1))
    return np.asarray(moved / shares.shape[1])


def _times_drawn(counts: tuple[int, ...], draws: int, seed: int) -> Iterable[Iterable[tuple[int, NDArray[Any]]]]:
    """For each class of so many images, (draw, how often the following draws take each image) part by part.

    Tables of the same test images draw the same: where that is small it is kept.
    """
    if sum(counts) * draws <= MOST_KEPT:
        return _kept_times(counts, draws, seed)
    rng = np.random.default_rng(seed)
    return (_times_of_class(n, draws, rng) for n in counts)


@functools.lru_cache(maxsize=2)
def _kept_times(counts: tuple[int, ...], draws: int, seed: int) -> list[list[tuple[int, NDArray[Any]]]]:
    rng = np.random.default_rng(seed)
    return [[(at, _smallest(times)) for at, times in _times_of_class(n, draws, rng)] for n in counts]


def _smallest(times: NDArray[Any]) -> NDArray[Any]:
    return times.astype(np.uint8) if times.max() < 256 else times


def _times_of_class(n: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, 4_000_000 // n)  # bounds the memory
    for start in range(0, draws if n > 1 else 0, step):
        some = min(step, draws - start)
        picks = rng.integers(0, n, (some, n)) + n * np.arange(some)[:, None]
        yield start, np.bincount(picks.ravel(), minlength=some * n).reshape(some, n)


def seed_draws(
    methods: Sequence[Answers],
    repeats: str = "",
    block: str = "",
    protocol: str = "",
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """(B, M) how far accuracies move when the runs are done again with other seeds; 0 for a method of one run.

    Two to five seeds are too few to be drawn from (three give ten different samples, none beyond the three). Instead
    each seed's deviation from their mean gets a normal weight of its own, scaled so that the variance is s^2 / S: the
    multiplier bootstrap (van der Vaart and Wellner, 1996, section 2.9). A run has one weight for all protocols: a lucky
    seed is lucky in each. Random repetitions are weighted likewise, and alike for all methods, which share them.

    Args:
        methods: M of them.
        repeats: What the R are: `draws` at random, or else.
        block: Names what the runs belong to; runs of different blocks have weights of their own.
        protocol: Names what the repetitions belong to.
        draws: B.
        seed: Of the weights.
    """
    moved = np.zeros((draws, len(methods)))
    for column, method in enumerate(methods):
        accuracy = method.right.mean(2)  # (S, R)
        moved[:, column] = _weighted(
            accuracy.mean(1), [f"{block}\n{method.name}\n{s}" for s in method.seeds], draws, seed
        )
        if repeats == "draws":
            names = [f"{block}\n{protocol}\nrepetition\n{r}" for r in range(accuracy.shape[1])]
            moved[:, column] += _weighted(accuracy.mean(0), names, draws, seed)
    return moved


def mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """McNemar's exact p and mid-p that two classifiers are equally accurate, of two sides.

    Of the m = only_a + only_b images that one alone has right, each falls to either with probability 1/2: exact is
    2 P(X <= min), mid-p counts the observed value half on each side (Fagerland, Lydersen and Laake, 2013).

    Args:
        only_a: Images that a alone has right.
        only_b: Images that b alone has right.
    """
    from scipy.special import bdtr, gammaln

    total, few = only_a + only_b, min(only_a, only_b)
    twice = 2 * float(bdtr(few, total, 0.5)) if total else 2.0
    point = math.exp(gammaln(total + 1) - gammaln(few + 1) - gammaln(total - few + 1) - total * math.log(2))
    return min(1.0, twice), min(1.0, twice - point)


def paired_error(only_a: int, only_b: int, n: int) -> float:
    """Standard error of the difference of two accuracies on n images: sqrt(b + c - (b - c)^2 / n) / n."""
    return math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / n) / n


def detectable_difference(error: float, level: float = LEVEL, power: float = POWER) -> float:
    """The difference found significant with probability `power`, of a standard error: 2.8 of it at 95 % and 0.8."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2) + ndtri(power)) * error


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those below alpha, any false rejection at all has probability alpha (Holm, 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def tied(interval: tuple[float, float], margin: float = MARGIN) -> bool:
    """Whether a difference is shown to be within +-margin: two one-sided tests at once, by its interval."""
    return -margin < interval[0] and interval[1] < margin


def _pair(a: Answers, b: Answers, images: Floats, seeds: Floats, repeats: str, level: float) -> Pair:
    """A pair before Holm, of its draws (B,)."""
    difference = float(a.shares.mean() - b.shares.mean())
    verdict: Verdict = "one seed" if a.one_seed or b.one_seed else "undecided"
    if (only := answered_alone(a, b)) is not None:
        exact, p = mcnemar(*only)
        detectable = detectable_difference(paired_error(*only, a.right.shape[2]), level)
        return Pair(a.name, b.name, difference, _ends(difference + images, level), p, exact, None, detectable, verdict)
    errors, seed_share = _calibrated(a, b, images, seeds, repeats)
    moved = difference + errors
    sides = (np.sum(moved <= 0), np.sum(moved >= 0))
    p = min(1.0, 2 * (int(min(sides)) + 1) / (len(moved) + 1))
    low, high = _ends(moved, level)
    error = (high - low) / 2 / detectable_difference(1.0, level, power=0.5)  # the half width as so many of it
    detectable = detectable_difference(error, level)
    return Pair(a.name, b.name, difference, (low, high), p, None, None, detectable, verdict, seed_share)


def answered_alone(a: Answers, b: Answers) -> tuple[int, int] | None:
    """Images that each of two runs alone has right; None where there is more than a run, or no right and wrong."""
    if a.right.shape[:2] != (1, 1) or b.right.shape[:2] != (1, 1) or not a.right.dtype == bool == b.right.dtype:
        return None
    return int(np.sum(a.right & ~b.right)), int(np.sum(b.right & ~a.right))


def _calibrated(a: Answers, b: Answers, images: Floats, seeds: Floats, repeats: str) -> tuple[Floats, float]:
    """Draws of the difference's error whose percentiles cover what they promise, however few the seeds.

    And the part of its variance that is of seeds and repetitions.

    Drawing seeds and images counts twice what a seed does to single images, once as spread of the seeds and once as
    spread of the images (Owen, "The pigeonhole bootstrap", 2007): it is taken from the images'. And the variance of few
    seeds is uncertain: draws are scaled by sqrt(df / chi^2_df), as Student's are, with Satterthwaite's degrees of
    freedom, the images' variance counted as known.

    Simulated coverage of the 95 % interval with 2, 3 and 5 seeds: 93.7 to 96.5 %, whether seeds err on the same images
    or on different ones. Drawing seeds with replacement, then images, and no more: 83 to 99 %.
    """
    total = float(images.var())
    spread, own, df = variances(a, b, total, repeats)
    moved = seeds + images * math.sqrt(own / total) if total > 0 else seeds
    share = spread / (spread + own) if spread + own > 0 else 0.0
    if df == math.inf:
        return moved, share
    return np.asarray(moved * np.sqrt(df / np.random.default_rng(1).chisquare(df, len(moved)))), share


def variances(a: Answers, b: Answers, images: float, repeats: str) -> tuple[float, float, float]:
    """Of a difference's variance: the part of seeds and repetitions, that of images, and Satterthwaite's df.

    Args:
        a: A method.
        b: Another.
        images: Variance by the test images alone, in which what a seed does to single images is counted again.
        repeats: As in `compare`.
    """
    parts = [(*method.variance_of_seeds, len(method.right) - 1) for method in (a, b)]
    if repeats == "draws" and a.right.shape[1] > 1:  # one draw varies by nothing
        parts.append((*variance_of_draws(a.right.mean(0) - b.right.mean(0)), a.right.shape[1] - 1))
    spread = sum(variance for variance, _, _ in parts)
    own = max(0.0, images - sum(twice for _, twice, _ in parts))
    uncertain = sum(variance**2 / df for variance, _, df in parts if df)
    return spread, own, (spread + own) ** 2 / uncertain if uncertain else math.inf


def _weighted(values: Floats, names: Sequence[str], draws: int, seed: int) -> Floats:
    """(B,) deviations of the mean of S values, with normal weights that belong to the names."""
    s = len(values)
    if s == 1:
        return np.zeros(draws)
    weights = np.stack([_normals(name, draws, seed) for name in names], axis=1)  # (B, S)
    return np.asarray(weights @ (values - values.mean()) / math.sqrt(s * (s - 1)))


@functools.lru_cache(maxsize=256)  # of a method's runs, which have the same under each protocol
def _normals(name: str, draws: int, seed: int) -> Floats:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16], "little")]).standard_normal(draws)


def _ends(draws: Floats, level: float) -> tuple[float, float]:
    """Quantiles as `np.quantile` interpolates them, without what it does besides."""
    places = [(len(draws) - 1) * share for share in ((1 - level) / 2, (1 + level) / 2)]
    whole = [int(place) for place in places]
    known = np.partition(draws, sorted({at for low in whole for at in (low, min(low + 1, len(draws) - 1))}))
    return tuple(_between(known, place, at) for place, at in zip(places, whole, strict=True))  # type: ignore[return-value]


def _between(known: Floats, place: float, at: int) -> float:
    low, high, part = float(known[at]), float(known[min(at + 1, len(known) - 1)]), place - at
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
