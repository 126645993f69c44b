"""Curves over an option: rows of a method that agree in all other options are a line of accuracies along it.

An option of the backbone or the length of pretraining puts rows in different blocks, so rows are gathered over all
blocks of the same images.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ssl_bench.leaderboard.grouping import row_options
from ssl_bench.leaderboard.page.curve_pictures import Drawn, Line, label_curves, label_panels
from ssl_bench.leaderboard.page.plot import BASELINE, Plot, around, legend
from ssl_bench.leaderboard.page.view import MOST_LINES, Picture, random_rows, score_text, without_oracles
from ssl_bench.leaderboard.table import Cell, Row, Table
from ssl_bench.leaderboard.text import percent

Placed: TypeAlias = tuple[int, Row]  # a row and the number of its block
Valued: TypeAlias = tuple[Any, Placed]
MOST_VALUES = 24
NO_AXIS = ("branch",)  # what was measured, not what was done: a line for each


@dataclass(frozen=True)
class Study:
    """Rows of a method along one option.

    Args:
        method: Its name.
        option: The option.
        values: All there are, in their order.
        lines: The other options that differ between lines, in words, -> value and row of each.
    """

    method: str
    option: str
    values: tuple[Any, ...]
    lines: Mapping[str, tuple[Valued, ...]]

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return _numeric(self.values)

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks that the rows stand in."""
        return sorted({number for line in self.lines.values() for _, (number, _) in line})


def studies(table: Table) -> list[Study]:
    """All there are, in order of their methods and options."""
    groups: dict[tuple[str, str, str], list[tuple[dict[str, str], dict[str, Any], Placed]]] = {}
    for number, block in enumerate(table.blocks):
        for row in block.rows:
            if row.kind == "pretrained":
                own = row_options(row.members[0], backbone=True)
                texts = {name: json.dumps(value, default=str, sort_keys=True) for name, value in own.items()}
                key = (block.data, block.fingerprint, row.members[0].info.method)
                groups.setdefault(key, []).append((texts, own, (number, row)))
    found = []
    for (*_, method), rows in sorted(groups.items(), key=lambda item: item[0]):
        names = sorted({name for texts, *_ in rows for name in texts})
        differing = [name for name in names if len({texts.get(name) for texts, *_ in rows}) > 1]
        for option in (name for name in differing if name not in NO_AXIS):
            others = [name for name in differing if name != option]
            lines: dict[tuple[str | None, ...], list[Valued]] = {}
            for texts, own, placed in rows:
                lines.setdefault(tuple(texts.get(name) for name in others), []).append((own.get(option), placed))
            study = _study(method, option, others, lines)
            found += [study] if study else []
    return found


def _study(
    method: str, option: str, others: Sequence[str], lines: Mapping[tuple[str | None, ...], list[Valued]]
) -> Study | None:
    """Those lines that have two values or more, each of them once."""
    kept = {
        key: line
        for key, line in sorted(lines.items(), key=lambda item: (-len(item[1]), [_order(text) for text in item[0]]))
        if 1 < len(line) <= MOST_VALUES and len({option_text(value) for value, _ in line}) == len(line)
    }
    kept = dict(list(kept.items())[:MOST_LINES])
    if not kept:
        return None
    values = {option_text(value): value for line in kept.values() for value, _ in line}
    order = sorted(values.values(), key=None if _numeric(tuple(values.values())) else option_text)
    place = {option_text(value): index for index, value in enumerate(order)}
    shown = [place for place in range(len(others)) if len({key[place] for key in kept}) > 1]
    named = {
        ", ".join(f"{others[i]} {json.loads(key[i] or 'null')}" for i in shown): tuple(
            sorted(line, key=lambda pair: place[option_text(pair[0])])
        )
        for key, line in kept.items()
    }
    return Study(method, option, tuple(order), named)


def _order(text: str | None) -> tuple[float, str]:
    """Numbers by their size, and then the rest."""
    value = json.loads(text or "null")
    return (float(value), "") if _numeric([value]) else (math.inf, str(text))


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def option_text(value: Any) -> str:
    """A value of an option as a user would write it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def picture(table: Table, study: Study) -> Picture | None:
    """A panel for each protocol under which two values or more were measured."""
    panels, best = [], []
    titles = dict.fromkeys(
        table.blocks[number].columns[index].title
        for number in study.blocks
        for index in without_oracles(table.blocks[number].columns)
    )
    styles = {name: style for style, name in enumerate(study.lines)}
    for title in titles:
        lines = {name: found for name, line in study.lines.items() if len(found := _cells(table, title, line)) > 1}
        if not lines:
            continue
        best.append((title, max(((n, *v) for n, found in lines.items() for v in found), key=lambda at: at[2].mean)))
        panels.append(_panel(study, title, lines, styles))
    if not panels:
        return None
    title, (name, value, cell) = next((pair for pair in best if pair[0] == "linear"), best[0])
    where = f"{option_text(value)}, {name}" if name else option_text(value)
    detail = f"{title} has its highest mean at {where} ({percent(cell.mean)} %)"
    several = not any(
        own and own.one_seed for line in study.lines.values() for _, (_, row) in line for own in row.cells
    )
    note = "Test accuracy, mean over seeds, with 95 % intervals."
    note += "" if several else " One seed: intervals are over test images only, and no value is shown to be the best."
    if len(study.blocks) > 1:
        note += " The values stand in different blocks: their budgets or backbones differ."
    body = f'<div class="panels">{"".join(panels)}</div>' + (legend(styles.items()) if len(styles) > 1 else "")
    curves = _label_curves(table, study)
    if curves:
        names = {name: line.style for found in curves.values() for name, line in found.items() if not line.hollow}
        random = any(line.hollow or line.style == BASELINE for found in curves.values() for line in found.values())
        body += f'<div class="panels">{"".join(label_panels(curves))}</div>{legend(names.items())}'
        note += " Over labels, the same network without pretraining is hollow, or grey." if random else ""
    return Picture(f"{study.method} over {study.option}", body, note, detail if several else "")


def _cells(table: Table, title: str, line: Sequence[Valued]) -> list[tuple[Any, Cell]]:
    """Value and cell of each row that has one in the column."""
    found = []
    for value, (number, row) in line:
        index = next((i for i, column in enumerate(table.blocks[number].columns) if column.title == title), None)
        cell = row.cells[index] if index is not None else None
        found += [(value, cell)] if cell else []
    return found


def _label_curves(table: Table, study: Study) -> dict[str, dict[str, Line]]:
    """Accuracy over the number of labels, a line for each value and for the network that it began from."""
    flat = [(name, value, *placed) for name, line in study.lines.items() for value, placed in line]
    if len(flat) > MOST_LINES:
        return {}
    rows: dict[str, Drawn] = {}
    for style, (name, value, number, row) in enumerate(flat):
        shown = f"{option_text(value)}, {name}" if name else option_text(value)
        rows[f"{study.option} {shown}"] = row, style, False
        for random in random_rows(table.blocks[number]):
            alone = len(study.blocks) == 1
            rows["random" if alone else f"random, {shown}"] = random, BASELINE if alone else style, not alone
    block = table.blocks[study.blocks[0]]
    return label_curves(rows, (block.data, block.fingerprint))


def _panel(study: Study, title: str, lines: Mapping[str, Sequence[tuple[Any, Cell]]], styles: Mapping[str, int]) -> str:
    cells = [cell for line in lines.values() for _, cell in line]
    ys = around([100 * end for cell in cells for end in (cell.low, cell.high)], floor=0)
    place = {option_text(v): float(v) if study.numeric else float(i) for i, v in enumerate(study.values)}
    places = list(place.values())
    log = study.numeric and min(places) > 0 and max(places) / min(places) >= 20
    length = max(4, 48 // len(places))
    ticks = None if study.numeric and not log and len(places) > 8 else [(x, v[:length]) for v, x in place.items()]
    xs = around(places, log=log) if study.numeric else (-0.5, len(places) - 0.5)
    plot = Plot(xs, ys, study.option, f"{title}, %", (360, 240), log_x=log, x_ticks=ticks)
    for name, line in lines.items():
        style = styles[name]
        aside = 0.0 if study.numeric else 0.12 * (style - (len(styles) - 1) / 2)
        if study.numeric:
            plot.line([(place[option_text(v)], 100 * cell.mean) for v, cell in line], style, name or study.method)
        for value, cell in line:
            tooltip = f"{study.option} {option_text(value)}{name and f', {name}'}: {score_text(cell)}"
            ends = (100 * cell.low, 100 * cell.high)
            plot.mark(place[option_text(value)] + aside, 100 * cell.mean, style, tooltip, y_ends=ends)
    parts = (
        f"{name and f'{name}: '}{', '.join(f'{option_text(v)}: {percent(cell.mean)}' for v, cell in line)}"
        for name, line in lines.items()
    )
    return plot.svg(f"{title}: {'; '.join(parts)}")
