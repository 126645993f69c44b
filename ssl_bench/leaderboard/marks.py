"""Which cells of a column are not significantly worse than its best.

By the paired tests of `ssl-bench compare`, Holm over all pairs of the column, where predictions are there. Where they
are not, by the intervals: z of the difference of best and cell by the facing halves of their intervals, as if the test
images were not shared, which finds less; Holm over the column. Cells of one seed have no marks: what is found of a
single run is not found of its method.
"""

from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING

from ssl_bench.leaderboard.table import Block, Cell, Row, Table
from ssl_bench.leaderboard.text import label
from ssl_bench.statistics.intervals import LEVEL

if TYPE_CHECKING:  # NumPy is imported where there is something to compare
    from ssl_bench.leaderboard.significance import BlockComparison

# Reading predictions and drawing take about 2 ms for each run and protocol. What would take minutes is left to
# `ssl-bench compare`.
MOST_FILES = 3000
MOST_METHODS = 40
FEW_FILES = 1200  # of which the draws are those of `compare`; above, a fifth of them
FEWER_DRAWS = 2000


def marked(table: Table) -> "tuple[Table, tuple[BlockComparison | None, ...]]":
    """The table with its `unbeaten` cells, and the comparison of each block that has one."""
    files = sum(len(cell.files) for block in table.blocks for row in block.rows for cell in row.cells if cell)
    found = [_compared(block, files) for block in table.blocks]
    blocks = tuple(_marked(block, compared) for block, compared in zip(table.blocks, found, strict=True))
    left_out = [line for compared in found if compared for line in compared.left_out]
    notes = [f"tested by its interval alone: {line}" for line in left_out]
    return replace(table, blocks=blocks, notes=(*table.notes, *notes)), tuple(found)


def _compared(block: Block, files: int) -> "BlockComparison | None":
    there = any(file.is_file() for row in block.rows for cell in row.cells if cell for file in cell.files[:1])
    if not block.ranked or not there or files > MOST_FILES or len(block.rows) > MOST_METHODS:
        return None
    from ssl_bench.leaderboard.significance import compared_block
    from ssl_bench.statistics.comparison import DRAWS

    return compared_block(block, DRAWS if files <= FEW_FILES else FEWER_DRAWS)


def _marked(block: Block, compared: "BlockComparison | None") -> Block:
    protocols = {protocol.title: protocol for protocol in compared.protocols} if compared else {}
    columns = list(block.columns)
    cells = [list(row.cells) for row in block.rows]
    for index, column in enumerate(columns):
        found = {place: cell for place, row in enumerate(cells) if (cell := row[index]) and not cell.one_seed}
        if not any(cell.best for cell in found.values()):
            continue
        unbeaten = _by_intervals(found)
        known = {score.name: score for score in protocols[column.title].methods} if column.title in protocols else {}
        paired = {place: known[name] for place in found if (name := label(block.rows[place])) in known}
        by_pairs = any(place in paired for place, cell in found.items() if cell.best)  # else there is no pair with it
        if by_pairs:
            unbeaten -= paired.keys()
            unbeaten |= {place for place, score in paired.items() if score.unbeaten}
        columns[index] = replace(column, test="paired" if by_pairs else "intervals")
        for place, cell in found.items():
            cells[place][index] = replace(cell, unbeaten=place in unbeaten or cell.best)
    rows: tuple[Row, ...] = tuple(replace(row, cells=tuple(own)) for row, own in zip(block.rows, cells, strict=True))
    return replace(block, columns=tuple(columns), rows=rows)


def _by_intervals(cells: dict[int, Cell], level: float = LEVEL) -> set[int]:
    """Indices of the cells that are not significantly worse than the best, by intervals alone."""
    normal = NormalDist()
    best = max(cells, key=lambda place: cells[place].mean)
    quantile = normal.inv_cdf((1 + level) / 2)
    p: dict[int, float] = {}
    for place, cell in cells.items():
        error = ((cells[best].mean - cells[best].low) ** 2 + (cell.high - cell.mean) ** 2) ** 0.5 / quantile
        difference = cells[best].mean - cell.mean
        if place != best:
            p[place] = 2 * normal.cdf(-difference / error) if error else float(difference == 0)
    beaten: set[int] = set()
    for rank, place in enumerate(sorted(p, key=lambda place: p[place])):
        if (len(p) - rank) * p[place] >= 1 - level:
            break
        beaten.add(place)
    return set(cells) - beaten
