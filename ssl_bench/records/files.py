"""Files and folders appear whole or not at all: written under a temporary name, flushed, renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if over:
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        text = f"-o {out} cannot be written ({error.strerror or error})"
        raise UserError(f"{text}: name a folder where you may write, with room for the weights") from None
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file; a byte of a file's name that is not UTF-8 becomes `\\udce9`, which JSON reads back."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
