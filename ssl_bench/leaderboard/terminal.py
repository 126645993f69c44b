"""The table for a terminal, made with rich: 100 columns, no colour, so that it may be piped, pasted and compared."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssl_bench.leaderboard.table import Block, Table
from ssl_bench.leaderboard.text import (
    TERMINAL_WIDTH,
    absent_cells,
    block_facts,
    block_title,
    label,
    legend,
    published_value,
    score,
    seeds,
    visible,
)

if TYPE_CHECKING:  # rich is imported where something is drawn
    from rich.table import Table as Drawn

NAME_WIDTH = 34
TITLE_WIDTH = 16
GAP = 2


@dataclass(frozen=True)
class _Column:
    """Head and cells, without control characters; one that is wider than `width` continues below itself."""

    head: Sequence[str]
    cells: Sequence[str]
    side: Literal["left", "right"]
    most: int

    @property
    def width(self) -> int:
        from rich.cells import cell_len

        heads = min(TITLE_WIDTH, max(map(cell_len, self.head)))
        return max(heads, min(self.most, max(map(cell_len, self.cells), default=0)))


def terminal(table: Table) -> str:
    """Tables of at most 100 columns; a wide one continues below itself."""
    from rich.console import Console
    from rich.text import Text

    # All that rich would otherwise take from the environment: the same runs give the same bytes.
    file = io.StringIO()
    console = Console(
        file=file,
        width=TERMINAL_WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    for block in table.blocks:
        for line in (block_title(block), block_facts(block)):
            console.print(*([Text(visible(line))] if line else []))
        for part in _parts(_columns(block)):
            console.print("", _drawn(part), sep="\n")
        console.print()
    console.print(Text(visible(legend(table))))
    if table.absent:
        rows = zip(*map(absent_cells, table.absent), strict=True)
        sides = [_Column([], [visible(cell) for cell in cells], "left", TERMINAL_WIDTH) for cells in rows]
        console.print("\nNot in the tables:", _drawn(sides), sep="\n")
    for note in table.notes:
        console.print(_drawn([_Column([], ["Note:"], "left", 5), _Column([], [visible(f"{note}.")], "left", 93)]))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _columns(block: Block) -> Iterator[_Column]:
    published = block.published
    names = [*map(label, block.rows), *(f"{row.name} (published)" for row in published)]
    yield _Column(["method"], [visible(name) for name in names], "left", NAME_WIDTH)
    none = ["-"] * len(published)
    yield _Column(["seeds"], [*map(seeds, block.rows), *none], "right", TERMINAL_WIDTH)
    for i, column in enumerate(block.columns):
        cells = [
            *(score(row.cells[i], row) for row in block.rows),
            *(published_value(row.values[i]) for row in published),
        ]
        yield _Column([visible(column.title), visible(column.variant)], _aligned(cells), "left", TERMINAL_WIDTH)
    for about in block.row_columns:
        heads = [about.title, about.below] if about.below else [about.title]
        yield _Column(heads, [*map(about.text, block.rows), *none], "right", TERMINAL_WIDTH)


def _aligned(cells: Iterable[str]) -> list[str]:
    """Numbers below each other, with what follows them to their right."""
    parts = [cell.partition(" ") for cell in cells]
    width = max((len(number) for number, *_ in parts), default=0)
    return [number.rjust(width) + gap + rest for number, gap, rest in parts]


def _parts(columns: Iterable[_Column]) -> list[list[_Column]]:
    """As many columns beside each other as there is room for; each part begins with method and seeds."""
    name, count, *rest = columns
    parts = [[name, count]]
    for column in rest:
        if sum(known.width + GAP for known in parts[-1]) + column.width > TERMINAL_WIDTH:
            parts.append([name, count])
        parts[-1].append(column)
    return parts


def _drawn(columns: Sequence[_Column]) -> "Drawn":
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    heads = any(column.head for column in columns)
    drawn = Drawn(box=box.SIMPLE_HEAD, show_header=heads, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        width = column.width if heads else None  # without heads: words, which share the room there is
        drawn.add_column(Text("\n".join(column.head)), justify=column.side, overflow="fold", width=width)
    for cells in zip(*(column.cells for column in columns), strict=True):
        drawn.add_row(*map(Text, cells))  # text: nothing in a name is markup
    return drawn
