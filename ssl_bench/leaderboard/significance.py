"""The methods of a block under each protocol, test image by test image: pairs, verdicts, ranks, agreement.

`ssl-bench compare` prints it; the leaderboard takes its marks and pictures from it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.console import say
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.answers import ColumnAnswers, answers_of, asked_columns, protocol_name
from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.grouping import chosen_by
from ssl_bench.leaderboard.table import Block, Table, checked_branches
from ssl_bench.leaderboard.text import block_facts, block_title
from ssl_bench.records.benchmark import benchmark_of
from ssl_bench.records.store import load_readable, say_unread
from ssl_bench.statistics.comparison import DRAWS, Comparison, Pair, compare, image_draws, seed_draws
from ssl_bench.statistics.intervals import over_classes
from ssl_bench.statistics.many_methods import compare_with_best
from ssl_bench.statistics.ranking import Friedman, Rank, Task, family, friedman, kendall, mean_ranks, rank_distribution

MOST_METHODS = 40  # of which all pairs are made, and ranks
MOST_PAIRS, MOST_TESTED = 2_000, 100_000_000  # pairs of a report, and their draws: more would take minutes
RANK_DRAWS = 1_000  # of a report of more pairs
MOST_DRAWN = 1000  # rows of several protocols whose images are drawn at once

LARGE = (
    "there are more pairs than can be tested in seconds: of each protocol the best method is compared with each other "
    "one, by Student's t of the same variances; --protocol NAME, or fewer runs, make all pairs"
)


@dataclass(frozen=True)
class MethodScore:
    """A method under a protocol: accuracy, its intervals, and whether it is not significantly worse than the best.

    Args:
        name: Of the method.
        kind: pretrained, baseline or imported.
        seeds: Of its runs.
        accuracy: Mean over them.
        interval: 95 %.
        over_classes: 95 %, for new classes too; None where there is one class, beyond the best 40 methods, and in a
            report of more than 2,000 pairs.
        unbeaten: Whether it is not significantly worse than the best; never where it is of one seed.
        covers: What the interval is over.
        one_seed: Whether it stands for a single run, and not for its method.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    accuracy: float
    interval: tuple[float, float]
    over_classes: tuple[float, float] | None
    unbeaten: bool
    covers: str = "seeds and test images"
    one_seed: bool = False


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
    """Ranks of what was pretrained with several seeds, over the protocols under which each of these was measured.

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
    """What stands side by side: same images, same architecture.

    Args:
        title: Of the block.
        facts: Of its architecture and images.
        protocols: Under which there are two methods or more.
        ranking: Over them; None where fewer than two methods have several seeds.
        left_out: Predictions that cannot be compared, and why.
        matched: Whether budgets are the same.
    """

    title: str
    facts: str
    protocols: tuple[Protocol, ...]
    ranking: Ranking | None
    left_out: tuple[str, ...] = ()
    matched: bool = True


@dataclass(frozen=True)
class Report:
    """All blocks; ranks over blocks, where methods of the same name are in several; what a reader should know."""

    blocks: tuple[BlockComparison, ...]
    ranking: Ranking | None
    notes: tuple[str, ...]


def build_report(paths: Iterable[Path], protocol: str = "", by: str | None = None, branches: str = "default") -> Report:
    """What `comparison` renders."""
    paths = list(paths)
    budget = chosen_by(by, benchmark_of(paths))
    networks = checked_branches(branches)
    runs, unread = load_readable(paths)
    say_unread(unread)
    table = build(runs, budget, branches=networks)
    titles = {column.title for block in table.blocks for column in block.columns}
    known = titles | set(map(protocol_name, titles))
    if protocol and protocol not in known:
        there = ", ".join(sorted(map(protocol_name, known))) or "none"
        raise UserError(f"no results of protocol {protocol!r}{near(protocol, known)}; there are {there}")
    blocks, ranked, left_out = [], [], []
    many = _is_large(table, protocol)
    for block in table.blocks:
        found = answers_of(block, protocol) if block.ranked else []
        left_out += [line for column in found for line in (*column.left_out, *column.missing)]
        found = [column for column in found if len(column.methods) > 1]
        if found:
            compared, complete = _block_compared(block, found, many=many)
            blocks.append(compared)
            ranked += [[(f"{block_title(block)} {block.fingerprint}".strip(), column) for column in complete]]
    if not blocks:
        raise UserError(left_out[0] if left_out else _nothing(table, protocol))
    for line in left_out:
        say(f"warning: not compared: {line}")
    ranked = [columns for columns in ranked if columns]
    over_all = _ranking([column for columns in ranked for column in columns]) if len(ranked) > 1 else None
    oracles = [column.title for block in table.blocks for column in block.columns if column.oracle]
    notes = [*table.notes, *(f"{title} chose on the test images and is not compared" for title in oracles)]
    notes += [LARGE] if many else []
    notes += [f"{block_title(block)}, nor compared" for block in table.blocks if not block.ranked]
    notes += [f"left out, of {file.folder.name}: {file.reason}" for file in unread]
    notes += [f"not compared: {line}" for line in left_out]
    return Report(tuple(blocks), over_all, tuple(notes))


def _is_large(table: Table, protocol: str) -> bool:
    """Whether there are too many pairs, or draws of them, for all to be tested."""
    pairs = tested = 0
    for block in table.blocks:
        for index in asked_columns(block, protocol) if block.ranked else ():
            cells = [cell for row in block.rows if (cell := row.cells[index])]
            own = _count_of_pairs(len(cells))
            pairs += own
            tested += own * max(DRAWS, 100 * _count_of_pairs(sum(not cell.one_seed for cell in cells)))
    return pairs > MOST_PAIRS or tested > MOST_TESTED


def _count_of_pairs(methods: int) -> int:
    """All of so many methods, or of many those with the best."""
    return math.comb(methods, 2) if methods <= MOST_METHODS else methods


def _nothing(table: Table, protocol: str) -> str:
    names = sorted({row.name for block in table.blocks for row in block.rows})
    what = f"two methods with results of {protocol}" if protocol else "two methods with results of one protocol"
    return (
        f"nothing to compare among {', '.join(names) or 'runs without results'}: {what}, on the same test images, "
        "with the same architecture (and budget, unless --by nothing), are needed"
    )


def compared_block(block: Block, least: int = DRAWS) -> BlockComparison | None:
    """A block's methods compared, as far as their predictions are there; None where nothing can be.

    Args:
        block: Of a table.
        least: Draws of the bootstrap, at least.
    """
    columns = answers_of(block, "")
    found = [column for column in columns if len(column.methods) > 1]
    left_out = tuple(line for column in columns for line in column.left_out)
    left_out += tuple(line for column in columns if column.methods for line in column.missing)
    if found:
        return replace(_block_compared(block, found, least)[0], left_out=left_out)
    return BlockComparison(block_title(block), block_facts(block), (), None, left_out) if left_out else None


def _block_compared(
    block: Block, columns: list[ColumnAnswers], least: int = DRAWS, many: bool = False
) -> tuple[BlockComparison, list[ColumnAnswers]]:
    """A block's comparison, of all pairs or of many those with the best, and the columns that its ranks are made of."""
    title = block_title(block)
    protocols = _compared_with_best(title, columns) if many else _compared(title, columns, least)
    complete = _complete(columns)
    left_out = tuple(c.title for c in columns if c.title not in {kept.title for kept in complete})
    ranking = _ranking([("", column) for column in complete], left_out) if len(complete) > 1 else None
    compared = BlockComparison(title, block_facts(block), protocols, ranking, matched=block.matched)
    return compared, complete


def _compared(block: str, columns: list[ColumnAnswers], least: int = DRAWS) -> tuple[Protocol, ...]:
    """Compare each column's methods; columns on the same images share their draws."""
    groups: dict[tuple[Any, ...], list[ColumnAnswers]] = defaultdict(list)
    for column in columns:
        groups[column.images].append(column)
    made = {}
    for group in groups.values():
        pairs = max(_count_of_tests(column) for column in group)
        draws = max(least, 100 * pairs)  # so that the smallest p of all pairs is below 5 % after Holm
        rows = sum(len(column.methods) for column in group)
        for part in [group] if rows <= MOST_DRAWN else [[column] for column in group]:
            shares = np.stack([method.shares for column in part for method in column.methods])
            moved = image_draws(shares, part[0].labels, draws)
            for column in part:
                images, moved = np.split(moved, [len(column.methods)], axis=1)
                seeds = seed_draws(column.methods, column.repeats, block, column.title, draws)
                if 1 < sum(column.ranked) <= MOST_METHODS:
                    column.moved = images + seeds  # for ranks
                compared = compare(column.methods, images, seeds, column.repeats, most=MOST_METHODS)
                made[column.title] = _protocol(column, compared)
    return tuple(made[column.title] for column in columns)


def _compared_with_best(block: str, columns: list[ColumnAnswers]) -> tuple[Protocol, ...]:
    """The best method of each column compared with each other one; draws are for ranks alone."""
    found = []
    for column in columns:
        if 1 < sum(column.ranked) <= MOST_METHODS:
            shares = np.stack([method.shares for method in column.methods])
            seeds = seed_draws(column.methods, column.repeats, block, column.title, RANK_DRAWS)
            column.moved = (image_draws(shares, column.labels, RANK_DRAWS) + seeds).astype(np.float32)
        compared = compare_with_best(column.methods, column.labels, column.repeats)
        found.append(_protocol(column, compared, wider=0))
    return tuple(found)


def _count_of_tests(column: ColumnAnswers) -> int:
    """Pairs that Holm's correction is over: those of methods of several seeds."""
    several = sum(not method.one_seed for method in column.methods)
    return math.comb(several, 2) if len(column.methods) <= MOST_METHODS else several


def _protocol(column: ColumnAnswers, compared: Comparison, wider: int = MOST_METHODS) -> Protocol:
    """A column's methods and pairs; the best have an interval for new classes, too."""
    scores = []
    best = set(sorted(range(len(column.cells)), key=lambda m: -column.cells[m].mean)[:wider])
    for place, (cell, kind, answers) in enumerate(zip(column.cells, column.kinds, column.methods, strict=True)):
        right = answers.right.mean(1) if len(answers.seeds) > 1 else answers.right[0]  # (S, N) or (R, N)
        repeats = "draws" if len(answers.seeds) > 1 else column.repeats
        right = right if len(right) > 1 else right[0]
        classes = over_classes(right, column.labels, repeats) if place in best else None
        unbeaten = answers.name in compared.unbeaten
        interval = (cell.low, cell.high)
        scores.append(
            MethodScore(
                *(answers.name, kind, cell.seeds, cell.mean, interval, classes, unbeaten, cell.covers, cell.one_seed)
            )
        )
    scores.sort(key=lambda score: -score.accuracy)
    return Protocol(column.title, column.variant, len(column.labels), tuple(scores), compared.pairs)


def _complete(columns: list[ColumnAnswers]) -> list[ColumnAnswers]:
    """The columns that hold all methods that are ranked, and those alone; none where there are fewer than two."""
    kept = []
    names = sorted({m.name for c in columns for m, ranked in zip(c.methods, c.ranked, strict=True) if ranked})
    if len(names) > MOST_METHODS:
        return []
    for column in columns:
        place = {method.name: index for index, method in enumerate(column.methods)}
        alone = {method.name for method in column.methods if method.one_seed}
        if len(names) > 1 and set(names) <= set(place) - alone:
            order = [place[name] for name in names]
            methods = [column.methods[i] for i in order]
            kept.append(replace(column, methods=methods, moved=column.moved[:, order]))
    return kept


def _ranking(columns: list[tuple[str, ColumnAnswers]], left_out: tuple[str, ...] = ()) -> Ranking | None:
    """Ranks over (block, column), of the methods that all columns hold; None where there are fewer than two."""
    names = sorted(set.intersection(*({method.name for method in column.methods} for _, column in columns)))
    if len(names) < 2:
        return None
    draws = min(len(column.moved) for _, column in columns)

    def tasks() -> Iterator[Task]:
        for block, column in columns:
            place = {method.name: index for index, method in enumerate(column.methods)}
            order = [place[name] for name in names]
            accuracy = np.array([float(column.methods[i].shares.mean()) for i in order])
            data = (block, column.images)
            yield Task(data, protocol_name(column.title), accuracy, accuracy + column.moved[:draws, order])

    found = [replace(task, draws=np.zeros(0)) for task in tasks()]
    sets, means = mean_ranks(found, [task.accuracy for task in found])
    tau = kendall(np.stack([task.accuracy for task in found])).tolist()
    return Ranking(
        protocols=tuple(f"{column.title} [{block}]" if block else column.title for block, column in columns),
        families=tuple(dict.fromkeys(family(task.protocol) for task in found)),
        left_out=left_out,
        data_sets=len(sets),
        ranks=tuple(rank_distribution(names, tasks())),
        tau=tuple(tuple(None if math.isnan(value) else value for value in row) for row in tau),
        friedman=friedman(-means) if len(sets) > 1 else None,
    )
