"""A block's table on the page: marks, intervals as bars, links to the runs; what its script needs to sort and copy."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ssl_bench.leaderboard.page.plot import bdi
from ssl_bench.leaderboard.table import Block, Cell, PublishedRow, Row, RowColumn
from ssl_bench.leaderboard.text import (
    block_facts,
    block_title,
    caveats,
    label,
    marks,
    percent,
    published_value,
    visible,
)

BARS = "Bars show the interval and the mean on one scale per column, the thin line the random backbone's mean."


def short_titles(blocks: Sequence[Block]) -> list[str]:
    """Data, backbone and budget of each block; with all options of the backbone where that tells two apart."""
    found = [
        ", ".join(filter(None, (b.data, b.backbone.partition(" (")[0], b.budget_text if b.matched else "")))
        for b in blocks
    ]
    return [
        title if found.count(title) == 1 else block_title(block) for title, block in zip(found, blocks, strict=True)
    ]


def section(block: Block, title: str, number: int, anchors: Mapping[Path, str]) -> str:
    """Title, facts, controls and table.

    Args:
        block: The block.
        title: The short one; the whole is shown on hover, and in the facts.
        number: Of the block on the page: the address names it by that.
        anchors: Folder of a run -> its section.
    """
    whole = block_title(block)
    facts = [*([whole] if whole != title else []), *([block_facts(block)] if block_facts(block) else [])]
    below = "".join(f'<p class="caveat">{bdi(line)}</p>\n' for line in caveats([block]))
    heads = [_head("method", "", "text"), *(_head(c.title, c.variant, "number") for c in block.columns)]
    heads += [_head("seeds", "", "number")]
    heads += [_head(column.title, column.below, "number") for column in block.row_columns]
    scales = [_Scale(block, index) for index in range(len(block.columns))]
    rows = "".join(_row(row, block.row_columns, scales, anchors) for row in block.rows)
    rows += "".join(_published(row, block.row_columns) for row in block.published)
    return f"""<h2 id="block-{number}" tabindex="-1" title="{_attribute(whole)}">{bdi(title)}</h2>
<p class="facts">{bdi("; ".join(facts))}</p>
{below}<div class="tools" data-block="{number}"></div>
<div class="scroll" tabindex="0" role="region" aria-label="Scores"><table class="scores" data-block="{number}">
<caption>{bdi(title)}</caption>
<thead><tr>{"".join(heads)}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
"""


def _head(title: str, below: str, sort: str) -> str:
    heading, under = (f"<bdi>{escape(visible(text))}</bdi>" for text in (title, below))
    small = f"<small>{under}</small>" if below else ""
    return f'<th scope="col" data-sort="{sort}"><button type="button" class="title">{heading}</button>{small}</th>'


def _row(row: Row, about: Sequence[RowColumn], scales: "list[_Scale]", anchors: Mapping[Path, str]) -> str:
    kind = f"<small>{row.kind}</small>" if row.kind != "pretrained" else ""
    cells = [_score(cell, row, scale) for cell, scale in zip(row.cells, scales, strict=True)]
    cells += [f'<td data-value="{len(row.seeds)}">n={len(row.seeds)}{_links(row, anchors)}']
    for column in about:
        value = column.value(row)
        cells += [f'<td data-value="{"" if value is None else value}">{column.text(row)}']
    full = "" if label(row) == row.name else f' data-name="{_attribute(label(row))}"'
    name = f'<th scope="row" data-value="{_attribute(row.name)}"{full}>{_breakable(row.name)}{kind}</th>'
    return f'<tr class="{row.kind}">{name}{"".join(cells)}</tr>\n'


def _links(row: Row, anchors: Mapping[Path, str]) -> str:
    """A link to each run, by its seed."""
    found = [(run.info.seed, anchors[run.folder]) for run in row.members if run.folder in anchors]
    links = " ".join(f'<a href="#{name}" title="run of seed {seed}">{seed}</a>' for seed, name in found)
    return f' <span class="runs">{links}</span>' if links else ""


def _published(row: PublishedRow, about: Sequence[RowColumn]) -> str:
    values = "".join(
        f'<td data-value="{"" if value is None else f"{value:.6g}"}">{published_value(value)}' for value in row.values
    )
    gaps = '<td data-value="">-' * (1 + len(about))
    name = f'<th scope="row" data-value="{_attribute(row.name)}" data-name="{_attribute(row.name)} (published)"'
    name += f' data-source="{_attribute(row.source)}">'
    source = f"<small>published: {bdi(row.source)}</small>"
    return f'<tr class="published">{name}{_breakable(row.name)}{source}</th>{values}{gaps}</tr>\n'


def _score(cell: Cell | None, row: Row, scale: "_Scale") -> str:
    if cell is None:
        return '<td data-value="">-<u></u>'
    tooltip = f"{percent(cell.low)} to {percent(cell.high)} over {cell.covers}{' only' if cell.one_seed else ''}; "
    tooltip += f"{cell.n_test} test images, seeds {', '.join(map(str, cell.seeds))}"
    fewer = f' <span class="seeds">n={len(cell.seeds)}</span>' if len(cell.seeds) != len(row.seeds) else ""
    numbers = f"data-value={cell.mean:.6g} data-low={cell.low:.6g} data-high={cell.high:.6g} data-n={len(cell.seeds)}"
    shown = f"<b>{percent(cell.mean)}</b> <i>±{percent(cell.half)}</i>{fewer}<u>{marks(cell)}</u>"
    classes = " ".join(name for name, holds in (("best", cell.unbeaten), ("r", scale.random)) if holds)
    kind = f' class="{classes}"' if classes else ""
    return f'<td{kind} {numbers} title="{_attribute(tooltip)}" style="{scale.bar(cell)}">{shown}'


class _Scale:
    """From the lowest to the highest end of a column's intervals."""

    def __init__(self, block: Block, index: int) -> None:
        cells = [row.cells[index] for row in block.rows]
        self.low = min((cell.low for cell in cells if cell), default=0.0)
        self.high = max((cell.high for cell in cells if cell), default=1.0)
        random = [row.cells[index] for row in block.rows if row.kind == "baseline" and row.name == "random"]
        self.random = random[0] if random else None

    def bar(self, cell: Cell) -> str:
        """Places in percent of the cell's width, which the style sheet turns into a line with a dot."""
        ends = f"--a:{self._x(cell.low)};--m:{self._x(cell.mean)};--b:{self._x(cell.high)}"
        return ends + (f";--r:{self._x(self.random.mean)}" if self.random else "")

    def _x(self, value: float) -> str:
        return f"{2 + 96 * (value - self.low) / (self.high - self.low or 1.0):.0f}"


def _breakable(name: str) -> str:
    return re.sub(r"([=_]|\.(?=[a-zA-Z]))", r"\1<wbr>", f"<bdi>{escape(visible(name))}</bdi>")


def _attribute(text: str) -> str:
    return escape(visible(text), quote=True)
