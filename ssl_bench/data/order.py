"""Which training images make up which batch.

The order follows from the seed and the epoch alone. So it has no state: a resumed run asks for the batch at which it
stopped.

Shapes: N images, B of a batch.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ssl_bench.errors import UserError
from ssl_bench.runtime.seeds import derive


def always_zero() -> int:
    """The first epoch, the first batch."""
    return 0


@final
@dataclass(frozen=True)
class Order:
    """Which images make up which batch: each epoch's permutation, cut into joint batches, each cut into ranks.

    Every rank has the same number of batches; the images that fill no joint batch are left out of that epoch.

    Args:
        images: N.
        batch_size: B on each rank; less when there are fewer images than make one joint batch.
        seed: Of the permutations.
        rank: This process.
        world_size: How many there are.
        epoch: Asked when an epoch begins.
        first_batch: Likewise: the batch to begin with, after an interruption.
    """

    images: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    epoch: Callable[[], int] = field(default=always_zero, compare=False)
    first_batch: Callable[[], int] = field(default=always_zero, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--data.batch_size is {self.batch_size}: give 1 or more")
        most = self.images // self.world_size
        if most < 1:
            raise UserError(f"{self.images} training images are too few for {self.world_size} devices")
        if most < self.batch_size:
            warnings.warn(
                f"{self.images} training images on {self.world_size} device(s): batches of {most}, not of "
                f"{self.batch_size}",
                stacklevel=2,
            )
            object.__setattr__(self, "batch_size", most)

    def __len__(self) -> int:
        return self.images // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        """Epoch, batch and its (B,) rows."""
        epoch, first = self.epoch(), self.first_batch()
        generator = torch.Generator().manual_seed(derive(self.seed, epoch))
        rows = torch.randperm(self.images, generator=generator)[: len(self) * self.batch_size * self.world_size]
        ranked = rows.view(len(self), self.world_size, self.batch_size)[:, self.rank]
        for batch in range(first, len(self)):
            yield epoch, batch, ranked[batch]
