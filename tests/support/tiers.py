"""Which tests `make test` runs, and which `make integration`: a test that starts processes is one of integration."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FIXTURES = {"browser", "server"}  # a test that takes one is of integration: they start Chromium, or W&B's own process
PROGRAMS = ("python", "chromium", "wandb-core")  # that take seconds to start
LATER = ("integration", "slow")
running: list[pytest.Item] = []  # the fast test that runs now, if one does


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("integration")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    running[:] = [] if any(item.get_closest_marker(tier) for tier in LATER) else [item]
    try:
        return (yield)
    finally:
        running.clear()


def refuse_processes(event: str, given: tuple[Any, ...]) -> None:
    """An audit hook: a fast test starts no program that takes seconds."""
    if event == "subprocess.Popen" and running:
        program = Path(str(given[0])).name
        if program.startswith(PROGRAMS):
            raise RuntimeError(f"{running[0].nodeid} starts {program}: mark it @pytest.mark.integration")


sys.addaudithook(refuse_processes)
