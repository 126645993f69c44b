"""The sentences, titles and scores that all formats of the table share.

Names come from users and file systems: what a reader could not see as a character is written as its escape.
"""

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from ssl_bench.leaderboard.table import Absent, Block, Cell, Row, Table
from ssl_bench.leaderboard.units import short_count

TERMINAL_WIDTH = 100
LEGEND = "Accuracy in % on the test images: mean over n seeds, with the 95 % interval over seeds and test images."
TEST_IMAGES_ONLY = "test images only"
LEGEND_OF_ONE_SEED = "Accuracy in % on the test images, with the 95 % interval."
LEGEND_OF_PIXELS = "Accuracy in % on the test images, with the 95 % interval over test images."
MORE_SEEDS = "three seeds or more of each (seeds: [0, 1, 2] in a benchmark file) would show which differences last"
BUDGETS = (
    "Budgets are not matched: tests and ranks are over all rows, so a difference may come from the budget; --by views "
    "makes a table for each budget"
)
MARKS = {
    "*": "not significantly worse than the best of its column, at 5 %",
    "†": "a chosen value lies at an end of its grid: a wider one may give more",
}
PAIRED = "paired tests on the same test images, Holm's correction over all pairs of a column"
INTERVALS = "tests from the intervals alone, Holm's correction over a column, for want of predictions"
ORACLE = "oracle: something was chosen on the test images; not to be compared with the other columns"
EMPTY = "No finished and evaluated run."


def block_title(block: Block) -> str:
    """`cifar10, vit_tiny_patch16_224 (img_size=32), 100 epochs x views`."""
    return ", ".join(part for part in (block.data, block.backbone, block.budget_text) if part)


def block_facts(block: Block) -> str:
    """Size and cost of the architecture, and the images' hash."""
    facts = []
    if block.backbone:
        facts = [f"{short_count(block.params)} parameters", f"{block.gflops_per_image:.3g} GFLOPs per image"]
        facts += [f"{block.tokens} tokens"] if block.tokens else []
    return ", ".join([*facts, *([f"images {block.fingerprint}"] if block.fingerprint else [])])


def legend(table: Table, with_caveats: bool = True) -> str:
    """How to read the numbers, of which only what occurs; the page has the caveats beside each table."""
    if not table.blocks:
        return EMPTY
    cells = [cell for block in table.blocks for cell in _cells(block)]
    columns = [column for block in table.blocks for column in block.columns]
    paired = {column.title for column in columns if column.test == "paired"}
    unpaired = list(
        dict.fromkeys(
            f"{column.title} of {block_title(block)}" if column.title in paired else column.title
            for block in table.blocks
            for column in block.columns
            if column.test == "intervals"
        )
    )
    used = {"*": any(cell.unbeaten for cell in cells), "†": any(cell.at_grid_boundary for cell in cells)}
    marks = dict(MARKS)
    if unpaired:
        where = f" in {'; '.join(unpaired)}" if paired else ""
        marks["*"] += f": {PAIRED}; {INTERVALS}{where}" if paired else f": {INTERVALS}"
    else:
        marks["*"] += f": {PAIRED}"
    sentences = [f"{mark} {meaning}." for mark, meaning in marks.items() if used[mark]]
    if any(column.oracle for column in columns):
        sentences.append(f"{ORACLE}.")
    sentences += [f"{line}." for line in sources(table.blocks)]
    several = any(len(cell.seeds) > 1 for cell in cells)
    single = any(cell.one_seed for cell in cells)
    first = LEGEND if several else LEGEND_OF_ONE_SEED if single else LEGEND_OF_PIXELS
    return " ".join([first, *(caveats(table.blocks) if with_caveats else []), *sentences])


def caveats(blocks: Sequence[Block]) -> list[str]:
    """What keeps differences of these blocks from being differences of methods: single seeds, unmatched budgets."""
    found = []
    single = list(dict.fromkeys(name for block in blocks for name in one_seed(block)))
    if single:
        several = any(not cell.one_seed and cell.values[1:] for block in blocks for cell in _cells(block))
        found.append(seeds_caveat(single, several))
    unmatched = [block for block in blocks if not block.matched and block.ranked]
    if unmatched:
        where = "" if len(unmatched) == len(blocks) else f" ({joined([block_title(block) for block in unmatched])})"
        found.append(f"{BUDGETS.replace(':', f'{where}:', 1)}.")
    return found


def seeds_caveat(single: Sequence[str], several: bool) -> str:
    """What numbers of one seed do not say, and what would.

    Args:
        single: Methods that have one.
        several: Whether others have more.
    """
    which = f"One seed ({joined(single)})" if several else "One seed each"
    return (
        f"{which}: intervals are over {TEST_IMAGES_ONLY}. Differences mean nothing about methods yet, since another "
        f"seed may reverse them: {MORE_SEEDS}."
    )


def one_seed(block: Block) -> list[str]:
    """Labels of the rows that have numbers of a single seed."""
    return [label(row) for row in block.rows if any(cell and cell.one_seed for cell in row.cells)]


def _cells(block: Block) -> list[Cell]:
    return [cell for row in block.rows for cell in row.cells if cell]


def sources(blocks: Iterable[Block]) -> list[str]:
    """Where each published number is from."""
    found: dict[str, dict[str, None]] = {}
    for block in blocks:
        for row in block.published:
            found.setdefault(row.source, {})[row.name] = None
    return [
        f"Published, not measured here and not ranked: {', '.join(names)}: {source}" for source, names in found.items()
    ]


def published_value(value: float | None) -> str:
    """A published number."""
    return "-" if value is None else percent(value)


def score(cell: Cell | None, row: Row) -> str:
    """`72.3 ±1.9*`, with the number of seeds where it is not the row's."""
    if cell is None:
        return "-"
    fewer = f" n={len(cell.seeds)}" if len(cell.seeds) != len(row.seeds) else ""
    return f"{percent(cell.mean)} ±{percent(cell.half)}{fewer}{marks(cell)}"


def marks(cell: Cell) -> str:
    """`*`, `†`, both or nothing."""
    return "*" * cell.unbeaten + "†" * cell.at_grid_boundary


def percent(value: float) -> str:
    """One digit after the point."""
    return f"{100 * value:.1f}"


def joined(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """`a, b and c`; of many, the first and how many more."""
    if len(names) > most:
        return f"{separator.join(names[:most])} and {len(names) - most} more"
    if separator != ", " or len(names) < 2:
        return separator.join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def visible(text: str) -> str:
    """Control characters, direction overrides and broken surrogates as escapes, so that a name is one line of text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def label(row: Row) -> str:
    """A row's name, and whether others pretrained it."""
    return f"{row.name} (imported)" if row.kind == "imported" else row.name


def seeds(row: Row) -> str:
    """`n=3`."""
    return f"n={len(row.seeds)}"


def absent_cells(run: Absent) -> list[str]:
    """Run, method, seed, status, reason."""
    return [run.run, run.method, "-" if run.seed is None else str(run.seed), run.status, run.reason]


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most a terminal's width."""
    return textwrap.wrap(visible(text), TERMINAL_WIDTH, subsequent_indent=indent)


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Cells padded to their columns."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [_padded(cell, width, side) for cell, width, side in zip(row, widths, sides, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _padded(cell: str, width: int, side: str) -> str:
    space = " " * (width - _width(cell))
    return cell + space if side == "<" else space + cell


def _width(text: str) -> int:
    """Columns of a terminal: two for wide characters, none for marks that combine with the one before."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
