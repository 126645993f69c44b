"""Files and folders appear whole or not at all: written under a temporary name, flushed, renamed.

A temporary file is named `.NAME.HOST-PROCESS-RANDOM.tmp`, so that no two writers share one, on whatever machines or in
whatever containers they are. What a killed process left behind is found by that name (`clear_temporary`).
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError


def temporary_beside(path: Path, end: str = "tmp") -> Path:
    """A name in the same folder that no other process, here or elsewhere, gives."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{os.urandom(4).hex()}.{end}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    The file has the permissions that the umask gives, whoever writes it, and is on the disk when the block is left.

    Raises:
        OSError: It cannot be written; ``filename`` says which.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file
            error.filename2 = None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clear_temporary(folder: Path) -> None:
    """Remove what killed processes left in a folder and its subfolders, not what a living one here is writing."""
    for path in folder.rglob(".*.tmp"):
        maker = re.search(r"\.([^.]+)-(\d+)-[0-9a-f]{8}\.tmp$", path.name)
        if maker is not None and maker[1] == _host() and _runs(int(maker[2])):
            continue
        with suppress(OSError):
            path.unlink()


def _host() -> str:
    return re.sub(r"[^\w-]+", "_", os.uname().nodename)[:40] or "host"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def writing_folder(out: Path, over: bool = False) -> Iterator[Path]:
    """Yield a new folder beside ``out`` (of `-o`); it gets that name if the block succeeds, and goes if not.

    Args:
        out: Where the folder will be.
        over: Whether one is there already, whose place it takes.

    Raises:
        UserError: It cannot be written.
    """
    path = out.absolute()
    temporary, old = (temporary_beside(path, end) for end in ("tmp", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if over:
            os.replace(path, old)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        text = f"-o {out} cannot be written ({error.strerror or error})"
        raise UserError(f"{text}: name a folder where you may write, with room for the weights") from None
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
