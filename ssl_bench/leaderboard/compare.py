"""`ssl-bench compare`: which differences between methods are significant, image by image. Torch-free.

Methods are compared where the leaderboard puts them side by side: same images, same architecture. A method of one seed
is shown beside the others, and nothing is concluded of it.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.significance import Protocol, Ranking, Report, build_report
from ssl_bench.leaderboard.text import BUDGETS, MORE_SEEDS, TEST_IMAGES_ONLY, aligned, percent, visible, wrapped

FORMATS = ("table", "json")
LEGEND = (
    "Accuracies and differences in % with 95 % intervals; `covers` says over what those of accuracies are, and they "
    "are given for new classes too. Differences are paired on the same test images, for new ones (and new seeds, where "
    "there are several).",
    "p: McNemar's mid-p between two runs, hierarchical bootstrap where there are several seeds or repetitions; Holm: p "
    "adjusted for all pairs of the table. detectable: the difference that one test of this kind finds four times in "
    "five. tie: the interval lies within ±0.3.",
)
WIN_RATE = (
    "Win rate: share of the other methods that it is above, in %. Improvability: share of its error rate that the best "
    "method does not have, in %; 0 where it is the best. Both are averaged as ranks are, and have 90 % intervals."
)
STAR = "* not significantly worse than the best (Holm, 5 %)."
ONE_SEED = (
    f"one seed: the pair's interval and p are over {TEST_IMAGES_ONLY}, of two networks and of no method. Differences "
    f"mean nothing about methods yet, since another seed may reverse them: {MORE_SEEDS}."
)


def comparison(
    paths: Iterable[Path],
    protocol: str = "",
    format: str = "table",
    by: str | None = None,
    branches: str = "default",
) -> str:
    """The comparison of all methods among the runs at or below the paths.

    Args:
        paths: Run folders, or folders of them.
        protocol: Only this one, such as knn, or knn@cifar100 on other images; all of them by default.
        format: table or json.
        by: Budget that methods must share to be compared: views, epochs or nothing; by default as `leaderboard`.
        branches: Networks of a run that are compared: the default one, or all.

    Raises:
        UserError: Fewer than two methods to compare, predictions missing, or not of the same test images.
    """
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{near(format, FORMATS)}; there are {', '.join(FORMATS)}")
    report = build_report(paths, protocol, by, branches)
    if format == "table":
        return terminal(report)
    return json.dumps({"format": 1, **dataclasses.asdict(report)}, indent=1, allow_nan=False) + "\n"


def terminal(report: Report) -> str:
    """The report for a terminal of 100 columns."""
    lines: list[str] = []
    for block in report.blocks:
        lines += [*wrapped(block.title), *wrapped(block.facts), ""]
        for protocol in block.protocols:
            lines += [*_protocol_lines(protocol), ""]
        if block.ranking:
            lines += [*_ranking_lines(block.ranking), ""]
    if report.ranking:
        lines += ["Over all of the above:", "", *_ranking_lines(report.ranking), ""]
    protocols = [protocol for block in report.blocks for protocol in block.protocols]
    stars = any(method.unbeaten for protocol in protocols for method in protocol.methods)
    single = any(pair.verdict == "one seed" for protocol in protocols for pair in protocol.pairs)
    paragraphs = [*LEGEND, *([STAR] if stars else []), *([ONE_SEED] if single else [])]
    paragraphs += [] if all(block.matched for block in report.blocks) else [f"{BUDGETS}."]
    lines += [line for paragraph in paragraphs for line in wrapped(paragraph)]
    lines += [line for note in report.notes for line in wrapped(f"Note: {note}.", indent="    ")]
    return "\n".join(lines) + "\n"


def _protocol_lines(protocol: Protocol) -> list[str]:
    heads = [["method", "n", "accuracy", "95 %", "covers", "over classes", ""]]
    rows = [
        [
            *(visible(score.name), f"n={len(score.seeds)}", percent(score.accuracy), _interval(score.interval)),
            *(score.covers, _interval(score.over_classes), "*" if score.unbeaten else ""),
        ]
        for score in protocol.methods
    ]
    pair_heads = [["pair", "difference", "95 %", "p", "Holm", "detectable", "verdict"]]
    pairs = [
        [
            *(visible(f"{pair.a} - {pair.b}"), f"{100 * pair.difference:+.2f}", _interval(pair.interval, 2)),
            *(
                _p(pair.p),
                "-" if pair.adjusted is None else _p(pair.adjusted),
                f"{100 * pair.detectable:.2f}",
                pair.verdict,
            ),
        ]
        for pair in protocol.pairs
    ]
    title = f"{protocol.title} ({protocol.variant}), {protocol.n_test} test images"
    return [*wrapped(title), "", *_ruled(heads + rows, "<>>><><"), "", *_ruled(pair_heads + pairs, "<>>>>><")]


def _ranking_lines(ranking: Ranking) -> list[str]:
    what = f"{len(ranking.protocols)} protocols, averaged first within {', '.join(ranking.families)}"
    sets = f"{ranking.data_sets} sets of test images" if ranking.data_sets > 1 else "one set of test images"
    heads = ["method", "mean rank", "90 %", *(f"P({place})" for place in range(1, len(ranking.ranks) + 1))]
    rows = [
        [visible(rank.name), f"{rank.mean:.2f}", f"{rank.interval[0]} to {rank.interval[1]}"]
        + [f"{chance:.2f}" for chance in rank.probabilities]
        for rank in ranking.ranks
    ]
    lines = [*wrapped(f"Ranks over {what}; {sets}"), "", *_ruled([heads, *rows], "<" + ">" * (len(heads) - 1))]
    averages = [
        [visible(rank.name)]
        + [text for of in (rank.win_rate, rank.improvability) for text in (percent(of.mean), _interval(of.interval))]
        for rank in ranking.ranks
    ]
    lines += ["", *_ruled([["method", "win rate", "90 %", "improvability", "90 %"], *averages], "<>>>>")]
    lines += ["", *wrapped(WIN_RATE)]
    if ranking.left_out:
        lines += ["", *wrapped(f"Left out, for not every method was measured: {', '.join(ranking.left_out)}")]
    if ranking.friedman:
        f = "infinite" if ranking.friedman.f is None else f"{ranking.friedman.f:.2f}"
        lines += ["", f"Friedman over the sets: chi2 {ranking.friedman.chi2:.2f}, F {f}, p {_p(ranking.friedman.p)}"]
    if len(ranking.ranks) > 2 and len(ranking.protocols) > 1:
        numbers = [str(i) for i in range(1, len(ranking.protocols) + 1)]
        tau = [
            [f"{number} {visible(title)}", *("-" if value is None else f"{value:+.2f}" for value in row)]
            for number, title, row in zip(numbers, ranking.protocols, ranking.tau, strict=True)
        ]
        lines += ["", *_ruled([["Kendall's tau", *numbers], *tau], "<" + ">" * len(numbers))]
    return lines


def _ruled(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    lines = aligned(rows, sides)
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _interval(ends: tuple[float, float] | None, digits: int = 1) -> str:
    return f"[{100 * ends[0]:.{digits}f}, {100 * ends[1]:.{digits}f}]" if ends else "-"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
