"""What the methods of a block answered to each test image: read from predictions, checked to be of the same images.

Predictions that are missing, damaged, or of other images than those of most methods cost their own method its place in
the comparison, and no more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.table import Block, Cell, Column, Row
from ssl_bench.leaderboard.text import label
from ssl_bench.records.predictions import Predictions, read_predictions
from ssl_bench.statistics.comparison import Answers


@dataclass(eq=False)
class ColumnAnswers:
    """A protocol with the answers of its methods, on the way to a comparison.

    Args:
        title: Of the column.
        variant: Of the protocol.
        cells: Of the methods.
        kinds: Of their rows.
        ranked: Whether ranks are of them: no baseline, several seeds, and the network that its run is ranked by.
        methods: Their answers.
        repeats: What was repeated: `draws` or `conditions`.
        ids: Of the test images.
        labels: (N,) their classes.
        left_out: Methods whose predictions are damaged or of other images, and why.
        missing: Methods without predictions, and where they would be.
        moved: (B, M), of all that chance moves.
    """

    title: str
    variant: str
    cells: list[Cell]
    kinds: list[str]
    ranked: list[bool]
    methods: list[Answers]
    repeats: str
    ids: Sequence[str]
    labels: NDArray[Any]
    left_out: list[str]
    missing: list[str]
    moved: NDArray[Any] = field(default_factory=lambda: np.zeros(0))

    @property
    def images(self) -> tuple[Any, ...]:
        """What tells its test images from those of other columns."""
        return tuple(self.ids), self.labels.tobytes()


def protocol_name(title: str) -> str:
    """A protocol's name, of a column's title."""
    return re.split(r"[@ ]", title, maxsplit=1)[0]


def answers_of(block: Block, protocol: str) -> list[ColumnAnswers]:
    """The block's protocols that have two methods; in each, those whose predictions can be compared."""
    ranked = _ranked_labels(block)
    return [
        _column(block.columns[index], [(row, cell) for row in block.rows if (cell := row.cells[index])], ranked)
        for index in asked_columns(block, protocol)
    ]


def asked_columns(block: Block, protocol: str) -> list[int]:
    """Places of the block's columns of a protocol, or of all where it is empty, that have two methods."""
    return [
        index
        for index, column in enumerate(block.columns)
        if not column.oracle
        and protocol in ("", column.title, protocol_name(column.title))
        and sum(row.cells[index] is not None for row in block.rows) > 1
    ]


def _ranked_labels(block: Block) -> set[str]:
    """Labels of the rows that ranks are of: one for each run, though its student may have a row beside its teacher."""
    rows = [row for row in block.rows if row.kind != "baseline"]
    first = [row for row in rows if row.members[0].info.branch in ("", row.members[0].results[0].branch)]
    known = {run.folder for row in first for run in row.members}
    return {label(row) for row in rows if row in first or not known & {run.folder for run in row.members}}


def _column(column: Column, cells: Sequence[tuple[Row, Cell]], ranked: set[str]) -> ColumnAnswers:
    """A protocol with what its methods answered; of other test images than most, or damaged: named and left out."""
    left_out: list[str] = []
    missing: list[str] = []
    groups: dict[tuple[Any, ...], list[tuple[Row, Cell, NDArray[Any]]]] = {}
    images: dict[tuple[Any, ...], Predictions] = {}
    for row, cell in cells:
        try:
            first, right = _answers(cell)
        except UserError as error:
            lines = left_out if all(path.exists() for path in cell.files) else missing
            lines.append(f"{label(row)} under {column.title}: {error}")
            continue
        if not len(first.labels):
            missing.append(f"{label(row)} under {column.title}: {cell.files[0]} is empty: evaluate its run again")
            continue
        key = hash(tuple(first.ids)), np.asarray(first.labels).tobytes(), right.shape[1]
        images.setdefault(key, first)
        groups.setdefault(key, []).append((row, cell, right))
    kept = max(groups, key=lambda key: len(groups[key]), default=None)
    for key, members in groups.items():
        for row, cell, _ in members if key != kept else ():
            why = "was not repeated as often as" if key[:2] == (kept or ())[:2] else "is not of the same test images as"
            other = groups[kept][0][1].files[0] if kept else ""
            left_out.append(f"{label(row)} under {column.title}: {cell.files[0]} {why} {other}")
    members = groups[kept] if kept else []
    repeats = {cell.repeats for _, cell, _ in members} - {""}
    return ColumnAnswers(
        title=column.title,
        variant=column.variant,
        cells=[cell for _, cell, _ in members],
        kinds=[row.kind for row, _, _ in members],
        ranked=[label(row) in ranked and not cell.one_seed for row, cell, _ in members],
        methods=[Answers(label(row), right, cell.seeds, cell.one_seed) for row, cell, right in members],
        repeats="conditions" if repeats == {"conditions"} else "draws",
        ids=images[kept].ids if kept else (),
        labels=np.asarray(images[kept].labels) if kept else np.zeros(0),
        left_out=left_out,
        missing=missing,
    )


def _answers(cell: Cell) -> tuple[Predictions, NDArray[Any]]:
    """Predictions of a cell's first run, and (S, R, N) whether each image was classified rightly (or its part).

    Raises:
        UserError: Predictions are missing, damaged, or not of the same images for all seeds.
    """
    first, right = None, []
    for path in cell.files:
        read = read_predictions(path)
        first = first or read
        same = read.ids is first.ids and read.labels is first.labels
        if not same and (read.ids != first.ids or not np.array_equal(read.labels, first.labels)):
            raise UserError(f"{path} and {cell.files[0]} are not of the same test images: they cannot be compared")
        right.append(read.right)  # (R, N)
    if len({len(rows) for rows in right}) > 1:
        raise UserError(f"predictions beside {cell.files[0]} were not repeated as often: evaluate their runs again")
    assert first is not None
    return first, np.stack(right)
