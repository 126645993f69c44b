"""A process that ends when the one that started it has ended, however that came about: kill -9 asks nobody."""

import os
import signal
import threading
import time

VARIABLE = "_SSL_BENCH_PARENT"  # not SSL_BENCH_*: those are options
EVERY = 0.5  # seconds


def marked_child(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a process that shall not outlive this one."""
    return environment | {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Watch the parent, if it asked for that; processes that this one starts are not concerned."""
    parent = os.environ.pop(VARIABLE, "")
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
