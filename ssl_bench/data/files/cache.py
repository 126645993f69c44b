"""What is remembered of data between runs, outside the data: in `$SSL_BENCH_CACHE`, else the user's cache. Torch-free.

All of it can be made again. Where the folder cannot be written, everything works, and nothing is remembered.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_bench.console import say
from ssl_bench.records.files import DAY, clear_temporary, replacing

_said: set[str] = set()


def cache_folder() -> Path:
    """`$SSL_BENCH_CACHE`, else `ssl-bench` in the user's cache folder."""
    if own := os.environ.get("SSL_BENCH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "ssl-bench"


def read_cached(name: str) -> dict[str, Any]:
    """A file of the cache; empty where there is none, or a damaged one."""
    try:
        with open(cache_folder() / name, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_cached(name: str, value: dict[str, Any]) -> None:
    """Write a file of the cache; where that cannot be done, say so once."""
    path = cache_folder() / name
    try:
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, separators=(",", ":")))
        clear_temporary(path.parent, DAY)
    except OSError as error:
        if str(path.parent) not in _said:
            _said.add(str(path.parent))
            why = error.strerror or error
            say(f"{path.parent} cannot be written ({why}), so images are read again at each start: SSL_BENCH_CACHE")


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time, so that what one of them finds out is there for the others."""
    try:
        import fcntl

        path = cache_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")  # noqa: SIM115  held open while the lock is
    except (ImportError, OSError):
        yield
        return
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
