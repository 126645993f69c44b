"""Images that can be used: broken ones left out, small ones of one size decoded into memory, others left encoded.

Each image is decoded once to see whether it is whole and which values it holds; what was found is remembered by the
content, so that the next start looks at nothing again. Of a very large set only some images are looked at beforehand,
and damage is found when the others are decoded.

Shapes: N images, H x W pixels.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import PIL
import torch
from PIL import Image

from ssl_bench.config.constraints import two_numbers
from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.decode import COLOUR_16, UNREAD, BrokenImage, Check, Range, check, guess_range
from ssl_bench.data.files.cache import read_cached, write_cached
from ssl_bench.data.pixel_cache import pixels_key, read_pixels, write_pixels
from ssl_bench.data.pool import EncodedPool, Pool, ResidentPool
from ssl_bench.errors import UserError

SMALL = 96  # pixels
RESIDENT = 16 << 30  # bytes that decoded images may take
LOOKED_AT = 1000  # images of a very large set that are decoded beforehand
MANY = 20_000  # images whose decoding takes a while
TOGETHER = 64  # images that a thread takes at once
FORMAT = 1  # of what is remembered
UPPER_BITS = 2**14  # values of 16-bit colour below which too little is left in the upper eight bits


def usable(pools: Sequence[EncodedPool], options: DataOptions) -> list[Pool]:
    """The pools of one set without the images that cannot be used; those of small images decoded.

    Args:
        pools: Encoded images, none of them looked at yet.
        options: `value_range`; `strict` to stop at a broken image rather than leave it out.

    Raises:
        UserError: An image is broken and `strict` is set, or all of a pool's are; `value_range` is no range.
    """
    if options.channels not in (None, 1, 3):
        raise UserError(
            f"--data.channels {options.channels}: image files are read as gray (1) or RGB (3); save images of other "
            "channels as an array (N, C, H, W), .npy or .zarr"
        )
    given = parse_range(options.value_range)
    found = [_checks(pool) for pool in pools]
    deep = [result for checks in found for result in checks.values() if result.kind is not None]
    ranges = _ranges(deep, given)
    dark = [result.high for result in deep if result.kind == COLOUR_16]
    too_dark = "16-bit colour that fills fewer than 14 bits, of which only the upper 8 can be read: save it as 8 bits"
    ready: list[Pool] = []
    for pool, checks in zip(pools, found, strict=True):
        faults = {row: result.fault for row, result in checks.items() if result.fault is not None}
        if dark and max(dark) < UPPER_BITS:
            faults |= {row: too_dark for row, result in checks.items() if result.kind == COLOUR_16}
        used = {kind: ranges[kind] for kind in sorted({c.kind for c in checks.values() if c.kind in ranges} - {None})}
        kept = _without(
            replace(pool, ranges=used, gray=options.channels == 1), dict(sorted(faults.items())), options.strict
        )
        ready.append(_decoded(kept, options.strict) or kept)
    return ready


def parse_range(text: str | None) -> Range | None:
    """`low,high`; None for a range to be guessed.

    Raises:
        UserError: It is neither.
    """
    if text is None or text == "auto":
        return None
    if (found := two_numbers(text)) is None:
        raise UserError(f"--data.value_range is {text!r}: give the values of black and white, 0,4095 say, or auto")
    return found


def _ranges(deep: Sequence[Check], given: Range | None) -> dict[str, Range]:
    """Kind of values -> what becomes black and white, in all images of the set."""
    ranges: dict[str, Range] = {}
    for kind in sorted({result.kind for result in deep if result.kind not in (None, COLOUR_16)}):
        low = min(result.low for result in deep if result.kind == kind)
        high = max(result.high for result in deep if result.kind == kind)
        ranges[kind] = given or guess_range(kind, low, high)
        if given is None:
            black, white = ranges[kind]
            text = f"{kind} values ({low:g} to {high:g}) are scaled from {black:g},{white:g} to 0,255"
            say(f"{text}: --data.value_range says otherwise")
    return ranges


def _checks(pool: EncodedPool) -> dict[int, Check]:
    """Row -> what was found, for images that are broken, have more than 8 bits, or have a sign."""
    content = hashlib.sha256("\n".join([PIL.__version__, *pool.content]).encode()).hexdigest()[:32]
    name = f"checks/{content}.json"
    remembered = _remembered(name)
    if remembered is not None:
        return remembered
    rows = np.arange(len(pool))
    if not pool.whole:
        rows = np.unique(np.linspace(0, len(pool) - 1, LOOKED_AT).astype(np.int64))
    if len(rows) > MANY:
        say(f"decoding {len(rows):,} images once, to see whether they are whole; the result is remembered")
    batches = np.array_split(rows, max(1, -(-len(rows) // TOGETHER)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        results = threads.map(lambda batch: [check(pool.encoded[row]) for row in batch], batches)
        every = dict(zip(rows.tolist(), (result for batch in results for result in batch), strict=True))
    found = {row: result for row, result in every.items() if result != Check()}
    if not any((result.fault or "").startswith(UNREAD) for result in found.values()):  # it may be readable next time
        write_cached(name, {"format": FORMAT, "found": {row: asdict(result) for row, result in found.items()}})
    return found


def _remembered(name: str) -> dict[int, Check] | None:
    memory = read_cached(name)
    try:
        return {int(r): Check(**c) for r, c in memory["found"].items()} if memory["format"] == FORMAT else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _decoded(pool: EncodedPool, strict: bool) -> Pool | None:
    """The images in memory, or None when they are large or of several sizes."""
    first = _first(pool)
    kind = np.float32 if pool.deep else np.uint8
    size = pool.channels * np.dtype(kind).itemsize
    if first is None or max(first.size) > SMALL or size * first.width * first.height * len(pool) > RESIDENT:
        return None
    key = pixels_key(pool)
    images = read_pixels(key, len(pool), kind)
    if images is not None:
        return _resident(pool, images)
    images = np.empty((len(pool), pool.channels, first.height, first.width), dtype=kind)
    faults: dict[int, str] = {}
    for row in range(len(pool)):
        try:
            image = pool.image(row)
        except BrokenImage as error:
            faults[row] = str(error)
            continue
        if image.size != first.size:
            return None
        images[row] = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    kept = _without(pool, faults, strict)
    if faults:
        images = np.delete(images, list(faults), axis=0)
    else:
        write_pixels(key, images)
    return _resident(kept, images)


def _resident(pool: EncodedPool, images: np.ndarray) -> ResidentPool:
    same = {"labels": pool.labels, "ids": pool.ids, "skipped": pool.skipped, "masks": pool.masks}
    return ResidentPool(images=torch.from_numpy(images), **same)  # type: ignore[arg-type]


def _first(pool: EncodedPool) -> Image.Image | None:
    """The first image that can be decoded."""
    for row in range(len(pool)):
        try:
            return pool.image(row)
        except BrokenImage:
            continue
    return None


def _without(pool: EncodedPool, faults: Mapping[int, str], strict: bool) -> EncodedPool:
    if not faults:
        return pool
    first = next(f"{pool.ids[row]} ({why})" for row, why in faults.items())
    if strict:
        raise UserError(f"broken image {first}: remove it, or leave out --data.strict to skip such files")
    if len(faults) == len(pool):
        raise UserError(f"none of the {len(pool)} files is a readable image, beginning with {first}")
    names = {pool.ids[row]: why for row, why in faults.items()}
    return replace(pool.take(np.delete(np.arange(len(pool)), list(faults))), skipped={**pool.skipped, **names})
