"""Where encoded images live: small ones of one size in memory, decoded; photographs stay files, checked for damage.

Shapes: N images, H x W pixels.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from ssl_bench.data.decode import BrokenImage, fault
from ssl_bench.data.pool import EncodedPool, Pool, ResidentPool
from ssl_bench.errors import UserError

SMALL = 96  # pixels
RESIDENT = 16 << 30  # bytes that decoded images may take
CHECKED = 50_000  # files beyond which damage shows only when they are decoded


def resident_if_small(pool: EncodedPool, strict: bool) -> Pool:
    """The pool without its broken images: decoded when all are small and of one size, encoded otherwise.

    Args:
        pool: Encoded images, none of them looked at yet.
        strict: Stop at a broken image rather than skip it.

    Raises:
        UserError: An image is broken and `strict` is set, or all are.
    """
    resident = _decoded(pool, strict)
    if resident is not None:
        return resident
    if len(pool) > CHECKED:
        return pool
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        faults = dict(enumerate(threads.map(fault, pool.encoded)))
    return _without(pool, {row: why for row, why in faults.items() if why is not None}, strict)


def _decoded(pool: EncodedPool, strict: bool) -> Pool | None:
    """The images in memory, or None when they are large or of several sizes."""
    images: np.ndarray | None = None  # (N, H, W, 3) uint8
    faults: dict[int, str] = {}
    for row in range(len(pool)):
        try:
            image = pool.image(row)
        except BrokenImage as error:
            faults[row] = str(error)
            continue
        if images is None:
            if max(image.size) > SMALL or 3 * image.width * image.height * len(pool) > RESIDENT:
                return None
            images = np.empty((len(pool), image.height, image.width, 3), dtype=np.uint8)
        if images.shape[1:3] != (image.height, image.width):
            return None
        images[row] = image
    kept = _without(pool, faults, strict)
    assert images is not None, "images that are all broken are the user's error"
    whole = np.delete(images, list(faults), axis=0) if faults else images
    resident = torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous()
    return ResidentPool(labels=kept.labels, ids=kept.ids, skipped=kept.skipped, images=resident)


def _without(pool: EncodedPool, faults: dict[int, str], strict: bool) -> EncodedPool:
    if not faults:
        return pool
    first = next(f"{pool.ids[row]} ({why})" for row, why in faults.items())
    if strict:
        raise UserError(f"broken image {first}: remove it, or leave out --data.strict to skip such files")
    if len(faults) == len(pool):
        raise UserError(f"none of the {len(pool)} files is a readable image, beginning with {first}")
    names = tuple(pool.ids[row] for row in faults)
    warnings.warn(f"{len(faults)} of {len(pool)} images are broken and left out, beginning with {first}", stacklevel=2)
    return replace(pool.take(np.delete(np.arange(len(pool)), list(faults))), skipped=pool.skipped + names)
