"""Files and folders appear whole or not at all: written under a temporary name, flushed, renamed.

A temporary file is named `.NAME.HOST-PROCESS-RANDOM.tmp`, so that no two writers share one, on whatever machines or in
whatever containers they are. What a killed process left behind is found by that name (`clear_temporary`).

Files of others are read with bounds: a FIFO, a device or a file of many gigabytes in a folder that was copied from
elsewhere is refused, and nothing waits for it.
"""

import errno
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from io import BufferedReader
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError
from ssl_bench.records.processes import runs

DAY = 86_400.0  # seconds
MOST_TEXT = 2**24  # bytes


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


def clear_temporary(folder: Path, elsewhere_after: float = 0.0, pattern: str = "**/.*.tmp") -> None:
    """Remove what killed processes left in a folder, not what a living one is writing.

    Args:
        folder: A run's, or another that this program fills.
        elsewhere_after: Seconds after which another machine's is taken to be left behind: whether its process lives
            cannot be asked. 0 where no other machine may be writing.
        pattern: Of names in the folder; by default also in its subfolders.
    """
    for path in list(folder.glob(pattern)):
        maker = re.search(r"\.([^.]+)-(\d+)-[0-9a-f]{8}\.tmp$", path.name)
        with suppress(OSError):
            if maker is not None and maker[1] == _host():
                left = not runs(int(maker[2]))
            else:
                left = time.time() - path.lstat().st_mtime >= elsewhere_after
            if left and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif left:
                path.unlink()


def _host() -> str:
    return re.sub(r"[^\w-]+", "_", os.uname().nodename)[:40] or "host"


def disk_time(beside: Path) -> float:
    """What time it is by the clock of a path's file system.

    Raises:
        OSError: Its folder cannot be written.
    """
    probe = temporary_beside(beside)
    try:
        with open(probe, "xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def age(path: Path) -> float:
    """Seconds since a file was renewed, by the clock of its file system; 0 where that cannot be asked."""
    try:
        with open(path, "rb") as file:  # opening it asks the server
            renewed = os.fstat(file.fileno()).st_mtime
        return disk_time(path) - renewed
    except OSError:
        return 0.0


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
        clear_temporary(path.parent, DAY, f".{escape(path.name)}.*.tmp")
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


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """A regular file opened to be read; a link to one is followed.

    Raises:
        OSError: It cannot be read, or is a FIFO, a device or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # which does not wait for a FIFO's writer
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _kind(mode), str(path))
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_regular(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file.

    Args:
        path: Of the file.
        most: Bytes that it may have; by default those of a text that a person writes.

    Raises:
        OSError: As `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most}", str(path))
        return file.read(size)


def in_words(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "it is gone"
    return (error.strerror if isinstance(error, OSError) else None) or f"it is damaged ({str(error)[:100]})"


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a regular file of the folder itself: no link in it leads out of the folder."""
    try:
        real = path.resolve(strict=True)
        return real.is_relative_to(folder.resolve(strict=True)) and stat.S_ISREG(os.stat(real).st_mode)
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError up to Python 3.12
        return False


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "FIFO"), (stat.S_ISSOCK, "socket"))
    return f"it is a {next((name for holds, name in kinds if holds(mode)), 'device')}, not a regular file"


def write_text(path: Path, text: str) -> None:
    """Write a whole text file; a byte of a file's name that is not UTF-8 becomes `\\udce9`, which JSON reads back."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
