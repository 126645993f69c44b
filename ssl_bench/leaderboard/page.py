"""The table as one HTML page that opens from disk: style and script are inside, nothing is asked of any network."""

import re
from html import escape
from pathlib import Path

from ssl_bench.leaderboard.table import Block, Cell, Column, Row, Table
from ssl_bench.leaderboard.text import block_facts, block_title, duration, epochs, legend, percent, visible

BARS = "Bars show the interval and the mean on one scale per column, the thin line the random backbone's mean."
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html(table: Table, compared: object = (), runs: object = ()) -> str:
    """The whole page."""
    room = Path(__file__).parent
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>ssl-bench leaderboard</title>
<style>
{(room / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>Leaderboard</h1>
<p class="quiet">{_legend(table)}</p>
{"".join(_block(block) for block in table.blocks)}{_absent(table)}{_notes(table)}</main>
<script>
{(room / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _legend(table: Table) -> str:
    words = legend(table) + (f" {BARS}" if table.blocks else "")
    return escape(words).replace("* ", "*&nbsp;").replace("† ", "†&nbsp;")


def _block(block: Block) -> str:
    title = _text(block_title(block))
    facts = any(row.kind != "baseline" for row in block.rows)
    heads = [_head("method", "", "text")]
    heads += [_head(column.title, column.variant, "number") for column in block.columns]
    heads += [_head("seeds", "", "number")]
    heads += [_head("epochs", "x views", "number"), _head("time", "", "number")] if facts else []
    scales = [_Scale(block, index) for index in range(len(block.columns))]
    rows = "".join(_row(row, facts, block.columns, scales) for row in block.rows)
    return f"""<section>
<h2>{title}</h2>
<p class="facts">{_text(block_facts(block))}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Scores"><table class="scores">
<caption>{title}</caption>
<thead><tr>{"".join(heads)}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
</section>
"""


def _head(title: str, below: str, sort: str) -> str:
    small = f"<small>{_text(below)}</small>" if below else ""
    return f'<th scope="col" data-sort="{sort}"><button type="button" class="title">{_text(title)}</button>{small}</th>'


def _row(row: Row, facts: bool, columns: tuple[Column, ...], scales: "list[_Scale]") -> str:
    kind = f"<small>{row.kind}</small>" if row.kind != "pretrained" else ""
    cells = [_score(cell, row, column, scale) for cell, column, scale in zip(row.cells, columns, scales, strict=True)]
    cells += [f'<td data-value="{len(row.seeds)}">n={len(row.seeds)}</td>']
    if facts:
        passes = "" if row.epochs is None else row.epochs * row.views_per_image
        cells += [f'<td data-value="{passes}">{epochs(row)}</td>']
        cells += [f'<td data-value="{row.seconds or ""}">{duration(row.seconds)}</td>']
    text = re.sub(r"([=_]|\.(?=[a-zA-Z]))", r"\1<wbr>", _text(row.name))
    name = f'<th scope="row" data-value="{_attribute(row.name)}">{text}{kind}</th>'
    return f'<tr class="{row.kind}">{name}{"".join(cells)}</tr>\n'


def _score(cell: Cell | None, row: Row, column: Column, scale: "_Scale") -> str:
    if cell is None:
        return '<td data-value="">-<span class="marks"></span></td>'
    said = f"{column.title}: {percent(cell.low)} to {percent(cell.high)}, {cell.n_test} test images, seeds "
    said += ", ".join(map(str, cell.seeds))
    seeds = f' <span class="seeds">n={len(cell.seeds)}</span>' if len(cell.seeds) != len(row.seeds) else ""
    marks = f'<span class="marks">{"*" * cell.unbeaten}{"†" * cell.on_edge}</span>'
    numbers = f'data-value="{cell.mean!r}" data-low="{cell.low!r}" data-high="{cell.high!r}" data-n="{len(cell.seeds)}"'
    shown = f'<span class="mean">{percent(cell.mean)}</span> <span class="interval">±{percent(cell.half)}</span>'
    best = ' class="best"' if cell.unbeaten else ""
    return f'<td{best} {numbers} title="{_attribute(said)}">{shown}{seeds}{marks}{scale.bar(cell)}</td>'


class _Scale:
    """From the lowest to the highest end of a column's intervals."""

    def __init__(self, block: Block, index: int) -> None:
        cells = [row.cells[index] for row in block.rows]
        self.low = min(cell.low for cell in cells if cell)
        self.high = max(cell.high for cell in cells if cell)
        random = [row.cells[index] for row in block.rows if row.kind == "baseline" and row.name == "random"]
        self.random = random[0] if random else None

    def bar(self, cell: Cell) -> str:
        """The interval as a line, the mean as a dot."""
        low, mean, high = (self._x(value) for value in (cell.low, cell.mean, cell.high))
        line = f'<line x1="{low}" x2="{high}" y1="6" y2="6"/><circle cx="{mean}" cy="6" r="3"/>'
        if self.random:
            x = self._x(self.random.mean)
            line = f'<line class="random" x1="{x}" x2="{x}" y1="0" y2="12"/>{line}'
        return f'<svg aria-hidden="true">{line}</svg>'

    def _x(self, value: float) -> str:
        return f"{2 + 96 * (value - self.low) / (self.high - self.low or 1.0):.1f}%"


def _absent(table: Table) -> str:
    if not table.absent:
        return ""
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("run", "method", "seed", "status", "reason"))
    rows = "".join(
        f'<tr><th scope="row">{_text(run.run)}</th>'
        + "".join(f"<td>{_text(part)}</td>" for part in (run.method, str(run.seed), run.status, run.reason))
        + "</tr>\n"
        for run in table.absent
    )
    return f"""<section>
<h2>Not in the tables</h2>
<p class="facts">Runs that are not finished or not evaluated.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Runs that are not in the tables"><table class="words">
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
</section>
"""


def _notes(table: Table) -> str:
    if not table.notes:
        return ""
    notes = "".join(f"<li>{_text(note)}.</li>" for note in table.notes)
    return f"<section>\n<h2>Notes</h2>\n<ul>{notes}</ul>\n</section>\n"


def _text(text: str) -> str:
    """Text and never markup; isolated, so that one written from right to left turns nothing beside it around."""
    return f"<bdi>{escape(visible(text))}</bdi>"


def _attribute(text: str) -> str:
    return escape(visible(text), quote=True)
