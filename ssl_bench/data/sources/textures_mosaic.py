"""Mosaics of the generated textures with the class of each pixel: segmentation without a download.

An image is parted into three to five regions, each nearest to a centre of its own, by borders that are bent at random;
sometimes a disc or a square lies on top. Each region is filled by a texture of another class with colours, scale and
direction of its own. A line of one pixel on either side of every border is of no class, as in PASCAL VOC.

Shapes: N images, T = 64 pixels, R regions.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_bench.config.options import DataOptions
from ssl_bench.data.masks import IGNORE, ResidentMasks
from ssl_bench.data.pool import ResidentPool, Source
from ssl_bench.data.sources.textures import CHUNK, CLASSES, NOISE, PATTERNS, PERIOD, Draws, coloured

T = 64
COUNTS = {"train": 600, "test": 240}
SEEDS = {"train": 11, "test": 12}
FEWEST, MOST = 3, 5  # regions
BEND = 5.0  # pixels by which borders are bent, at most
SHAPED = 0.5  # part of the images with a shape on top


def load(options: DataOptions) -> Source:
    """600 images to train on and 240 to test on."""
    return Source(train=_pool("train"), test=_pool("test"), classes=CLASSES)


def _pool(part: str) -> ResidentPool:
    images, masks = mosaics(COUNTS[part], SEEDS[part])
    ids = [f"{part}{row:05d}" for row in range(len(images))]
    resident = ResidentMasks(values=torch.from_numpy(masks))
    return ResidentPool(labels=None, ids=ids, images=torch.from_numpy(images), masks=resident)


def mosaics(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(N, 3, T, T) images and the (N, T, T) class of each pixel, or IGNORE."""
    rng = np.random.default_rng(seed)
    regions = _regions(rng, count)  # (N, T, T)
    order = rng.random((count, len(CLASSES))).argsort(1)  # (N, classes): region r of an image is of class order[r]
    labels = np.take_along_axis(order, regions.reshape(count, -1), 1).reshape(regions.shape).astype(np.uint8)
    images = np.zeros((count, 3, T, T), dtype=np.uint8)
    for label, pattern in enumerate(PATTERNS.values()):
        rows = np.flatnonzero((labels == label).any((1, 2)))
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            draws = Draws(rng, len(some), PERIOD["medium"], side=T)
            filled = coloured(draws, np.clip(2 * pattern(draws), -1, 1), NOISE["medium"])
            images[some] = np.where((labels[some] == label)[:, None], filled, images[some])
    return images, np.where(_borders(regions), np.uint8(IGNORE), labels)


def _regions(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """(N, T, T) number of the region that each pixel lies in."""
    draws = Draws(rng, count, PERIOD["medium"], side=T)
    y, x = np.mgrid[:T, :T] + 0.5
    y = y + 2 * BEND * (draws.smooth(24.0) - 0.5)
    x = x + 2 * BEND * (draws.smooth(24.0) - 0.5)
    many = rng.integers(FEWEST, MOST + 1, count)  # (N,)
    centres = T * rng.random((count, MOST, 2))
    away = (y[:, None] - centres[:, :, 0, None, None]) ** 2 + (x[:, None] - centres[:, :, 1, None, None]) ** 2
    away[np.arange(MOST)[None] >= many[:, None]] = np.inf
    regions = away.argmin(1)  # (N, T, T)
    middle = T * (0.25 + 0.5 * rng.random((count, 2, 1, 1)))
    radius = T * (0.12 + 0.12 * rng.random((count, 1, 1)))
    down, across = np.abs(y - middle[:, 0]), np.abs(x - middle[:, 1])
    round_ones = rng.random((count, 1, 1)) < 0.5
    inside = np.where(round_ones, down**2 + across**2 < radius**2, np.maximum(down, across) < radius)
    inside &= rng.random((count, 1, 1)) < SHAPED
    return np.asarray(np.where(inside, MOST, regions))


def _borders(regions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, T, T) whether a pixel's neighbour on the right, left, above or below is of another region."""
    found = np.zeros(regions.shape, dtype=bool)
    for axis in (1, 2):
        differ = np.diff(regions, axis=axis) != 0
        before = [slice(None)] * 3
        after = [slice(None)] * 3
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        found[tuple(before)] |= differ
        found[tuple(after)] |= differ
    return found
