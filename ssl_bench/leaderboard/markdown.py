"""The table in GitHub's Markdown."""

import re
from collections.abc import Iterable

from ssl_bench.leaderboard.table import Table
from ssl_bench.leaderboard.text import (
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


def markdown(table: Table) -> str:
    """Tables in GitHub's Markdown."""
    lines = []
    for block in table.blocks:
        heads = ["method", "seeds", *(f"{column.title} ({column.variant})" for column in block.columns)]
        heads += [f"{column.title} {column.below}".rstrip() for column in block.row_columns]
        names = [[label(row), seeds(row)] for row in block.rows]
        rows = [
            [*name, *(score(cell, row) for cell in row.cells), *(column.text(row) for column in block.row_columns)]
            for name, row in zip(names, block.rows, strict=True)
        ]
        lines += [f"### {_escaped(block_title(block))}", "", _escaped(block_facts(block)), ""]
        rows += [
            [f"{row.name} (published)", "-", *map(published_value, row.values), *("-" for _ in block.row_columns)]
            for row in block.published
        ]
        lines += [_markdown_row(heads), "|---|" + "---:|" * (len(heads) - 1), *map(_markdown_row, rows), ""]
    lines += [_escaped(legend(table)), ""]
    if table.absent:
        lines += [_markdown_row(["run", "method", "seed", "status", "reason"]), "|---" * 5 + "|"]
        lines += [*(_markdown_row(absent_cells(run)) for run in table.absent), ""]
    lines += [f"- {_escaped(note)}." for note in table.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Nothing in a name is markup. Between digits and letters, `_` is none."""
    return re.sub(r"([\\`*\[\]<>|#~&]|(?<!\w)_|_(?!\w))", r"\\\1", visible(text))
