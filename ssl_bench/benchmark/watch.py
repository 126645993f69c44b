"""What a benchmark shows while it runs: a table on a terminal, a line now and then elsewhere. Torch-free."""

import sys
import time
from typing import TYPE_CHECKING, final

from ssl_bench.benchmark.executors.executor import last_line
from ssl_bench.benchmark.grid import Grid, Watch
from ssl_bench.console import say

if TYPE_CHECKING:  # rich is imported where something is drawn
    from rich.table import Table

SHOWN_JOBS = 20  # that run; and half as many that failed
REDRAW_SECONDS, LINE_SECONDS = 1.0, 60.0


def counts(grid: Grid) -> str:
    """`3 waiting, 2 running, 1 elsewhere, 10 done, 1 failed of 17`."""
    running = sum(active.running for active in grid.active.values())
    waiting = len(grid.waiting) - len(grid.elsewhere) + len(grid.active) - running
    failed = sum(job not in grid.waiting for job in grid.failed)
    elsewhere = f"{len(grid.elsewhere)} in other hands, " if grid.elsewhere else ""
    done = grid.total - len(grid.waiting) - len(grid.active) - failed
    return f"{waiting} waiting, {running} running, {elsewhere}{max(0, done)} done, {failed} failed of {grid.total}"


@final
class Lines(Watch):
    """The counts, once a minute where they have changed."""

    def __init__(self) -> None:
        self.said, self.next = "", time.monotonic() + LINE_SECONDS

    def show(self, grid: Grid) -> None:
        if time.monotonic() >= self.next and (line := counts(grid)) != self.said:
            say(line)
            self.said, self.next = line, time.monotonic() + LINE_SECONDS


@final
class LiveTable(Watch):
    """What runs, for how long, and what it says last: its rate and the time left; then what failed, and how."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self.live.start()
        self.next = 0.0

    def show(self, grid: Grid) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + REDRAW_SECONDS
            self.live.update(drawn(grid), refresh=True)

    def close(self) -> None:
        self.live.stop()


def drawn(grid: Grid) -> "Table":
    """The table of a grid as it is now."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=counts(grid), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), expand=True
    )
    for heading, share in (("job", 2), ("", 1), ("says", 3)):
        table.add_column(heading, ratio=share, no_wrap=True, overflow="ellipsis")
    running = [(job, active) for job, active in grid.active.items() if active.running]
    for job, active in running[:SHOWN_JOBS]:
        minutes = f"{(time.monotonic() - active.begun) / 60:.1f} min"
        table.add_row(Text(job.title), minutes, Text(last_line(active.task.log)))
    if len(running) > SHOWN_JOBS:
        table.add_row(f"and {len(running) - SHOWN_JOBS} more", "", "")
    failed = [(job, tail) for job, tail in grid.failed.items() if job not in grid.waiting]
    for job, tail in failed[-SHOWN_JOBS // 2 :]:
        table.add_row(Text(job.title), "failed", Text((tail.splitlines() or [""])[-1].strip()))
    return table


def watch() -> Watch:
    """The one for standard error."""
    return LiveTable() if sys.stderr.isatty() else Lines()
