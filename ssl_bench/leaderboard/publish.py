"""`ssl_bench.leaderboard`: a table or a page of the runs at or below some paths."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.render import checked_format, write_page
from ssl_bench.leaderboard.render import leaderboard as rendered
from ssl_bench.records.files import write_text


def leaderboard(
    runs: str | PathLike[str] | Iterable[str | PathLike[str]] = "runs",
    *,
    output: str | PathLike[str] | None = None,
    format: str | None = None,
    by: str | None = None,
    branches: str = "default",
    images: str = "beside",
    published: str | PathLike[str] | None = None,
) -> str | Path:
    """All results in one table: as text, or as a file or web page.

    Args:
        runs: Run folders, or folders of them.
        output: A folder for a web page (`index.html` and its pictures), or a file; without it, the text is returned.
        format: table, csv, markdown, json, latex or html; by default html into a folder or a file of that name, the
            table otherwise.
        by: Budget that a table shares: views, epochs or nothing; by default that of the benchmark that made the runs.
        branches: Networks of a run that have a row: default or all.
        images: Figures of the runs on a page: beside, embed or none.
        published: CSV or YAML file of numbers that others published.

    Returns:
        The path that was written, or the text.

    Raises:
        UserError: No such format, no run, or damaged records alone.
    """
    paths = [Path(run).expanduser() for run in ([runs] if isinstance(runs, str | PathLike) else runs)]
    numbers = Path(published) if published is not None else None
    target = Path(output).expanduser() if output is not None else None
    is_page = target is not None and (target.is_dir() or target.suffix.lower() in ("", ".html", ".htm"))
    chosen = format or ("html" if is_page else "table")
    checked_format(chosen)
    if target is None:
        return rendered(paths, chosen, by, numbers, branches)
    if chosen == "html":
        return write_page(paths, target, by, numbers, images, branches)
    if target.is_dir():
        raise UserError(f"output {target} is a folder: name a file in it")
    write_text(target, rendered(paths, chosen, by, numbers, branches))
    return target
