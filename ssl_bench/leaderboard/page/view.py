"""What pictures are drawn from: a block, what was found significant in it, and a style for each of its methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssl_bench.leaderboard.page.plot import BASELINE
from ssl_bench.leaderboard.table import Block, Cell, Column, Row, Table
from ssl_bench.leaderboard.text import TEST_IMAGES_ONLY, label, percent

if TYPE_CHECKING:
    from ssl_bench.leaderboard.significance import BlockComparison

MOST_LINES = 12  # of a picture: more cannot be told apart


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Args:
        title: A few words.
        body: HTML.
        note: How to read it.
        detail: What to see in it, for who points at the title; nothing that single seeds do not show.
    """

    title: str
    body: str
    note: str = ""
    detail: str = ""


@dataclass(frozen=True)
class View:
    """A block with what its pictures need.

    Args:
        block: The block.
        compared: Its comparison by predictions; None where there is none.
        styles: Label of each pretrained row of the table -> its style, the same in all pictures.
    """

    block: Block
    compared: "BlockComparison | None"
    styles: Mapping[str, int]

    @property
    def pretrained(self) -> list[Row]:
        """Rows that are no baselines, in the table's order."""
        return [row for row in self.block.rows if row.kind != "baseline"]

    @property
    def lines(self) -> list[Row]:
        """Rows of a picture with a line for each: what was pretrained, and the network at random beside it."""
        return self.pretrained[:MOST_LINES] + random_rows(self.block)

    @property
    def several_seeds(self) -> set[str]:
        """Labels of what was pretrained with several seeds in all of its cells: the rows that may be put in order."""
        found = [row for row in self.pretrained if not any(cell and cell.one_seed for cell in row.cells)]
        return {label(row) for row in found} if self.block.ranked and len(found) > 1 else set()

    def style(self, row: Row) -> int:
        """A row's style."""
        return self.styles.get(label(row), BASELINE)

    def column(self, protocol: str) -> int | None:
        """Place of a protocol's column on the block's own images, no oracle's."""
        return next((i for i, c in enumerate(self.block.columns) if c.title == protocol and not c.oracle), None)

    def random(self, index: int) -> Cell | None:
        """The random network's cell in a column."""
        return next((row.cells[index] for row in random_rows(self.block)), None)


def random_rows(block: Block) -> list[Row]:
    """The network of the block without pretraining."""
    return [row for row in block.rows if row.kind == "baseline" and row.name == "random"]


def styles_of(table: Table) -> dict[str, int]:
    """A style for each label that was pretrained, in order of the alphabet."""
    names = sorted({label(row) for block in table.blocks for row in block.rows if row.kind != "baseline"})
    return {name: style for style, name in enumerate(names)}


def score_text(cell: Cell) -> str:
    """`71.2 [69.0, 73.1], n=3`; of one seed, that the interval is of the test images only."""
    only = f" ({TEST_IMAGES_ONLY})" if cell.one_seed else ""
    return f"{percent(cell.mean)} [{percent(cell.low)}, {percent(cell.high)}], n={len(cell.seeds)}{only}"


def without_oracles(columns: Sequence[Column]) -> list[int]:
    """Places of the columns whose numbers were not chosen on the test images."""
    return [index for index, column in enumerate(columns) if not column.oracle]
