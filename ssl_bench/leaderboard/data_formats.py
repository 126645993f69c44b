"""The table as data, with all digits: CSV and JSON."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable

from ssl_bench.leaderboard.table import Block, Column, PublishedRow, Row, Table
from ssl_bench.leaderboard.text import visible

BLOCK_FIELDS = (
    *("data", "fingerprint", "backbone", "params", "gflops_per_image", "tokens"),
    *("budget", "budget_text", "matched"),
)
ROW_FIELDS = tuple(one.name for one in dataclasses.fields(Row) if one.name not in ("seeds", "cells", "members"))
COLUMN_FIELDS = ("title", "variant", "oracle", "test")
CELL_FIELDS = (
    *("mean", "low", "high", "covers", "seeds", "values", "n_test"),
    *("one_seed", "best", "unbeaten", "at_grid_boundary"),
)


def comma_separated(table: Table) -> str:
    """One line per method and protocol, with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*BLOCK_FIELDS, *ROW_FIELDS, *COLUMN_FIELDS, *CELL_FIELDS, "source"])
    for block in table.blocks:
        for row in block.rows:
            for column, cell in zip(block.columns, row.cells, strict=True):
                if cell is not None:
                    parts = ((block, BLOCK_FIELDS), (row, ROW_FIELDS), (column, COLUMN_FIELDS), (cell, CELL_FIELDS))
                    line = [_spreadsheet(getattr(part, name)) for part, names in parts for name in names]
                    writer.writerow([*line, ""])
        for other in block.published:
            for column, value in zip(block.columns, other.values, strict=True):
                if value is not None:
                    writer.writerow(_published_line(block, other, column, value))
    return file.getvalue()


def _published_line(block: Block, row: PublishedRow, column: Column, value: float) -> list[object]:
    known: dict[str, object] = {"name": row.name, "kind": "published", "mean": value, "source": row.source}
    known |= {name: getattr(block, name) for name in BLOCK_FIELDS}
    known |= {name: getattr(column, name) for name in ("title", "variant")}
    fields = (*BLOCK_FIELDS, *ROW_FIELDS, *COLUMN_FIELDS, *CELL_FIELDS, "source")
    return [_spreadsheet(known.get(name, "")) for name in fields]


def as_json(table: Table) -> str:
    """The whole model, with all digits; `format` grows when a key changes its meaning."""
    blocks = tuple(
        dataclasses.replace(block, rows=tuple(dataclasses.replace(row, members=()) for row in block.rows))
        for block in table.blocks
    )
    model = dataclasses.asdict(dataclasses.replace(table, blocks=blocks), dict_factory=_without_files)
    return json.dumps({"format": 1, **model}, indent=1, allow_nan=False) + "\n"


def _without_files(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in items if name not in ("files", "members")}


def _spreadsheet(value: object) -> object:
    """Several values with spaces between; text that a spreadsheet would run as a formula after an apostrophe."""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    if isinstance(value, str):
        shown = visible(value)
        return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") else shown
    return value
