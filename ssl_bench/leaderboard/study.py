"""Curves over an option: where a method's rows differ in one option alone, each protocol's accuracy along it.

An option of the backbone or the length of pretraining puts rows in different blocks, so rows are gathered over all
blocks of the same images first, and in each block where that leaves several options.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ssl_bench.leaderboard.curve_pictures import Drawn, Line, label_curves, label_panels
from ssl_bench.leaderboard.plot import BASELINE, Plot, around, legend
from ssl_bench.leaderboard.table import Row, Table, row_options
from ssl_bench.leaderboard.text import percent
from ssl_bench.leaderboard.view import MOST_LINES, Picture, honest, random_rows, told

Placed: TypeAlias = tuple[int, Row]  # a row and the number of its block
MOST_VALUES = 24


@dataclass(frozen=True)
class Study:
    """Rows of a method that differ in one option.

    Args:
        method: Its name.
        option: The option.
        numeric: Whether its values are numbers.
        rows: Value and row, in order of the values.
    """

    method: str
    option: str
    numeric: bool
    rows: tuple[tuple[Any, Placed], ...]


def studies(table: Table) -> list[Study]:
    """All there are, in order of their methods."""
    found: list[Study] = []
    groups: dict[tuple[str, str, str], list[Placed]] = {}
    for number, block in enumerate(table.blocks):
        for row in block.rows:
            if row.kind == "pretrained":
                key = (block.data, block.fingerprint, row.members[0].info.method)
                groups.setdefault(key, []).append((number, row))
    for (*_, method), rows in sorted(groups.items(), key=lambda item: item[0]):
        study = _study(method, rows)
        if study:
            found.append(study)
            continue
        for number in sorted({number for number, _ in rows}):
            study = _study(method, [placed for placed in rows if placed[0] == number])
            found += [study] if study else []
    return found


def _study(method: str, rows: Sequence[Placed]) -> Study | None:
    options = [row_options(row.members[0], backbone=True) for _, row in rows]
    names = sorted({name for own in options for name in own})
    differing = [name for name in names if len({json.dumps(own.get(name), default=str) for own in options}) > 1]
    if len(differing) != 1 or len(rows) > MOST_VALUES:
        return None
    values = [own.get(differing[0]) for own in options]
    if len({json.dumps(value, default=str) for value in values}) < len(values):
        return None  # something that is no option differs as well, such as the network that was measured
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    paired = list(zip(values, rows, strict=True))
    paired.sort(key=(lambda pair: pair[0]) if numeric else (lambda pair: words(pair[0])))
    return Study(method, differing[0], numeric, tuple(paired))


def words(value: Any) -> str:
    """A value of an option as a user would write it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def picture(table: Table, study: Study) -> Picture | None:
    """A panel for each protocol under which two values or more were measured."""
    panels, best = [], []
    blocks = {number for _, (number, _) in study.rows}
    titles = dict.fromkeys(
        table.blocks[number].columns[index].title for number in blocks for index in honest(table.blocks[number].columns)
    )
    for title in titles:
        points = []
        for value, (number, row) in study.rows:
            index = next((i for i, c in enumerate(table.blocks[number].columns) if c.title == title), None)
            cell = row.cells[index] if index is not None else None
            if cell:
                points.append((value, cell))
        if len(points) < 2:
            continue
        top = max(points, key=lambda point: point[1].mean)
        best.append((title, top))
        panels.append(_panel(study, title, points))
    if not panels:
        return None
    title, (value, cell) = next((pair for pair in best if pair[0] == "linear"), best[0])
    heading = f"{study.method} over {study.option}: {title} is highest at {words(value)} ({percent(cell.mean)} %)"
    note = "Test accuracy, mean over seeds, with 95 % intervals."
    if len(blocks) > 1:
        note += " The values stand in different blocks: their budgets or backbones differ."
    body = f'<div class="panels">{"".join(panels)}</div>'
    curves = _label_curves(table, study) if len(study.rows) <= MOST_LINES else {}
    if curves:
        names = {f"{study.option} {words(value)}": style for style, (value, _) in enumerate(study.rows)}
        random = any(line.hollow or line.style == BASELINE for found in curves.values() for line in found.values())
        body += f'<div class="panels">{"".join(label_panels(curves))}</div>{legend(names.items())}'
        note += " Over labels, the same network without pretraining is hollow, or grey." if random else ""
    return Picture(heading, body, note)


def _label_curves(table: Table, study: Study) -> dict[str, dict[str, Line]]:
    """Accuracy over the number of labels, a line for each value and for the network that it began from."""
    blocks = {number: table.blocks[number] for _, (number, _) in study.rows}
    rows: dict[str, Drawn] = {}
    for style, (value, (number, row)) in enumerate(study.rows):
        rows[f"{study.option} {words(value)}"] = row, style, False
        for random in random_rows(blocks[number]):
            alone = len(blocks) == 1
            rows["random" if alone else f"random, {words(value)}"] = random, BASELINE if alone else style, not alone
    first = next(iter(blocks.values()))
    return label_curves(rows, (first.data, first.fingerprint))


def _panel(study: Study, title: str, points: Sequence[tuple[Any, Any]]) -> str:
    ys = around([100 * v for _, cell in points for v in (cell.low, cell.high)], floor=0)
    places = [float(value) for value, _ in points] if study.numeric else [float(i) for i in range(len(points))]
    log = study.numeric and min(places) > 0 and max(places) / min(places) >= 20
    ticks = None if study.numeric and not log and len(places) > 8 else _ticks(study, points, places)
    xs = around(places, log=log) if study.numeric else (-0.5, len(points) - 0.5)
    plot = Plot(xs, ys, study.option, f"{title}, %", (360, 240), log_x=log, x_ticks=ticks)
    if study.numeric:
        plot.line([(x, 100 * cell.mean) for x, (_, cell) in zip(places, points, strict=True)], 0, study.method)
    for x, (value, cell) in zip(places, points, strict=True):
        ends = (100 * cell.low, 100 * cell.high)
        plot.mark(x, 100 * cell.mean, 0, f"{study.option} {words(value)}: {told(cell)}", y_ends=ends)
    return plot.svg(f"{title}: " + ", ".join(f"{words(value)}: {percent(cell.mean)}" for value, cell in points))


def _ticks(study: Study, points: Sequence[tuple[Any, Any]], places: Sequence[float]) -> list[tuple[float, str]]:
    length = max(4, 48 // len(points))
    return [(x, words(value)[:length]) for x, (value, _) in zip(places, points, strict=True)]
