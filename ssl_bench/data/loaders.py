"""Batches of training images for pretraining, in the order of each epoch's permutation.

What a loader gives in (epoch, batch) follows from the seed and these two alone. A broken image does not end the run:
another one of the set stands in for it, drawn from (seed, epoch, row), so that a batch keeps its size, its other images
stay as they are, and a run repeated on the same files is the same.

Shapes: B images of a batch, 3 x H x W pixels, s pixels of a view.
"""

import os
import signal
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.order import Order
from ssl_bench.data.pool import Pool, ResidentPool
from ssl_bench.errors import UserError
from ssl_bench.runtime.seeds import derive

ATTEMPTS = 8  # broken images in a row that others may stand in for


class RawBatch(NamedTuple):
    """Training images before their views exist, with all that the views' randomness depends on."""

    images: Tensor | list[Tensor]  # (B, 3, H, W) uint8; or crops made by workers, each (B, 3, s, s) uint8
    rows: Tensor  # (B,) of the training set
    epoch: int
    batch: int
    broken: tuple[str, ...] = ()  # images that could not be decoded and were replaced


class _Resumable:
    """Lightning asks loaders for a state to resume in the middle of an epoch; ours is in the trainer's counters."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@final
class ResidentLoader(_Resumable):
    """Batches of images in memory.

    Args:
        pool: The training images.
        order: Which of them come when.
    """

    def __init__(self, pool: ResidentPool, order: Order) -> None:
        self.pool, self.order = pool, order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[RawBatch]:
        for epoch, batch, rows in self.order:
            yield RawBatch(self.pool.images[rows], rows, epoch, batch)


@final
class PhotographLoader(_Resumable):
    """Batches of crops that worker processes decode and cut.

    Args:
        pool: The training images.
        order: Which of them come when.
        crop: An image's crops, of an RGB image and a generator; runs in the workers.
        num_workers: Processes; 0 to decode in this one.
        strict: Stop at a broken image rather than let another stand in for it.
        known: Broken images that were told of before.
        on_broken: Told the name of one that was not, and what is wrong with it.
    """

    def __init__(
        self,
        pool: Pool,
        order: Order,
        crop: Callable[[Image.Image, torch.Generator], list[Tensor]],
        num_workers: int = 2,
        strict: bool = False,
        known: Collection[str] = (),
        on_broken: Callable[[str, str], None] | None = None,
    ) -> None:
        self.pool, self.order, self.strict = pool, order, strict
        # A recipe asks for what a large machine has; more processes than cores only wait for one another.
        self.crop, self.num_workers = crop, min(num_workers, os.cpu_count() or 1)
        self.broken, self.on_broken = set(known), on_broken
        self._workers: DataLoader[_Cropped] | None = None

    def __len__(self) -> int:
        return len(self.order)

    def close(self) -> None:
        """End the worker processes, which otherwise live on between epochs.

        Left to the garbage collector they take five seconds each, because their queues may be gone before them.
        """
        self._workers = None

    def __iter__(self) -> Iterator[RawBatch]:
        if self._workers is None:
            self._workers = DataLoader(
                _Crops(self.pool, self.crop, self.order.seed),
                batch_sampler=_Keys(self.order),
                collate_fn=_collate_crops,
                num_workers=self.num_workers,
                worker_init_fn=_outlast_signals,
                persistent_workers=self.num_workers > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # its own: the global one must not depend on how often this is iterated
            )
        for batch in self._workers:
            assert isinstance(batch, RawBatch)
            for name in sorted(set(batch.broken) - self.broken):
                if self.strict:
                    raise UserError(f"broken image {name}: remove it, or leave out --data.strict to skip such files")
                warnings.warn(f"{name} cannot be decoded; other images stand in for it", stacklevel=2)
                if self.on_broken is not None:
                    self.on_broken(name, self._why(name))
            self.broken |= set(batch.broken)
            if not batch.images:
                raise UserError(
                    f"{ATTEMPTS} images drawn in a row are broken, such as {batch.broken[-1]}: look at them"
                )
            yield batch

    def _why(self, name: str) -> str:
        try:
            self.pool.image(self.pool.ids.index(name))
        except BrokenImage as error:
            return str(error)
        return "it could not be read for a moment"


def _outlast_signals(worker: int) -> None:
    """SLURM sends signals to workers, too, whose batches the parent still needs to come to where it can save.

    SIGTERM ends a worker ten seconds later: ignored, it would keep a parent that ends its workers so waiting for ever.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(10))


@final
class _Keys:
    """A batch sampler whose keys carry the epoch and batch to the workers, who outlive epochs."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch, batch, rows in self.order:
            yield [(epoch, batch, row) for row in rows.tolist()]


class _Cropped(NamedTuple):
    crops: list[Tensor]  # each (3, s, s) uint8; none when no image could be decoded
    row: int
    epoch: int
    batch: int
    broken: list[str]


@final
class _Crops(Dataset[_Cropped]):
    def __init__(self, pool: Pool, crop: Callable[[Image.Image, torch.Generator], list[Tensor]], seed: int) -> None:
        self.pool, self.crop, self.seed = pool, crop, seed

    def __getitem__(self, key: tuple[int, int, int]) -> _Cropped:
        epoch, batch, row = key
        broken: list[str] = []
        for attempt in range(ATTEMPTS):
            try:
                image = self.pool.image(row)
            except BrokenImage:
                broken.append(self.pool.ids[row])
                row = derive(self.seed, epoch, row, attempt, 0) % len(self.pool)
                continue
            generator = torch.Generator().manual_seed(derive(self.seed, epoch, row))
            return _Cropped(self.crop(image, generator), row, epoch, batch, broken)
        return _Cropped([], row, epoch, batch, broken)


def _collate_crops(items: Sequence[_Cropped]) -> RawBatch:
    broken = tuple(name for item in items for name in item.broken)
    whole = all(item.crops for item in items)
    crops = [torch.stack(same) for same in zip(*(item.crops for item in items), strict=True)] if whole else []
    return RawBatch(crops, torch.tensor([item.row for item in items]), items[0].epoch, items[0].batch, broken)
