"""The head of the page: the answer in a few sentences, and when, on which images and by which code it was found."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape

from ssl_bench.leaderboard.page.plot import bdi
from ssl_bench.leaderboard.page.view import View
from ssl_bench.leaderboard.summary import summary
from ssl_bench.leaderboard.table import Table
from ssl_bench.leaderboard.text import joined, visible
from ssl_bench.records.files import read_regular
from ssl_bench.records.store import Run

MOST_BLOCKS = 3  # whose answers are on top: more would be no summary
MOST_BYTES = 2**22  # of environment.json


def header(table: Table, views: Sequence[View], runs: Sequence[Run]) -> str:
    """Title, sentences, facts."""
    answers = [
        (number, view, found) for number, view in enumerate(views) if (found := summary(view.block, view.compared))
    ]
    text = "".join(_answer(number, view, found, len(views) > 1) for number, view, found in answers[:MOST_BLOCKS])
    more = len(answers) - MOST_BLOCKS
    text += f"<p>{more} more tables are below.</p>\n" if more > 0 else ""
    facts = "".join(f"<dt>{escape(name)}<dd>{bdi(words)}" for name, words in _facts(table, runs))
    return f'<h1>Leaderboard</h1>\n<div class="summary">\n{text}</div>\n' + (
        f"<dl class=made>{facts}</dl>\n" if facts else ""
    )


def _answer(number: int, view: View, sentences: Iterable[str], several: bool) -> str:
    link = f' <a href="#block-{number}">Its table</a>' if several else ""
    return f"<p>{' '.join(map(bdi, sentences))}{link}</p>\n"


def _facts(table: Table, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Date, data, code and command, as far as they are known."""
    days = sorted({day for run in runs for day in [_day(run.info.finished or run.info.created)] if day})
    found = [("date", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")] if days else []
    data = {run.info.data.identity: run.info.data.fingerprint for run in runs}
    found += [("data", "; ".join(_images(title, digest, data[title, digest]) for title, digest in sorted(data)[:8]))]
    code = [f"ssl-bench {version}" for version in sorted({run.info.version for run in runs if run.info.version})]
    code += [f"commit {commit}" for commit in _commits(runs)]
    found += [("code", joined(code))] if code else []
    command = table.benchmark.command if table.benchmark else []
    return found + ([("command", shlex.join(command))] if command else [])


def _day(time: str) -> str:
    return time[:10] if re.match(r"\d{4}-\d\d-\d\d", time) else ""


def _images(title: str, digest: str, fingerprint: dict[str, object]) -> str:
    """`cifar10 (images aa11bb22): train 45000, test 1000`."""
    counts = fingerprint.get("images")
    shown = ", ".join(f"{name} {count}" for name, count in counts.items()) if isinstance(counts, dict) else ""
    return title + (f" (images {digest})" if digest else "") + (f": {shown}" if shown else "")


def _commits(runs: Iterable[Run]) -> list[str]:
    """Eight digits of each commit that the runs were made by."""
    found = set()
    for run in runs:
        try:
            git = json.loads(read_regular(run.folder / "environment.json", MOST_BYTES)).get("git") or {}
            commit, changed = git.get("commit"), git.get("changed")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # a run that was copied without it
        if isinstance(commit, str):
            found.add(visible(commit[:8]) + (", changed" if changed else ""))
    return sorted(found)
