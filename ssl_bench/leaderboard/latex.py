"""The table for a paper: LaTeX with booktabs, the same numbers as everywhere."""

import re
from collections.abc import Iterable

from ssl_bench.leaderboard.table import Block, Row, Table
from ssl_bench.leaderboard.text import (
    block_facts,
    block_title,
    caveats,
    label,
    legend,
    percent,
    published_value,
    score,
    seeds,
    sources,
    visible,
)

SPECIAL = {character: f"\\{character}" for character in "#$%&_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
}
HEAD = r"""% needs \usepackage{booktabs,xcolor}; \usepackage[T1]{fontenc} for quotation marks; other scripts: XeLaTeX
"""


def latex(table: Table) -> str:
    """A table environment for each block; bold: not significantly worse than the best; grey: baselines, published."""
    parts = [_block(block) for block in table.blocks]
    notes = "".join(f"% {visible(note)}.\n" for note in [legend(table), *table.notes])
    return HEAD + "".join(parts) + notes.replace("..\n", ".\n")


def _block(block: Block) -> str:
    about = block.row_columns
    heads = ["method", "seeds", *(column.title for column in block.columns), *(column.title for column in about)]
    under = ["", "", *(column.variant for column in block.columns), *(column.below for column in about)]
    rows = [_row(block, row) for row in block.rows]
    gaps = ["-"] * len(about)
    rows += [
        _grey([f"{row.name} (published)", "-", *map(published_value, row.values), *gaps]) for row in block.published
    ]
    caption = escaped(", ".join(filter(None, (block_title(block), block_facts(block)))))
    lines = [*caveats([block]), *(f"{line}." for line in sources([block]))]
    below = "".join(f"\\par\\smallskip{{\\footnotesize {escaped(line)}\\par}}\n" for line in lines)
    return (
        "\\begin{table}\n\\centering\n\\caption{" + caption + "}\n\\begin{tabular}{l" + "r" * (len(heads) - 1) + "}\n"
        "\\toprule\n"
        + _line(map(escaped, heads))
        + _line(map(escaped, under))
        + "\\midrule\n"
        + "".join(rows)
        + "\\bottomrule\n\\end{tabular}\n"
        + below
        + "\\end{table}\n"
    )


def _row(block: Block, row: Row) -> str:
    about = [column.text(row) for column in block.row_columns]
    if row.kind == "baseline":
        return _grey([label(row), seeds(row), *(score(cell, row) for cell in row.cells), *about])
    cells = []
    for cell in row.cells:
        text = escaped(score(cell, row))
        if cell and cell.unbeaten:
            number = percent(cell.mean)
            text = f"\\textbf{{{number}}}{text.removeprefix(number)}"
        cells.append(text)
    return _line([escaped(label(row)), escaped(seeds(row)), *cells, *map(escaped, about)])


def _grey(cells: list[str]) -> str:
    return _line(f"\\textcolor{{gray}}{{{escaped(cell)}}}" for cell in cells)


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\" + "\n"


def escaped(text: str) -> str:
    """Nothing in a name is a command."""
    return re.sub(r"[\\~^<>|\"±†#$%&_{}]", lambda found: SPECIAL[found[0]], visible(text))
