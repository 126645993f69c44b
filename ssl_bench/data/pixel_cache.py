"""Small images, decoded once and kept in the cache, so that the next start decodes none of them.

Shapes: N images, H x W pixels.
"""

import hashlib
import json
import os
import zlib

import numpy as np
import PIL

from ssl_bench.data.files.cache import cache_folder
from ssl_bench.data.pool import EncodedPool
from ssl_bench.records.files import DAY, clear_temporary, replacing

FEWEST = 2000  # images below which decoding takes less than a second
LARGEST = 4 << 30  # bytes that one set may take
ALL = 16 << 30  # bytes that all sets may take; the one that was not used for longest goes first


def pixels_key(pool: EncodedPool) -> str:
    """A hash of all that the decoded images depend on."""
    what = json.dumps([PIL.__version__, pool.ranges, *(["gray"] if pool.gray else []), *pool.content], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def read_pixels(key: str, count: int, kind: type) -> np.ndarray | None:
    """(N, C, H, W) of a kind of numbers, or None where they are not kept."""
    path = cache_folder() / "pixels" / f"{key}.npy"
    try:
        with open(path, "rb") as file:
            images: np.ndarray = np.load(file, allow_pickle=False)
            if file.read() != _checksum(images):
                return None
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.ndim == 4 and len(images) == count and images.dtype == kind else None


def _checksum(images: np.ndarray) -> bytes:
    """What stands behind the images in their file; a tenth of a second for 100,000 of 32 pixels."""
    return zlib.crc32(np.ascontiguousarray(images).data).to_bytes(4, "little")


def write_pixels(key: str, images: np.ndarray) -> None:
    """Keep (N, C, H, W), if it is worth it and there is room."""
    if len(images) < FEWEST or images.nbytes > LARGEST:
        return
    folder = cache_folder() / "pixels"
    try:
        with replacing(folder / f"{key}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, images)
            file.write(_checksum(images))
        clear_temporary(folder, DAY)
        used = 0
        for kept in sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True):
            used += kept.stat().st_size
            if used > ALL:
                kept.unlink(missing_ok=True)
    except OSError:
        return  # a full disk, or one that cannot be written: they are decoded again
