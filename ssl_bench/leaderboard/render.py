"""From paths to a leaderboard in the format asked for."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard import page, text
from ssl_bench.leaderboard.table import Table, build, checked_by
from ssl_bench.results import load_runs

FORMATS: dict[str, Callable[[Table], str]] = {
    "table": text.terminal,
    "csv": text.comma_separated,
    "markdown": text.markdown,
    "json": text.as_json,
    "html": page.html,
}


def leaderboard(paths: Iterable[Path], format: str = "table", by: str = "views") -> str:
    """The leaderboard of the runs at or below the paths.

    Args:
        paths: Run folders, or folders of them.
        format: table (for a terminal of 100 columns), csv, markdown, json or html (one page that opens from disk).
        by: Budget that a block shares: views (epochs x views of an image), epochs, or nothing for one block of all.

    Raises:
        UserError: No such format or budget, no run, or a damaged record.
    """
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{near(format, FORMATS)}; there are {', '.join(FORMATS)}")
    budget = checked_by(by)
    return FORMATS[format](build(load_runs(paths), budget))
