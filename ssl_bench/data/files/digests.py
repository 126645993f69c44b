"""sha256 of files, remembered by size, times and inode, so that what has not changed is read once. Torch-free."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from ssl_bench.console import say
from ssl_bench.data.files.cache import alone, cache_folder, read_cached, write_cached
from ssl_bench.data.files.listing import ImageFile

WHOLE = 16 << 30  # bytes of a set up to which files are read whole
SAMPLE = 4096  # bytes of its beginning, middle and end of a file of a larger set
MANY = 2 << 30  # bytes that take a while
JUST_NOW = 2 * 10**9  # nanoseconds in which a file may change twice and show one time
FORMAT = 1  # of what is remembered
TOGETHER = 64  # files that a thread takes at once


def read_whole(files: Sequence[ImageFile]) -> bool:
    """Whether a set is small enough for every byte to be read ahead of time."""
    return sum(file.size for file in files) <= WHOLE


def digests_of(root: str | os.PathLike[str], files: Sequence[ImageFile], part: str = "") -> list[str]:
    """32 hex digits for the content of each file; of a very large set, for its size and three samples.

    Args:
        root: The folder that names begin at: what is remembered is remembered for it.
        files: Below it.
        part: Which files these are, where several sets share a root.

    Returns:
        In the files' order; empty for a file that cannot be read.
    """
    whole = read_whole(files)
    real = os.path.realpath(root)
    place = hashlib.sha256(os.fsencode(f"{real}\0{part}")).hexdigest()[:16]
    name = f"digests/{place}-{'whole' if whole else 'samples'}"
    with alone(f"{name}.lock"):
        memory = read_cached(f"{name}.json")
        known = memory.get("files") if memory.get("format") == FORMAT else None
        known = known if isinstance(known, dict) else {}
        digests = [_digest_in(known.get(file.name), file) for file in files]
        new = [at for at, digest in enumerate(digests) if not digest]
        if not new:
            return digests
        size = sum(files[at].size for at in new)
        if size > MANY:
            where = f"remembered in {cache_folder()}"
            say(f"reading {len(new):,} files of {real} once ({size / 2**30:.0f} GiB), to know them again: {where}")
        start = time.time_ns()
        batches = [new[first : first + TOGETHER] for first in range(0, len(new), TOGETHER)]
        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                parts = threads.map(_digests, ([files[at] for at in batch] for batch in batches), repeat(whole))
                for batch, hashes in zip(batches, parts, strict=True):
                    for at, found in zip(batch, hashes, strict=True):
                        digests[at] = found
        finally:
            _remember(name, files, digests, start)
    return digests


def _digest_in(row: object, file: ImageFile) -> str:
    """What is remembered of a file, if it is of the file as it is now."""
    start = f"{_state(file)} "
    return row[len(start) :] if isinstance(row, str) and row.startswith(start) else ""


def _state(file: ImageFile) -> str:
    """What changes with a file's content."""
    return f"{file.size} {file.modified} {file.changed} {file.inode}"


def _remember(name: str, files: Sequence[ImageFile], digests: Sequence[str], start: int) -> None:
    """Those files that cannot have changed since without another time."""
    rows = {
        file.name: f"{_state(file)} {digest}"
        for file, digest in zip(files, digests, strict=True)
        if digest and max(file.modified, file.changed) < start - JUST_NOW
    }
    if rows:
        write_cached(f"{name}.json", {"format": FORMAT, "files": rows})


def _digests(files: Sequence[ImageFile], whole: bool) -> list[str]:
    return [_digest(file, whole) for file in files]


def _digest(file: ImageFile, whole: bool) -> str:
    try:
        with open(file.path, "rb") as opened:
            if whole:
                return hashlib.file_digest(opened, "sha256").hexdigest()[:32]
            sha = hashlib.sha256(str(file.size).encode())
            for at in (0, file.size // 2, max(0, file.size - SAMPLE)):
                opened.seek(at)
                sha.update(opened.read(SAMPLE))
            return sha.hexdigest()[:32]
    except OSError:
        return ""
