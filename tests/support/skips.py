"""Which tests may be skipped: skips are counted by reason, and one that is not listed fails a run in CI."""

import os
from collections import Counter

import pytest

ALLOWED = (
    "IMAGENET_SUBSETS names no folder",  # lists that come with google-research/simclr
    "finds processes in /proc",
    "needs Chromium",
    "needs Ray",
    "needs SLURM, munge and root",
    "needs a CUDA device",
    "the CIFAR-10 parquet files are not here",
    "the sample of 62 photographs is not here",
)


def reasons(reporter: pytest.TerminalReporter) -> Counter[str]:
    """How many tests, or files, were skipped for each reason."""
    details = (report.longrepr for report in reporter.stats.get("skipped", ()))
    return Counter(detail[2].removeprefix("Skipped: ") for detail in details if isinstance(detail, tuple))


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # of one process: workers have none
    if os.environ.get("CI") and reporter is not None and session.exitstatus == pytest.ExitCode.OK:
        allowed = all(reason.startswith(ALLOWED) for reason in reasons(reporter))
        session.exitstatus = pytest.ExitCode.OK if allowed else pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in sorted(reasons(terminalreporter).items()):
        known = reason.startswith(ALLOWED)
        remark = "" if known else " (not in ALLOWED of tests/support/skips.py)"
        terminalreporter.write_line(f"{count} skipped: {reason}{remark}", red=not known)
