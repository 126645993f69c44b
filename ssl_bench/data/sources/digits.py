"""scikit-learn's handwritten digits, split so that no writer is in both parts.

Fourteen people wrote the 1,797 digits one after another, each beginning with 0 to 9 three times; the last four make the
test images.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from ssl_bench.config.options import DataOptions
from ssl_bench.data.pool import ResidentPool, Source

TRAIN = 1287  # rows of the first ten writers
CLASSES = tuple("0123456789")


def load(options: DataOptions) -> Source:
    """8 x 8 gray digits as RGB: 1,287 to train on, 510 by other writers to test on."""
    glyphs, labels = read()
    images = np.broadcast_to(np.round(glyphs * (255 / 16)).astype(np.uint8)[:, None], (len(glyphs), 3, 8, 8))
    pool = ResidentPool(
        labels=labels, ids=[f"digit{row:04d}" for row in range(len(glyphs))], images=torch.from_numpy(images.copy())
    )
    rows = np.arange(len(pool))
    return Source(train=pool.take(rows[:TRAIN]), test=pool.take(rows[TRAIN:]), classes=CLASSES)


def read() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) whole numbers 0 to 16 as float64, and (1797,) int64 labels."""
    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)
