"""Tests and intervals of differences, against published examples, SciPy, statsmodels, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from ssl_bench.statistics.comparison import (
    Answers,
    Comparison,
    Pair,
    compare,
    detectable_difference,
    holm,
    image_draws,
    mcnemar,
    paired_error,
    seed_draws,
    tied,
)


def compared(methods: list[Answers], labels: np.ndarray, repeats: str = "", draws: int = 4000) -> Comparison:
    shares = np.stack([method.shares for method in methods])
    return compare(methods, image_draws(shares, labels, draws), seed_draws(methods, repeats, draws=draws), repeats)


def run(name: str, right: np.ndarray) -> Answers:
    """A method of one run."""
    return Answers(name, right[None, None])


def test_mcnemar_by_hand() -> None:
    """1 against 7 (Fagerland, Lydersen and Laake, 2013, table 1): exact 0.070, mid-p 0.039."""
    exact, mid_p = mcnemar(1, 7)
    assert exact == pytest.approx(2 * (1 + 8) / 2**8, rel=1e-12)
    assert mid_p == pytest.approx((2 * 1 + 8) / 2**8, rel=1e-12)
    assert mcnemar(0, 0) == (1.0, 1.0)
    assert mcnemar(5, 5) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("b", "c"), [(0, 6), (3, 9), (25, 25), (120, 171), (4000, 4300), (20_000, 19_000)])
def test_mcnemar_against_statsmodels_and_scipy(b: int, c: int) -> None:
    exact, mid_p = mcnemar(b, c)
    assert exact == pytest.approx(statsmodels_mcnemar([[0, b], [c, 0]], exact=True).pvalue, rel=1e-8)
    few = min(b, c)
    expected = 2 * stats.binom.cdf(few - 1, b + c, 0.5) + stats.binom.pmf(few, b + c, 0.5)
    assert mid_p == pytest.approx(expected, rel=1e-8)
    assert (exact, mid_p) == mcnemar(c, b)


def test_error_and_detectable_difference_at_the_size_of_imagenet() -> None:
    """50,000 images of which 15 % divide the two: an error of 0.173 points, of 0.49 that would be seen; 8 %: 0.35."""
    assert paired_error(3750, 3750, 50_000) == pytest.approx(0.00173, abs=5e-6)
    assert detectable_difference(paired_error(3750, 3750, 50_000)) == pytest.approx(0.0049, abs=1e-4)
    assert detectable_difference(paired_error(2000, 2000, 50_000)) == pytest.approx(0.0035, abs=1e-4)


def test_error_is_that_of_the_mean_of_differences() -> None:
    difference = np.repeat([1.0, -1.0, 0.0], [30, 12, 158])
    assert paired_error(30, 12, 200) == pytest.approx(difference.std() / math.sqrt(200), rel=1e-12)


def test_a_detectable_difference_is_detected_four_times_in_five() -> None:
    rng, n, divided = np.random.default_rng(0), 10_000, 0.1
    difference = detectable_difference(math.sqrt(divided / n))
    shares = [(divided + difference) / 2, (divided - difference) / 2, 1 - divided]
    found = [mcnemar(int(b), int(c))[1] < 0.05 for b, c, _ in rng.multinomial(n, shares, 3000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)


def test_holm_by_hand_and_against_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    for seed in range(5):
        p = np.random.default_rng(seed).beta(0.3, 3, 28).tolist()
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), rel=1e-12)


def test_a_tie_is_an_interval_within_the_margin() -> None:
    assert tied((-0.0029, 0.0029)) and tied((0.001, 0.002))
    assert not tied((-0.001, 0.0031)) and not tied((-0.0031, 0.001)) and not tied((0.004, 0.005))


def test_image_draws_have_the_variance_of_a_stratified_mean() -> None:
    """Each class's unbiased variance over its size, weighted; classes of one image are one stratum."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(7), [2, 3, 10, 40, 1, 1, 1])
    values = rng.random((2, len(labels)))
    draws = image_draws(values, labels, 60_000)
    strata = np.minimum(labels, 4)
    sizes = np.bincount(strata)
    expected = sum(np.cov(values[:, strata == c]) * n for c, n in enumerate(sizes)) / len(labels) ** 2
    np.testing.assert_allclose(np.cov(draws.T), expected, rtol=0.03, atol=1.5e-5)
    assert draws.mean(0) == pytest.approx([0, 0], abs=1e-3)


def test_image_draws_take_the_same_images_for_all_rows() -> None:
    rng, labels = np.random.default_rng(0), np.arange(60) % 4
    values = rng.random((3, 60))
    draws = image_draws(np.concatenate([values, 1 - values[:1]]), labels, 50)
    np.testing.assert_allclose(draws[:, 0], -draws[:, 3], atol=1e-12)
    np.testing.assert_allclose(image_draws(values[1:2], labels, 50)[:, 0], draws[:, 1], atol=1e-12)


def test_image_draws_against_a_loop() -> None:
    labels = np.array([0, 1, 0, 1, 1])
    values = np.array([[1.0, 0.0, 0.5, 1.0, 0.0]])
    rng, expected = np.random.default_rng(3), np.zeros(20)
    for members in ([0, 2], [1, 3, 4]):
        n = len(members)
        for draw, picks in enumerate(rng.integers(0, n, (20, n))):
            moved = sum(values[0, members[i]] for i in picks) - values[0, members].sum()
            expected[draw] += moved * math.sqrt(n / (n - 1)) / 5
    np.testing.assert_allclose(image_draws(values, labels, 20, seed=3)[:, 0], expected, atol=1e-12)


def seeds(name: str, accuracies: list[float], n: int = 1000) -> Answers:
    """A method whose runs have exactly these accuracies."""
    right = np.stack([np.arange(n) < round(p * n) for p in accuracies])
    return Answers(name, right[:, None], tuple(range(len(accuracies))))


def test_seed_draws_have_the_variance_of_a_mean_of_seeds() -> None:
    methods = [seeds("a", [0.7, 0.72, 0.77]), seeds("b", [0.5, 0.4]), seeds("c", [0.9])]
    draws = seed_draws(methods, draws=100_000)
    expected = [stats.sem([0.7, 0.72, 0.77]), stats.sem([0.5, 0.4]), 0]
    assert draws.std(0) == pytest.approx(expected, rel=0.02)
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.02


def test_a_run_is_lucky_in_all_protocols_and_repetitions_for_all_methods() -> None:
    first, second = (seed_draws([seeds("a", p)], draws=9) for p in ([0.7, 0.72, 0.77], [0.4, 0.44, 0.54]))
    np.testing.assert_allclose(second, 2 * first, atol=1e-12)
    assert not np.allclose(
        seed_draws([seeds("a", [0.7, 0.8])], block="x", draws=9), seed_draws([seeds("a", [0.7, 0.8])], draws=9)
    )
    repeated = [Answers(name, seeds("", [0.6, 0.7]).right.transpose(1, 0, 2)) for name in "ab"]
    draws = seed_draws(repeated, "draws", protocol="fewshot", draws=9)
    np.testing.assert_allclose(draws[:, 0], draws[:, 1], atol=1e-12)
    assert draws.any() and not seed_draws(repeated, "conditions", draws=9).any()
    assert not np.allclose(draws, seed_draws(repeated, "draws", protocol="other", draws=9))


def test_two_runs() -> None:
    rng, labels = np.random.default_rng(0), np.arange(2000) % 10
    a = rng.random(2000) < 0.8
    b = np.where(rng.random(2000) < 0.1, ~a, a)
    comparison = compared([run("b", b), run("a", a)], labels, draws=20_000)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    pair = comparison.pairs[0]
    assert (pair.a, pair.b) == ("a", "b")
    assert pair.difference == pytest.approx((only_a - only_b) / 2000)
    assert (pair.exact, pair.p) == mcnemar(only_a, only_b) and pair.adjusted == pair.p
    error = paired_error(only_a, only_b, 2000)
    expected = (pair.difference - 1.96 * error, pair.difference + 1.96 * error)
    assert pair.interval == pytest.approx(expected, abs=0.05 * error)
    assert pair.detectable == pytest.approx(2.8016 * error, rel=1e-4)
    assert pair.verdict == "better" and comparison.unbeaten == ("a",)


def test_verdicts_and_the_set_not_significantly_worse_than_the_best() -> None:
    rng, labels = np.random.default_rng(1), np.arange(20_000) % 10
    best = rng.random(20_000) < 0.8
    twin, near, far = best.copy(), best.copy(), best.copy()
    twin[:10] = ~twin[:10]  # ten images of 20,000
    near[6000:14_000] = rng.random(8000) < 0.795
    far[12_000:] = rng.random(8000) < 0.6
    methods = [run("far", far), run("near", near), run("best", best), run("twin", twin)]
    comparison = compared(methods, labels, draws=1000)
    verdicts = {frozenset((pair.a, pair.b)): pair.verdict for pair in comparison.pairs}
    assert verdicts[frozenset(("best", "twin"))] == "tie"
    assert verdicts[frozenset(("best", "far"))] == verdicts[frozenset(("near", "far"))] == "better"
    assert verdicts[frozenset(("best", "near"))] == "undecided"
    assert "far" not in comparison.unbeaten and {"best", "twin", "near"} == set(comparison.unbeaten)
    assert len(comparison.pairs) == 6 and all(pair.difference >= 0 for pair in comparison.pairs)
    assert [pair.adjusted for pair in comparison.pairs] == holm([pair.p for pair in comparison.pairs])


def test_only_the_best_decides_who_is_significantly_worse() -> None:
    """`worse` is a part of `near`, which beats it clearly; `best` errs on other images, so that nothing is clear."""
    n = 2000
    near, best = np.arange(n) % 10 < 7, (np.arange(n) + 5) % 10 < 7
    best[np.flatnonzero(~best)[:20]] = True
    worse = near.copy()
    worse[np.flatnonzero(near)[:15]] = False
    comparison = compared([run("worse", worse), run("near", near), run("best", best)], np.zeros(n, int), draws=500)
    verdicts = {(pair.a, pair.b): pair.verdict for pair in comparison.pairs}
    assert verdicts == {("best", "near"): "undecided", ("best", "worse"): "undecided", ("near", "worse"): "better"}
    assert comparison.unbeaten == ("best", "near", "worse")


def test_the_same_answers_are_a_tie() -> None:
    right = np.random.default_rng(0).random((3, 1, 500)) < 0.7
    several = compared([Answers("a", right, (0, 1, 2)), run("b", right[0, 0])], np.arange(500) % 5)
    assert len(several.pairs) == 1
    alone = compared([run("a", right[0, 0]), run("b", right[0, 0])], np.arange(500) % 5).pairs[0]
    expected = Pair("a", "b", 0.0, (0.0, 0.0), 1.0, 1.0, 1.0, 0.0, "tie")
    assert alone == expected


def test_where_images_do_not_matter_seeds_are_compared_by_welchs_test() -> None:
    """Runs that err on images of their own: what the images add is in the spread of the seeds already."""
    rng, n = np.random.default_rng(0), 2000
    rates = {"a": [0.70, 0.75, 0.80], "b": [0.62, 0.71, 0.66, 0.69]}
    methods = [
        Answers(name, rng.random((len(p), 1, n)) < np.array(p)[:, None, None], tuple(range(len(p))))
        for name, p in rates.items()
    ]
    pair = compared(methods, np.arange(n) % 10, draws=12_000).pairs[0]
    welch = stats.ttest_ind(*(method.right.mean((1, 2)) for method in methods), equal_var=False)
    low, high = welch.confidence_interval()
    assert pair.interval == pytest.approx((low, high), abs=0.05 * (high - low))
    assert pair.p == pytest.approx(welch.pvalue, rel=0.1) and pair.exact is None
    assert pair.detectable == pytest.approx((high - low) / 2 / 1.96 * 2.8016, rel=0.05)


def test_draws_that_methods_share_are_compared_by_students_paired_test() -> None:
    rng, n = np.random.default_rng(0), 2000
    luck = np.array([0.0, 0.1, -0.08])[:, None]  # of the few labelled images
    a = rng.random((1, 3, n)) < 0.6 + luck
    b = rng.random((1, 3, n)) < 0.5 + luck + np.array([[0.04], [0.0], [-0.05]])
    pair = compared([Answers("a", a), Answers("b", b)], np.arange(n) % 10, "draws", 12_000).pairs[0]
    paired = stats.ttest_rel(a.mean(2)[0], b.mean(2)[0])
    low, high = paired.confidence_interval()
    assert pair.interval == pytest.approx((low, high), abs=0.05 * (high - low))
    assert pair.p == pytest.approx(paired.pvalue, rel=0.1)
    conditions = compared([Answers("a", a), Answers("b", b)], np.arange(n) % 10, "conditions").pairs[0]
    assert np.ptp(conditions.interval) < 0.5 * np.ptp(pair.interval)


def test_how_many_more_seeds_or_images_would_show_a_difference() -> None:
    """The error's variance, 0.9 of it seeds', has to fall to a quarter; images alone cannot do that."""
    pair = Pair("a", "b", 0.01, (-0.01, 0.03), 0.3, None, 0.3, 0.02, "undecided", seed_share=0.9)
    times = pair.times_needed("seeds")
    assert times == pytest.approx(6) and pair.times_needed("images") is None
    assert pytest.approx((0.01 / 0.02) ** 2) == 0.9 / 6 + 0.1
    alone = replace(pair, seed_share=0.0)
    assert alone.times_needed("images") == pytest.approx(4) and alone.times_needed("seeds") is None
    assert replace(pair, difference=0.03).times_needed("seeds") == 1, "what is enough is enough"
    assert replace(pair, difference=0.0).times_needed("seeds") is None


def test_the_part_of_seeds_in_a_differences_variance() -> None:
    rng, labels = np.random.default_rng(0), np.arange(2000) % 10
    images = rng.random((1, 1, 2000)) < 0.7
    flips = {name: [np.roll(images[0], 7 * seed * (name == "a"), 1) for seed in range(3)] for name in "ab"}
    same = [Answers(name, np.stack(right), (0, 1, 2)) for name, right in flips.items()]
    assert compared(same, labels).pairs[0].seed_share == pytest.approx(0, abs=0.01), "all seeds are equally accurate"
    lucky = [seeds("a", [0.5, 0.6, 0.7]), seeds("b", [0.4, 0.5, 0.6])]
    pair = compared(lucky, np.zeros(1000, int), draws=20_000).pairs[0]
    spread = 2 * stats.sem([0.5, 0.6, 0.7]) ** 2
    error = (pair.detectable / 2.8016) ** 2  # with Student's quantile of 4 degrees of freedom in place of 1.96
    assert pair.seed_share > 0.9 and error == pytest.approx(spread / pair.seed_share * (2.776 / 1.96) ** 2, rel=0.1)


def test_a_single_run_beside_several_seeds_adds_no_variance_of_seeds() -> None:
    """Seeds that err on the same images, beside a run that is always wrong: seeds vary, and images."""
    labels, several = np.zeros(1000, int), seeds("a", [0.70, 0.72, 0.77])
    pair = compared([several, run("b", np.zeros(1000, bool))], labels, draws=40_000).pairs[0]
    assert pair.difference == pytest.approx(0.73) and pair.exact is None
    spread, shares = stats.sem([0.70, 0.72, 0.77]) ** 2, several.shares
    residual = several.right[:, 0] - several.right.mean(2) - shares + 0.73
    images = shares.var(ddof=1) / 1000 - (residual**2).sum() / (2 * 999) / (3 * 1000)
    half = stats.t.ppf(0.975, (spread + images) ** 2 / (spread**2 / 2)) * math.sqrt(spread + images)
    assert pair.interval == pytest.approx((0.73 - half, 0.73 + half), abs=0.05 * half)


def coverage(pairs: list[Pair], difference: float = 0.0) -> float:
    """Share of the simulated comparisons whose interval holds the difference."""
    signed = [pair.interval if pair.a == "a" else (-pair.interval[1], -pair.interval[0]) for pair in pairs]
    return float(np.mean([low <= difference <= high for low, high in signed]))


def all_compared(a: np.ndarray, b: np.ndarray, labels: np.ndarray, draws: int = 1000) -> list[Pair]:
    """Many comparisons at once, (T, S, N) against (T, S, N), with the same draws of images but other weights."""
    images = image_draws(np.concatenate([a.mean(1), b.mean(1)]), labels, draws)
    pairs: list[Pair] = []
    for t in range(len(a)):
        methods = [Answers(name, x[t][:, None], tuple(range(x.shape[1]))) for name, x in (("a", a), ("b", b))]
        seeds = seed_draws(methods, block=str(t), draws=draws)
        pairs += compare(methods, images[:, [t, len(a) + t]], seeds).pairs
    return pairs


@pytest.mark.parametrize("difference", [0.0, 0.05])
def test_coverage_of_two_runs(difference: float) -> None:
    """The paired bootstrap's interval, and the size of McNemar's test where there is no difference."""
    rng, n, repeats = np.random.default_rng(5), 500, 1500
    hard = rng.beta(2, 1, (repeats, 1, n))
    a = rng.random((repeats, 1, n)) < hard
    b = rng.random((repeats, 1, n)) < hard * (1 - difference / (2 / 3))
    pairs = all_compared(a, b, np.arange(n) % 5)
    assert coverage(pairs, difference) == pytest.approx(0.95, abs=0.015)
    if not difference:
        assert np.mean([pair.p < 0.05 for pair in pairs]) == pytest.approx(0.05, abs=0.015)
        assert np.mean([pair.exact is not None and pair.exact < 0.05 for pair in pairs]) < 0.05


@pytest.mark.parametrize(
    ("count", "spread", "shared"),
    [(3, 0.03, True), (5, 0.01, True), (2, 0.01, False), (3, 0.003, False), (3, 0.03, False), (5, 0.01, False)],
)
@pytest.mark.integration
def test_coverage_of_several_seeds(count: int, spread: float, shared: bool) -> None:
    """Seeds that err on the same images, or (hard ones of each method alone, or of both) on different ones."""
    rng, n, repeats = np.random.default_rng(count), 300, 1500
    effects = spread * rng.standard_normal((2, repeats, count, 1))
    if shared:
        a, b = (rng.random((repeats, 1, n)) < 0.75 + effect for effect in effects)
    else:
        hard, own = rng.beta(1.5, 0.5, (2, repeats, 1, n))
        other = np.where(rng.random((repeats, 1, n)) < 0.5, hard, own)
        a, b = (rng.random((repeats, count, n)) < p + effect for p, effect in zip((hard, other), effects, strict=True))
    pairs = all_compared(a, b, np.arange(n) % 3)
    assert coverage(pairs) == pytest.approx(0.95, abs=0.015)
    assert np.mean([pair.p < 0.05 for pair in pairs]) == pytest.approx(0.05, abs=0.02)
