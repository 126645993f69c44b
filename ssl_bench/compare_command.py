"""`ssl-bench compare`: which differences between methods are significant, image by image. Torch-free.

Methods are compared where the leaderboard puts them side by side: same images, same architecture, same budget.
"""

import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_bench.comparison import DRAWS, Answers, Pair, compare, image_draws, seed_draws
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.table import Block, Cell, build, checked_by
from ssl_bench.leaderboard.text import aligned, block_facts, block_title, percent, visible, wrapped
from ssl_bench.ranking import Friedman, Rank, Task, family, friedman, kendall, mean_ranks, rank_distribution
from ssl_bench.results import load_runs, read_predictions
from ssl_bench.statistics import over_classes

FORMATS = ("table", "json")
LEGEND = (
    "Accuracies and differences in % with 95 % intervals: accuracies for new test images (and new seeds, where n > 1), "
    "and for new classes too; differences paired on the same test images, for new ones (and new seeds). A method of "
    "n=1 speaks for that run only.",
    "p: McNemar's mid-p between two runs, hierarchical bootstrap where there are several seeds or repetitions; Holm: p "
    "adjusted for all pairs of the table. detectable: the difference that one test of this kind finds four times in "
    "five. tie: the interval lies within ±0.3.",
    "* not significantly worse than the best (Holm, 5 %).",
)


@dataclass(frozen=True)
class MethodScore:
    """A method under a protocol: accuracy, its intervals, and whether it is not significantly worse than the best."""

    name: str
    kind: str
    seeds: tuple[int, ...]
    accuracy: float
    interval: tuple[float, float]
    over_classes: tuple[float, float] | None
    unbeaten: bool


@dataclass(frozen=True)
class Protocol:
    """All methods under one protocol, best first, and all their pairs."""

    title: str
    variant: str
    n_test: int
    methods: tuple[MethodScore, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Ranking:
    """Ranks of what was pretrained, over the protocols (and data sets) under which every method was measured.

    Args:
        protocols: Their titles.
        families: Protocols' families, each counted once.
        left_out: Protocols under which some method was not measured.
        data_sets: Number of different sets of test images.
        ranks: Of each method, best mean first.
        tau: Kendall's tau-b between the protocols; None where a protocol has all methods equal.
        friedman: Over data sets; None where there is one only.
    """

    protocols: tuple[str, ...]
    families: tuple[str, ...]
    left_out: tuple[str, ...]
    data_sets: int
    ranks: tuple[Rank, ...]
    tau: tuple[tuple[float | None, ...], ...]
    friedman: Friedman | None


@dataclass(frozen=True)
class BlockComparison:
    """What stands side by side: same images, architecture and budget."""

    title: str
    facts: str
    protocols: tuple[Protocol, ...]
    ranking: Ranking | None


@dataclass(frozen=True)
class Report:
    """All blocks; ranks over blocks, where methods of the same name are in several; what a reader should know."""

    blocks: tuple[BlockComparison, ...]
    ranking: Ranking | None
    notes: tuple[str, ...]


@dataclass(eq=False)
class _Column:
    """A protocol with the answers of its methods, on the way to a comparison."""

    title: str
    variant: str
    cells: list[Cell]
    kinds: list[str]
    methods: list[Answers]
    repeats: str
    ids: list[str]
    labels: NDArray[Any]
    moved: NDArray[Any] = field(default_factory=lambda: np.zeros(0))  # (B, M), of all that chance moves

    @property
    def images(self) -> tuple[Any, ...]:
        """What tells its test images from those of other columns."""
        return tuple(self.ids), self.labels.tobytes()


def comparison(paths: Iterable[Path], protocol: str = "", format: str = "table", by: str = "views") -> str:
    """The comparison of all methods among the runs at or below the paths.

    Args:
        paths: Run folders, or folders of them.
        protocol: Only this one, such as knn, or knn@cifar100 on other images; all of them by default.
        format: table or json.
        by: Budget that methods must share to be compared: views, epochs or nothing.

    Raises:
        UserError: Fewer than two methods to compare, predictions missing, or not of the same test images.
    """
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{near(format, FORMATS)}; there are {', '.join(FORMATS)}")
    report = build_report(paths, protocol, by)
    if format == "table":
        return terminal(report)
    return json.dumps({"format": 1, **dataclasses.asdict(report)}, indent=1, allow_nan=False) + "\n"


def build_report(paths: Iterable[Path], protocol: str = "", by: str = "views") -> Report:
    """What `comparison` renders."""
    budget = checked_by(by)
    table = build(load_runs(paths), budget)
    known = {name for block in table.blocks for column in block.columns for name in (column.title, _name(column.title))}
    if protocol and protocol not in known:
        there = ", ".join(sorted(map(_name, known))) or "none"
        raise UserError(f"no results of protocol {protocol!r}{near(protocol, known)}; there are {there}")
    columns = [_columns(block, protocol) for block in table.blocks]
    if not any(columns):
        names = sorted({row.name for block in table.blocks for row in block.rows})
        what = f"two methods with results of {protocol}" if protocol else "two methods with results of one protocol"
        raise UserError(
            f"nothing to compare among {', '.join(names) or 'runs without results'}: {what}, on the same test images, "
            "with the same architecture and budget (--by nothing: whatever the budget), are needed"
        )
    blocks, ranked = [], []
    for block, found in zip(table.blocks, columns, strict=True):
        if found:
            protocols = _compared(block_title(block), found)
            complete = _complete(found)
            left_out = tuple(c.title for c in found if c.title not in {kept.title for kept in complete})
            ranking = _ranking([("", column) for column in complete], left_out) if len(complete) > 1 else None
            blocks.append(BlockComparison(block_title(block), block_facts(block), protocols, ranking))
            ranked += [[(f"{block_title(block)} {block.fingerprint}".strip(), column) for column in complete]]
    ranked = [columns for columns in ranked if columns]
    over_all = _ranking([column for columns in ranked for column in columns]) if len(ranked) > 1 else None
    oracles = [column.title for block in table.blocks for column in block.columns if column.oracle]
    notes = [*table.notes, *(f"{title} chose on the test images and is not compared" for title in oracles)]
    return Report(tuple(blocks), over_all, tuple(notes))


def _name(title: str) -> str:
    """A protocol's name, of a column's title."""
    return re.split(r"[@ ]", title, maxsplit=1)[0]


def _columns(block: Block, protocol: str) -> list[_Column]:
    """The block's protocols under which there are two methods."""
    found = []
    for index, column in enumerate(block.columns):
        cells = [(row, cell) for row in block.rows if (cell := row.cells[index])]
        if len(cells) < 2 or column.oracle or protocol not in ("", column.title, _name(column.title)):
            continue
        answers: list[Answers] = []
        ids: list[str] = []
        labels, first = np.zeros(0), None
        for row, cell in cells:
            right = []
            for path in cell.files:
                read = read_predictions(path)
                if first is None:
                    first, ids, labels = path, list(read.ids), np.asarray(read.labels)
                elif list(read.ids) != ids or not np.array_equal(read.labels, labels):
                    raise UserError(f"{path} and {first} are not of the same test images: they cannot be compared")
                right.append(np.asarray(read.variants["prediction"]) == labels)  # (R, N)
            if len({len(rows) for rows in right} | {method.right.shape[1] for method in answers}) > 1:
                raise UserError(f"{cell.files[0]} and {first} were not repeated as often: evaluate their runs again")
            name = f"{row.name} (imported)" if row.kind == "imported" else row.name
            answers.append(Answers(name, np.stack(right), cell.seeds))
        repeats = {cell.repeats for _, cell in cells} - {""}
        found.append(
            _Column(
                *(column.title, column.variant, [cell for _, cell in cells], [row.kind for row, _ in cells]),
                *(answers, "conditions" if repeats == {"conditions"} else "draws", ids, labels),
            )
        )
    return found


def _compared(block: str, columns: list[_Column]) -> tuple[Protocol, ...]:
    """Compare each column's methods; columns on the same images share their draws."""
    groups: dict[tuple[Any, ...], list[_Column]] = defaultdict(list)
    for column in columns:
        groups[column.images].append(column)
    made = {}
    for group in groups.values():
        most = max(math.comb(len(column.methods), 2) for column in group)
        draws = max(DRAWS, 100 * most)  # so that the smallest p of all pairs is below 5 % after Holm
        shares = np.stack([method.shares for column in group for method in column.methods])
        moved = image_draws(shares, group[0].labels, draws)
        for column in group:
            images, moved = np.split(moved, [len(column.methods)], axis=1)
            seeds = seed_draws(column.methods, column.repeats, block, column.title, draws)
            made[column.title] = _protocol(column, images, seeds)
    return tuple(made[column.title] for column in columns)


def _protocol(column: _Column, images: NDArray[Any], seeds: NDArray[Any]) -> Protocol:
    column.moved = images + seeds
    compared = compare(column.methods, images, seeds, column.repeats)
    scores = []
    for cell, kind, answers in zip(column.cells, column.kinds, column.methods, strict=True):
        right = answers.right.mean(1) if len(answers.seeds) > 1 else answers.right[0]  # (S, N) or (R, N)
        repeats = "draws" if len(answers.seeds) > 1 else column.repeats
        wider = over_classes(right if len(right) > 1 else right[0], column.labels, repeats)
        unbeaten = answers.name in compared.unbeaten
        scores.append(MethodScore(answers.name, kind, cell.seeds, cell.mean, (cell.low, cell.high), wider, unbeaten))
    scores.sort(key=lambda score: -score.accuracy)
    return Protocol(column.title, column.variant, len(column.labels), tuple(scores), compared.pairs)


def _complete(columns: list[_Column]) -> list[_Column]:
    """The columns that hold all methods that were pretrained, and those alone; none where there are fewer than two."""
    kept = []
    names = sorted({m.name for c in columns for m, kind in zip(c.methods, c.kinds, strict=True) if kind != "baseline"})
    for column in columns:
        place = {method.name: index for index, method in enumerate(column.methods)}
        if len(names) > 1 and set(names) <= set(place):
            order = [place[name] for name in names]
            methods = [column.methods[i] for i in order]
            kept.append(replace(column, methods=methods, moved=column.moved[:, order]))
    return kept


def _ranking(columns: list[tuple[str, _Column]], left_out: tuple[str, ...] = ()) -> Ranking | None:
    """Ranks over (block, column), of the methods that all columns hold; None where there are fewer than two."""
    names = sorted(set.intersection(*({method.name for method in column.methods} for _, column in columns)))
    if len(names) < 2:
        return None
    draws = min(len(column.moved) for _, column in columns)
    tasks = []
    for block, column in columns:
        place = {method.name: index for index, method in enumerate(column.methods)}
        order = [place[name] for name in names]
        accuracy = np.array([float(column.methods[i].shares.mean()) for i in order])
        tasks.append(
            Task((block, column.images), _name(column.title), accuracy, accuracy + column.moved[:draws, order])
        )
    sets, means = mean_ranks(tasks, [task.accuracy for task in tasks])
    tau = kendall(np.stack([task.accuracy for task in tasks])).tolist()
    return Ranking(
        protocols=tuple(f"{column.title} [{block}]" if block else column.title for block, column in columns),
        families=tuple(dict.fromkeys(family(task.protocol) for task in tasks)),
        left_out=left_out,
        data_sets=len(sets),
        ranks=tuple(rank_distribution(names, tasks)),
        tau=tuple(tuple(None if math.isnan(value) else value for value in row) for row in tau),
        friedman=friedman(-means) if len(sets) > 1 else None,
    )


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
    lines += [line for words in LEGEND for line in wrapped(words)]
    lines += [line for note in report.notes for line in wrapped(f"Note: {note}.", indent="    ")]
    return "\n".join(lines) + "\n"


def _protocol_lines(protocol: Protocol) -> list[str]:
    heads = [["method", "n", "accuracy", "95 %", "over classes", ""]]
    rows = [
        [
            *(visible(score.name), f"n={len(score.seeds)}", percent(score.accuracy), _interval(score.interval)),
            *(_interval(score.over_classes), "*" if score.unbeaten else ""),
        ]
        for score in protocol.methods
    ]
    pair_heads = [["pair", "difference", "95 %", "p", "Holm", "detectable", "verdict"]]
    pairs = [
        [
            *(visible(f"{pair.a} - {pair.b}"), f"{100 * pair.difference:+.2f}", _interval(pair.interval, 2)),
            *(_p(pair.p), _p(pair.adjusted), f"{100 * pair.detectable:.2f}", pair.verdict),
        ]
        for pair in protocol.pairs
    ]
    title = f"{protocol.title} ({protocol.variant}), {protocol.n_test} test images"
    return [*wrapped(title), "", *_ruled(heads + rows, "<>>>><"), "", *_ruled(pair_heads + pairs, "<>>>>><")]


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
