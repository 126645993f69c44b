"""The one model of a leaderboard, from which every format is rendered.

Rows are methods, columns protocols; a block holds rows whose numbers may be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.units import duration
from ssl_bench.records.benchmark import BenchmarkInfo
from ssl_bench.records.store import Run

By: TypeAlias = Literal["views", "epochs", "nothing"]
Branches: TypeAlias = Literal["default", "all"]
DEFAULT_BY: By = "nothing"


def checked_branches(branches: str) -> Branches:
    """Which of a run's networks have rows, by name.

    Raises:
        UserError: There is no such choice.
    """
    if branches not in get_args(Branches):
        there = ", ".join(get_args(Branches))
        raise UserError(f"no branches {branches!r}{near(branches, get_args(Branches))}; there are {there}")
    return cast(Branches, branches)


def checked_by(by: str) -> By:
    """What makes a budget, by name.

    Raises:
        UserError: There is no such budget.
    """
    if by not in get_args(By):
        raise UserError(f"no budget {by!r}{near(by, get_args(By))}; there are {', '.join(get_args(By))}")
    return cast(By, by)


Images: TypeAlias = tuple[str, str]  # title and short hash
Key: TypeAlias = tuple[str, str]  # what every number of a column shares; what raw pixels have of their own


@dataclass(frozen=True)
class Cell:
    """A method under a protocol.

    Args:
        mean: Accuracy in [0, 1], over seeds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        seeds: Of the runs, in the order of `values`.
        values: Accuracy of each.
        n_test: Test images.
        covers: What the interval is over: test images; the draws that were repeated, too; or seeds, too.
        one_seed: Whether another seed would change the number by an amount that is not known: a difference from it is
            one of single runs, not of methods.
        best: Whether no mean of the column is higher, among those of several seeds; never where there are
            baselines alone.
        unbeaten: Whether it is best, or not significantly worse than the best.
        at_grid_boundary: Whether some run chose a value at the end of its grid, so that a wider one may give more.
        repeats: What was repeated in each: `draws` at random, `conditions` that are all there are, or nothing.
        files: Predictions of each; only for who compares them, no part of what is rendered.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    n_test: int
    covers: str = "test images"
    one_seed: bool = False
    best: bool = False
    unbeaten: bool = False
    at_grid_boundary: bool = False
    repeats: str = ""
    files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def half(self) -> float:
        """The wider side of the interval."""
        return max(self.high - self.mean, self.mean - self.low)


@dataclass(frozen=True)
class Column:
    """A protocol with its options on some test images.

    Args:
        title: The protocol's name, and what tells it from the block's other columns of that name.
        variant: The one that gives the number.
        oracle: Something was chosen on the test images: not to be compared with other columns, and nothing is best.
        test: What decides which cells are unbeaten: `paired`, image by image; `intervals` alone, where predictions are
            missing; or nothing, where nothing is ranked.
    """

    title: str
    variant: str
    oracle: bool = False
    test: Literal["", "paired", "intervals"] = ""


@dataclass(frozen=True)
class Row:
    """A method with its options.

    Args:
        name: The method's name, and the options in which it differs from the block's other rows of that name.
        kind: pretrained, baseline or imported.
        seeds: Of all its runs.
        epochs: Passes over the images; None for baselines and where unknown.
        views_per_image: Per pass.
        seconds: Of pretraining, mean over runs.
        flops: Of pretraining, mean over runs.
        device: What it was pretrained on.
        cells: One per column; None where there is no result.
        runs: Names of the run folders.
        members: The runs, with the results of this row's network; only for pictures, no part of what is rendered.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    epochs: float | None
    views_per_image: float
    seconds: float
    flops: float
    device: str
    cells: tuple[Cell | None, ...]
    runs: tuple[str, ...]
    members: tuple[Run, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class RowColumn:
    """A column about the rows themselves, beside their scores.

    Args:
        title: Its head.
        below: The second line of its head.
        text: What is shown.
        value: What it is sorted by; None where it is unknown.
    """

    title: str
    below: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None]


def epochs(row: Row) -> str:
    """`100 x 2`: passes, and views of an image in each."""
    return "-" if row.epochs is None else f"{row.epochs:.4g} x {row.views_per_image:.3g}"


ROW_COLUMNS = (
    RowColumn("epochs", "x views", epochs, lambda row: row.epochs and row.epochs * row.views_per_image),
    RowColumn("time", "", lambda row: duration(row.seconds), lambda row: row.seconds or None),
)


@dataclass(frozen=True)
class PublishedRow:
    """What others published about a method: shown beside ours, with its source, and never ranked.

    Args:
        name: Of the method.
        source: Where it was published.
        values: Accuracy in [0, 1] for each column of the block; None where there is none.
    """

    name: str
    source: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Block:
    """Numbers that may be compared with each other.

    Args:
        data: Title of the images.
        fingerprint: Eight characters of their hash.
        backbone: Name, with what overrides it; empty for raw pixels alone.
        params: Of the backbone.
        gflops_per_image: Of its forward pass.
        tokens: Of its blocks; 0 for a ResNet.
        budget: Effective epochs (or epochs); None for baselines alone, where unknown, and where rows differ in it.
        budget_text: The same in words; why nothing is ranked, where nothing is.
        matched: Whether all that was pretrained has the same budget.
        columns: Protocols.
        rows: Methods, best linear probe first, then baselines.
        published: Numbers of others.
        ranked: Whether its rows may be ranked; not where budgets are unknown, for they may differ.
    """

    data: str
    fingerprint: str
    backbone: str
    params: int
    gflops_per_image: float
    tokens: int
    budget: float | None
    budget_text: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    published: tuple[PublishedRow, ...] = ()
    ranked: bool = True
    matched: bool = True

    @property
    def row_columns(self) -> tuple[RowColumn, ...]:
        """What every format shows about the rows: nothing of baselines alone, which have no budget and no cost."""
        return ROW_COLUMNS if any(row.kind != "baseline" for row in self.rows) else ()


@dataclass(frozen=True)
class Absent:
    """A run that has no place in a block, or one of its files that has none, and why; seed None where it is unknown."""

    run: str
    method: str
    seed: int | None
    status: str
    reason: str


@dataclass(frozen=True)
class Table:
    """All blocks, what is missing from them, what a reader should know, and the benchmark that made the runs."""

    blocks: tuple[Block, ...]
    absent: tuple[Absent, ...]
    notes: tuple[str, ...]
    benchmark: BenchmarkInfo | None = None
