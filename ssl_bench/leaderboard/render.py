"""From paths to a leaderboard in the format asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ssl_bench.console import say_some
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard import data_formats, latex, markdown, terminal
from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.grouping import chosen_by
from ssl_bench.leaderboard.marks import marked
from ssl_bench.leaderboard.published import read_published, with_published
from ssl_bench.leaderboard.table import Table, checked_branches
from ssl_bench.records.benchmark import benchmark_of
from ssl_bench.records.files import write_text
from ssl_bench.records.store import Run, load_readable, say_unread

if TYPE_CHECKING:
    from ssl_bench.leaderboard.significance import BlockComparison

Compared: TypeAlias = "tuple[BlockComparison | None, ...]"

TEXTS: dict[str, Callable[[Table], str]] = {
    "table": terminal.terminal,
    "csv": data_formats.comma_separated,
    "markdown": markdown.markdown,
    "json": data_formats.as_json,
    "latex": latex.latex,
}
FORMATS = (*TEXTS, "html")


def leaderboard(
    paths: Iterable[Path],
    format: str = "table",
    by: str | None = None,
    published: Path | None = None,
    branches: str = "default",
) -> str:
    """The leaderboard of the runs at or below the paths.

    Args:
        paths: Run folders, or folders of them.
        format: table (for a terminal of 100 columns), csv, markdown, json, latex or html (one page that opens from
            disk; without the figures of its runs, which `write_page` brings along).
        by: Budget that a block shares: views (epochs x views of an image), epochs, or nothing; by default that of the
            benchmark that made the runs, or nothing: one block for each data set and backbone.
        published: CSV or YAML file of numbers that others published.
        branches: Networks of a run that have a row: default or all.

    Raises:
        UserError: No such format or budget, no run, or damaged records alone.
    """
    checked_format(format)
    return rendered(*tabled(paths, by, published, branches), format)


def tabled(
    paths: Iterable[Path], by: str | None = None, published: Path | None = None, branches: str = "default"
) -> tuple[Table, Compared, Sequence[Run]]:
    """The runs at or below the paths, their marked table, and what was compared for it: for several formats of one.

    Raises:
        UserError: As `leaderboard`.
    """
    paths = list(paths)
    benchmark = benchmark_of(paths)
    budget, networks = chosen_by(by, benchmark), checked_branches(branches)
    numbers = read_published(published) if published else []
    runs, unread = load_readable(paths)
    say_unread(unread)
    table, compared = marked(build(runs, budget, unread, networks))
    left_out = [line for block in compared if block for line in block.left_out]
    say_some(left_out, "warning: tested by its interval alone:")
    table = replace(table, benchmark=benchmark)
    return with_published(table, numbers), compared, runs


def rendered(table: Table, compared: Compared, runs: Sequence[Run], format: str) -> str:
    """What `tabled` returns, in one of the formats."""
    if format != "html":
        return TEXTS[format](table)
    from ssl_bench.leaderboard.page.page import html

    return html(table, compared, runs)


def write_page(
    paths: Iterable[Path],
    output: Path,
    by: str | None = None,
    published: Path | None = None,
    images: str = "beside",
    branches: str = "default",
) -> Path:
    """Write the page with the figures of its runs, and give its path.

    Args:
        paths: Run folders, or folders of them.
        output: A file that ends in .html, or a folder, in which it is index.html.
        by: As for `leaderboard`.
        published: Likewise.
        images: beside: in a folder next to the page; embed: inside it; none.
        branches: As for `leaderboard`.

    Raises:
        UserError: As `leaderboard`, or no such place for images.
    """
    from ssl_bench.leaderboard.page.figures import checked_images
    from ssl_bench.leaderboard.page.page import html

    place = checked_images(images)
    table, compared, runs = tabled(paths, by, published, branches)
    is_file = output.suffix.lower() in (".html", ".htm") and not output.is_dir()
    page = output if is_file else output / "index.html"
    folder = page.with_name(f"{page.stem}-images" if is_file else "images")
    write_text(page, html(table, compared, runs, place, folder))
    return page


def checked_format(format: str) -> None:
    """Refuse a format that there is not.

    Raises:
        UserError: There is no such format.
    """
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{near(format, FORMATS)}; there are {', '.join(FORMATS)}")
