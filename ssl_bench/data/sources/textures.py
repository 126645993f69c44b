"""Twelve classes of generated textures, for demonstrations: raw pixels fail on them, a small network learns them.

The class is the kind of pattern. Everything else is drawn anew for each image: direction, scale, phase, colours, and
noise. In each channel the pattern is multiplied by a smooth random field that changes its sign several times over an
image, and lies on a ground that changes as smoothly: pixels of two images of a class agree by chance alone, while
neighbouring pixels of one image tell of each other. Brightness and contrast of an image's pixels are the same in every
image, and its colours change from place to place, so that two crops of one image cannot be matched by their colour or
shading: what they share is the pattern.

Every random number comes from uniform draws, and what a machine may round differently (sines, angles) is rounded to a
millionth first, so that all machines make the same bytes from a seed.

Shapes: N images, S = 32 pixels.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_bench.config.options import DataOptions
from ssl_bench.data.pool import ResidentPool, Source

S = 32
COUNTS = {"train": 15_000, "test": 3_000}
SEEDS = {"train": 1, "test": 2}
CHUNK = 1000  # images made at once
NOISE = {"easy": 4.0, "medium": 10.0, "hard": 32.0}  # largest deviation of a pixel, of 255
PERIOD = {"easy": (5.0, 8.0), "medium": (4.5, 9.0), "hard": (4.0, 11.0)}  # pixels
LEVEL, CONTRAST = 128.0, 44.0  # mean and standard deviation of every channel without noise
GROUND, BUMPS = 0.7, 12.0  # how much the ground changes, relative to the pattern, and over how many pixels

Field = NDArray[np.float64]


class Draws:
    """What is random in a chunk of images, and the coordinates that follow from it.

    Args:
        rng: Where it is drawn.
        n: N.
        period: Least and largest, in pixels.
        side: S.
    """

    def __init__(self, rng: np.random.Generator, n: int, period: tuple[float, float], side: int = S) -> None:
        self.rng, self.n, self.side = rng, n, side
        self.period = self.uniform(*period)  # (N, 1, 1)
        angle = self.uniform(0.0, 2 * np.pi)
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        self.u = rounded(np.cos(angle)) * x + rounded(np.sin(angle)) * y  # (N, S, S)
        self.v = rounded(np.cos(angle)) * y - rounded(np.sin(angle)) * x

    def uniform(self, low: float, high: float) -> Field:
        """(N, 1, 1) numbers."""
        return low + (high - low) * self.rng.random((self.n, 1, 1))

    def phase(self) -> Field:
        """(N, 1, 1) parts of a period."""
        return self.uniform(0.0, 1.0)

    def polar(self) -> tuple[Field, Field]:
        """(N, S, S) distance from a random place on the image, and angle around it, in turns."""
        most = 0.375 * self.side
        x, y = self.u - self.uniform(-most, most), self.v - self.uniform(-most, most)
        return np.sqrt(x * x + y * y), rounded(np.arctan2(y, x) / (2 * np.pi))

    def smooth(self, cells: float) -> Field:
        """(N, S, S) smooth random field in [0, 1], its bumps about `cells` pixels apart."""
        knots = int(np.ceil(self.side / cells)) + 2
        grid = self.rng.random((self.n, knots, knots))
        at = np.arange(self.side)[None] / cells + self.rng.random((self.n, 1))
        low = at.astype(np.int64)
        part = at - low
        part = part * part * part * (part * (6 * part - 15) + 10)
        rows = np.arange(self.n)[:, None, None]
        top, left = np.minimum(low, knots - 2)[:, :, None], np.minimum(low, knots - 2)[:, None, :]
        down, across = part[:, :, None], part[:, None, :]
        upper = grid[rows, top, left] * (1 - across) + grid[rows, top, left + 1] * across
        lower = grid[rows, top + 1, left] * (1 - across) + grid[rows, top + 1, left + 1] * across
        field: Field = upper * (1 - down) + lower * down
        return field


def rounded(values: Field) -> Field:
    """Values to a millionth: machines differ beyond that."""
    return np.rint(values * 1e6) / 1e6


def wave(turns: Field) -> Field:
    """Sine of an angle in turns."""
    return rounded(np.sin(2 * np.pi * turns))


def triangle(turns: Field) -> Field:
    """A wave of straight lines between -1 and 1."""
    return 4 * np.abs(turns - np.floor(turns + 0.5)) - 1


def middle(turns: Field) -> Field:
    """Distance from the middle of the cell, in cells: -0.5 to 0.5."""
    return turns - np.floor(turns) - 0.5


def stripes(d: Draws) -> Field:
    return wave(d.u / d.period + d.phase())


def checks(d: Draws) -> Field:
    side = 1.4 * d.period
    return 2 * wave(d.u / side + d.phase()) * wave(d.v / side + d.phase())


def dots(d: Draws) -> Field:
    x, y = middle(d.u / d.period + d.phase()), middle(d.v / d.period + d.phase())
    return 6 * (0.3 - np.sqrt(x * x + y * y))


def rings(d: Draws) -> Field:
    distance, _ = d.polar()
    return wave(distance / d.period + d.phase())


def rays(d: Draws) -> Field:
    _, angle = d.polar()
    return wave(angle * np.floor(d.uniform(7, 12)) + d.phase())


def spirals(d: Draws) -> Field:
    distance, angle = d.polar()
    arms = np.floor(d.uniform(2, 4)) * np.where(d.phase() < 0.5, -1.0, 1.0)
    return wave(distance / (1.4 * d.period) + angle * arms + d.phase())


def zigzag(d: Draws) -> Field:
    bend = 0.6 * triangle(d.v / (1.5 * d.period) + d.phase())
    return wave(d.u / d.period + bend + d.phase())


def bricks(d: Draws) -> Field:
    row = d.u / (0.8 * d.period) + d.phase()
    column = d.v / (1.8 * d.period) + 0.5 * (np.floor(row) % 2) + d.phase()
    joint = np.minimum(0.5 - np.abs(middle(row)), 2.2 * (0.5 - np.abs(middle(column))))
    return 8 * (joint - 0.14)


def blobs(d: Draws) -> Field:
    return 6 * (d.smooth(0.8 * 8.0) - 0.5)


def veins(d: Draws) -> Field:
    return 4 * (0.16 - np.abs(2 * d.smooth(10.0) - 1))


def hatches(d: Draws) -> Field:
    first = np.abs(middle((d.u + 0.5 * d.v) / d.period + d.phase()))
    second = np.abs(middle((d.u - 0.5 * d.v) / d.period + d.phase()))
    return 8 * (0.14 - np.minimum(first, second))


def confetti(d: Draws) -> Field:
    found, most = np.full((d.n, d.side, d.side), -1.0), 0.625 * d.side
    for _ in range(14 * (d.side // S) ** 2):
        x, y = d.u - d.uniform(-most, most), d.v - d.uniform(-most, most)
        turn = d.uniform(0, 2 * np.pi)
        cosine, sine = rounded(np.cos(turn)), rounded(np.sin(turn))
        along, beside = np.abs(cosine * x + sine * y), np.abs(cosine * y - sine * x)
        found = np.maximum(found, np.minimum(3.0 - along, 1.4 - beside))
    return found


PATTERNS: dict[str, Callable[[Draws], Field]] = {
    pattern.__name__: pattern
    for pattern in (blobs, bricks, checks, confetti, dots, hatches, rays, rings, spirals, stripes, veins, zigzag)
}
CLASSES = tuple(PATTERNS)


def load(options: DataOptions) -> Source:
    """15,000 images to train on, 3,000 to test on; `textures-easy` and `textures-hard` differ in noise and scales."""
    difficulty = options.name.partition("-")[2] or "medium"
    return Source(train=_pool("train", difficulty), test=_pool("test", difficulty), classes=CLASSES)


def _pool(part: str, difficulty: str) -> ResidentPool:
    images, labels = textures(COUNTS[part], SEEDS[part], difficulty)
    ids = [f"{part}{row:05d}" for row in range(len(images))]
    return ResidentPool(labels=labels, ids=ids, images=torch.from_numpy(images))


def textures(count: int, seed: int, difficulty: str = "medium") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of all classes in a random order, each class as often.

    Args:
        count: N.
        seed: Of all that is random.
        difficulty: easy, medium or hard.

    Returns:
        (N, 3, S, S) uint8 images and their (N,) classes.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    images = np.empty((count, 3, S, S), dtype=np.uint8)
    for label, pattern in enumerate(PATTERNS.values()):
        rows = np.flatnonzero(labels == label)
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            draws = Draws(rng, len(some), PERIOD[difficulty])
            images[some] = coloured(draws, np.clip(2 * pattern(draws), -1, 1), NOISE[difficulty])
    return images, labels


def coloured(draws: Draws, pattern: Field, noise: float) -> NDArray[np.uint8]:
    """(N, S, S) patterns in [-1, 1] -> (N, 3, S, S) images: each channel has LEVEL and CONTRAST before noise."""
    channels = []
    for _ in range(3):
        gain, ground = (2 * (draws.smooth(BUMPS) - 0.5) for _ in range(2))
        channel = gain * pattern + GROUND * ground
        channel = channel - channel.mean((1, 2), keepdims=True)
        deviation = np.sqrt((channel * channel).mean((1, 2), keepdims=True))
        channels.append(LEVEL + CONTRAST * channel / np.maximum(deviation, 1e-3))
    image = np.stack(channels, 1)
    image += noise * (2 * draws.rng.random(image.shape) - 1)
    pixels: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels
