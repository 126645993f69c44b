"""Digits on canvases: scikit-learn's digits placed, scaled and tinted at random on noisy, cluttered canvases.

Derived data, made for demonstrations: large enough to pretrain on, too hard for raw pixels, quick to learn with labels.
Each canvas has the same mean, the same noise and as many strokes as every other, so that two crops of a canvas cannot
be matched by their background: what they share is the digit.

Every random number and every sum is a whole number or a single rounded operation, so that all machines make the same
bytes from a seed.

Shapes: N canvases, S = 32 pixels, K pixels of a stroke's stamp.
"""

import numpy as np
import torch

from ssl_bench.config.options import DataOptions
from ssl_bench.data.pool import ResidentPool, Source
from ssl_bench.data.sources.digits import CLASSES, TRAIN, read

S = 32
COUNTS = {"train": 15_000, "test": 3_000}
SEEDS = {"train": 1, "test": 2}
CHUNK = 1000  # canvases made at once

HEIGHT = (12.0, 24.0)  # pixels over which the 8 rows of a digit are stretched
RATIO = (0.8, 1.25)  # width over height
INK = (0.3, 0.75)  # gray values of a digit between which its strokes fade in
VALUE, SATURATION = (0.8, 1.0), (0.4, 1.0)  # of its tint, whose hue is any
LEVEL, CONTRAST = 120.0, 10.0  # mean and standard deviation of every canvas without its digit
NOISE = 36  # of clutter's 127
STROKES, K = 6, 7  # a stroke in each of 6 x 6 cells


def load(options: DataOptions) -> Source:
    """15,000 canvases by the first ten writers to train on, 3,000 by the other four to test on."""
    rows = np.arange(len(read()[1]))
    return Source(train=_pool("train", rows[:TRAIN]), test=_pool("test", rows[TRAIN:]), classes=CLASSES)


def _pool(part: str, rows: np.ndarray) -> ResidentPool:
    images, digits = canvases(rows, COUNTS[part], SEEDS[part])
    ids = [f"digit{digit:04d}/{part}{canvas:05d}" for canvas, digit in enumerate(digits)]
    return ResidentPool(labels=read()[1][digits], ids=ids, images=torch.from_numpy(images))


def canvases(rows: np.ndarray, count: int, seed: int, inked: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Canvases of digits, each digit used about equally often.

    Args:
        rows: Of scikit-learn's digits.
        count: N.
        seed: Of all that is random.
        inked: Without, the same canvases before the digit is put on them.

    Returns:
        (N, 3, S, S) uint8 images and the (N,) row of each one's digit.
    """
    rng = np.random.default_rng(seed)
    glyphs = read()[0]
    digits = np.concatenate([rng.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]
    images = np.empty((count, 3, S, S), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        part = digits[start : start + CHUNK]
        ink, tint = _ink(rng, glyphs[part]), _tint(rng, len(part))
        canvas = _background(rng, len(part))
        if inked:
            canvas += ink[:, None] * (tint[:, :, None, None] - canvas)
        images[start : start + CHUNK] = np.clip(canvas + 0.5, 0, 255)
    return images, digits


def _ink(rng: np.random.Generator, glyphs: np.ndarray) -> np.ndarray:
    """(N, S, S) float32 in [0, 1]: each 8 x 8 glyph smoothly enlarged, somewhere on the canvas."""
    n = len(glyphs)
    height = HEIGHT[0] + (HEIGHT[1] - HEIGHT[0]) * rng.random(n)
    width = np.minimum(height * (RATIO[0] + (RATIO[1] - RATIO[0]) * rng.random(n)), S)
    down, across = (_stretch(rng.random(n) * (S - size), size) for size in (height, width))
    # Whole numbers in float64: the products' sums are exact in any order.
    enlarged = down @ glyphs @ across.transpose(0, 2, 1) / (16 * 1024 * 1024)
    ink: np.ndarray = np.clip((enlarged - INK[0]) / (INK[1] - INK[0]), 0, 1).astype(np.float32)
    return ink


def _stretch(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(N, S, 8) weights in 1024ths that draw 8 values over `size` pixels from `start` on, by Mitchell's cubic."""
    pixel = np.arange(S)[None] + 0.5
    at = (pixel - start[:, None]) / size[:, None] * 8 - 0.5
    d = np.abs(at[:, :, None] - np.arange(8))
    near = (7 * d * d * d - 12 * d * d + 16 / 3) / 6
    far = (-7 / 3 * d * d * d + 12 * d * d - 20 * d + 32 / 3) / 6
    weights: np.ndarray = np.rint(1024 * np.where(d < 1, near, np.where(d < 2, far, 0.0)))
    return weights


def _tint(rng: np.random.Generator, n: int) -> np.ndarray:
    """(N, 3) float32 colours, 0 to 255."""
    hue, saturation, value = rng.random((3, n, 1))
    saturation = SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation
    value = VALUE[0] + (VALUE[1] - VALUE[0]) * value
    wheel = np.clip(np.abs((6 * hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    tint: np.ndarray = (255 * value * (1 - saturation * (1 - wheel))).astype(np.float32)
    return tint


def _background(rng: np.random.Generator, n: int) -> np.ndarray:
    """(N, 3, S, S) float32: noise and short strokes, with the same mean and deviation in each channel of each image."""
    field = rng.integers(-NOISE, NOISE + 1, (n, 3, S, S), dtype=np.int16)
    padded = np.zeros((n, 3, S + 2 * K, S + 2 * K), dtype=np.int16)
    stamps = _stamps()
    cells = STROKES * STROKES
    kinds = rng.integers(0, len(stamps), (n, cells))
    colours = _hues()[rng.integers(0, 26, (n, cells))]
    jitter = (rng.random((n, cells, 2)) * (S / STROKES)).astype(np.int64)
    rows, channels, span = np.arange(n)[:, None, None, None], np.arange(3)[:, None, None], np.arange(K)
    for cell in range(cells):
        corner = np.array([cell // STROKES, cell % STROKES]) * S // STROKES + jitter[:, cell] + K - K // 2
        y = corner[:, 0, None, None, None] + span[:, None]
        x = corner[:, 1, None, None, None] + span
        padded[rows, channels, y, x] += stamps[kinds[:, cell], None] * colours[:, cell, :, None, None]
    field += padded[:, :, K:-K, K:-K]
    mean = field.sum((2, 3), dtype=np.int64) / S**2
    squares = np.square(field, dtype=np.int32).sum((2, 3), dtype=np.int64) / S**2
    scale = CONTRAST / np.sqrt(squares - mean * mean)
    mean, scale = (value[:, :, None, None].astype(np.float32) for value in (mean, scale))
    canvas: np.ndarray = (field - mean) * scale + np.float32(LEVEL)
    return canvas


def _hues() -> np.ndarray:
    """(26, 3) whole numbers: colours around gray, equally far from it."""
    corners = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], [-1, 0, 1]), -1).reshape(27, 3)
    corners = corners[corners.any(1)]
    hues: np.ndarray = np.rint(12 * corners / np.sqrt((corners * corners).sum(1, keepdims=True))).astype(np.int16)
    return hues


def _stamps() -> np.ndarray:
    """(16, K, K) whole numbers that sum to about 0: a short stroke in 16 directions with its darker rim."""
    y, x = np.mgrid[:K, :K] - (K - 1) / 2
    angle = np.arange(16)[:, None, None] * (np.pi / 16)
    along, beside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    ends = np.exp(-((along / 2.5) ** 4))
    stroke = ends * (np.exp(-((beside / 0.8) ** 2)) - 0.5 * np.exp(-((beside / 1.6) ** 2)))
    stamps: np.ndarray = np.rint(20 * (stroke - stroke.mean((1, 2), keepdims=True))).astype(np.int16)
    return stamps
