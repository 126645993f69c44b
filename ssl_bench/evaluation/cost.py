"""What a pass over images takes, and how far it is."""

import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ssl_bench.data.splits import Split


@dataclass(frozen=True)
class Cost:
    """What something took.

    Args:
        images: That went forward through the backbone.
        flops: Of those forward passes; one multiply-add is two.
        seconds: By the clock, reading and decoding included.
    """

    images: int = 0
    flops: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.images + other.images, self.flops + other.flops, self.seconds + other.seconds)


def split_name(split: Split) -> str:
    """`train`, `validation` or `test`."""
    return type(split).__name__.removesuffix("Split").removesuffix("Images").lower()


def rows_digest(split: Split) -> str:
    """sha256 of which rows of its pool a split has, in its order."""
    return hashlib.sha256(np.ascontiguousarray(split.rows, dtype=np.int64).data).hexdigest()


@contextmanager
def progress(what: str, total: int, unit: str = "images") -> Iterator[tqdm]:
    """A bar with rate and time left on standard error; where that is no terminal, a line if it took a while."""
    start = time.perf_counter()
    with tqdm(total=total, desc=what, unit=f" {unit}", file=sys.stderr, disable=None, leave=False) as bar:
        yield bar
        quiet = bar.disable
    seconds = time.perf_counter() - start
    if quiet and seconds > 5:
        print(f"{what}: {total:,} in {seconds:.1f} s, {total / max(seconds, 1e-9):,.0f} {unit}/s", file=sys.stderr)
