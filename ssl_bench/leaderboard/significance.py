"""The methods of a block under each protocol, test image by test image: pairs, verdicts, ranks, agreement.

`ssl-bench compare` prints it; the leaderboard takes its marks and pictures from it.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.table import Block, Cell, Column, Row, checked_by
from ssl_bench.leaderboard.text import block_facts, block_title, label
from ssl_bench.records.predictions import read_predictions
from ssl_bench.records.store import load_readable
from ssl_bench.statistics.comparison import DRAWS, Answers, Pair, compare, image_draws, seed_draws
from ssl_bench.statistics.intervals import over_classes
from ssl_bench.statistics.ranking import Friedman, Rank, Task, family, friedman, kendall, mean_ranks, rank_distribution


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
    speak: list[bool]  # whether it is ranked: no baseline, nor a network beside the one that speaks for its run
    methods: list[Answers]
    repeats: str
    ids: list[str]
    labels: NDArray[Any]
    moved: NDArray[Any] = field(default_factory=lambda: np.zeros(0))  # (B, M), of all that chance moves

    @property
    def images(self) -> tuple[Any, ...]:
        """What tells its test images from those of other columns."""
        return tuple(self.ids), self.labels.tobytes()


def build_report(paths: Iterable[Path], protocol: str = "", by: str = "views") -> Report:
    """What `comparison` renders."""
    budget = checked_by(by)
    runs, unread = load_readable(paths)
    table = build(runs, budget)
    known = {name for block in table.blocks for column in block.columns for name in (column.title, _name(column.title))}
    if protocol and protocol not in known:
        there = ", ".join(sorted(map(_name, known))) or "none"
        raise UserError(f"no results of protocol {protocol!r}{near(protocol, known)}; there are {there}")
    columns = [_columns(block, protocol) if block.ranked else [] for block in table.blocks]
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
            compared, complete = _block_compared(block, found)
            blocks.append(compared)
            ranked += [[(f"{block_title(block)} {block.fingerprint}".strip(), column) for column in complete]]
    ranked = [columns for columns in ranked if columns]
    over_all = _ranking([column for columns in ranked for column in columns]) if len(ranked) > 1 else None
    oracles = [column.title for block in table.blocks for column in block.columns if column.oracle]
    notes = [*table.notes, *(f"{title} chose on the test images and is not compared" for title in oracles)]
    notes += [f"{block_title(block)}, nor compared" for block in table.blocks if not block.ranked]
    notes += [f"left out, of {file.folder.name}: {file.reason}" for file in unread]
    return Report(tuple(blocks), over_all, tuple(notes))


def compared_block(block: Block, least: int = DRAWS) -> BlockComparison | None:
    """A block's methods compared, as far as their predictions are there; None where nothing can be.

    Args:
        block: Of a table.
        least: Draws of the bootstrap, at least.
    """
    found = _columns(block, "", lenient=True)
    return _block_compared(block, found, least)[0] if found else None


def _block_compared(block: Block, columns: list[_Column], least: int = DRAWS) -> tuple[BlockComparison, list[_Column]]:
    """A block's comparison, and the columns that its ranks are made of."""
    protocols = _compared(block_title(block), columns, least)
    complete = _complete(columns)
    left_out = tuple(c.title for c in columns if c.title not in {kept.title for kept in complete})
    ranking = _ranking([("", column) for column in complete], left_out) if len(complete) > 1 else None
    return BlockComparison(block_title(block), block_facts(block), protocols, ranking), complete


def _name(title: str) -> str:
    """A protocol's name, of a column's title."""
    return re.split(r"[@ ]", title, maxsplit=1)[0]


def _columns(block: Block, protocol: str, lenient: bool = False) -> list[_Column]:
    """The block's protocols under which there are two methods; `lenient` leaves out those that cannot be compared."""
    found = []
    speaking = _speaking(block)
    for index, column in enumerate(block.columns):
        cells = [(row, cell) for row in block.rows if (cell := row.cells[index])]
        if len(cells) < 2 or column.oracle or protocol not in ("", column.title, _name(column.title)):
            continue
        try:
            found.append(_column(column, cells, [label(row) in speaking for row, _ in cells]))
        except UserError:
            if not lenient:
                raise
    return found


def _speaking(block: Block) -> set[str]:
    """Labels of the rows that ranks are of: one for each run, though it may have a student and a teacher."""
    rows = [row for row in block.rows if row.kind != "baseline"]
    first = [row for row in rows if row.members[0].info.branch in ("", row.members[0].results[0].branch)]
    spoken = {run.folder for row in first for run in row.members}
    return {label(row) for row in rows if row in first or not spoken & {run.folder for run in row.members}}


def _column(column: Column, cells: Sequence[tuple[Row, Cell]], speak: list[bool]) -> _Column:
    """A protocol with what its methods answered, all on the same test images."""
    answers: list[Answers] = []
    ids: Sequence[str] = []
    labels, first = np.zeros(0), None
    for row, cell in cells:
        right = []
        for path in cell.files:
            read = read_predictions(path)
            if first is None:
                first, ids, labels = path, read.ids, np.asarray(read.labels)
                if not len(labels):
                    raise UserError(f"{path} is empty: evaluate its run again")
            elif read.ids != ids or not np.array_equal(read.labels, labels):
                raise UserError(f"{path} and {first} are not of the same test images: they cannot be compared")
            right.append(np.asarray(read.variants["prediction"]) == labels)  # (R, N)
        if len({len(rows) for rows in right} | {method.right.shape[1] for method in answers}) > 1:
            raise UserError(f"{cell.files[0]} and {first} were not repeated as often: evaluate their runs again")
        answers.append(Answers(label(row), np.stack(right), cell.seeds))
    repeats = {cell.repeats for _, cell in cells} - {""}
    return _Column(
        *(column.title, column.variant, [cell for _, cell in cells], [row.kind for row, _ in cells], speak),
        *(answers, "conditions" if repeats == {"conditions"} else "draws", list(ids), labels),
    )


def _compared(block: str, columns: list[_Column], least: int = DRAWS) -> tuple[Protocol, ...]:
    """Compare each column's methods; columns on the same images share their draws."""
    groups: dict[tuple[Any, ...], list[_Column]] = defaultdict(list)
    for column in columns:
        groups[column.images].append(column)
    made = {}
    for group in groups.values():
        most = max(math.comb(len(column.methods), 2) for column in group)
        draws = max(least, 100 * most)  # so that the smallest p of all pairs is below 5 % after Holm
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
    """The columns that hold all methods that speak, and those alone; none where there are fewer than two."""
    kept = []
    names = sorted({m.name for c in columns for m, speaks in zip(c.methods, c.speak, strict=True) if speaks})
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
