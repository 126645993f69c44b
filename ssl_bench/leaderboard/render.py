"""From paths to a leaderboard in the format asked for."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard import latex, text
from ssl_bench.leaderboard.marks import marked
from ssl_bench.leaderboard.published import read_published, with_published
from ssl_bench.leaderboard.table import Table, build, checked_by
from ssl_bench.results import load_runs

TEXTS: dict[str, Callable[[Table], str]] = {
    "table": text.terminal,
    "csv": text.comma_separated,
    "markdown": text.markdown,
    "json": text.as_json,
    "latex": latex.latex,
}
FORMATS = (*TEXTS, "html")


def leaderboard(paths: Iterable[Path], format: str = "table", by: str = "views", published: Path | None = None) -> str:
    """The leaderboard of the runs at or below the paths.

    Args:
        paths: Run folders, or folders of them.
        format: table (for a terminal of 100 columns), csv, markdown, json, latex or html (one page that opens from
            disk; without the figures of its runs, which `write_page` brings along).
        by: Budget that a block shares: views (epochs x views of an image), epochs, or nothing for one block of all.
        published: CSV or YAML file of numbers that others published.

    Raises:
        UserError: No such format or budget, no run, or a damaged record.
    """
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{near(format, FORMATS)}; there are {', '.join(FORMATS)}")
    budget = checked_by(by)
    numbers = read_published(published) if published else []
    runs = load_runs(paths)
    table, compared = marked(build(runs, budget))
    table = with_published(table, numbers)
    if format != "html":
        return TEXTS[format](table)
    from ssl_bench.leaderboard.page import html

    return html(table, compared, runs)
