"""Batches: of a permutation of the training images for pretraining, of each image once and in order for evaluations.

What a loader gives in (epoch, batch) follows from the seed and these two alone. So it has no state: a resumed run asks
for the batch at which it stopped.

Shapes: B images of a batch, 3 x H x W pixels, s pixels of a view.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_bench.augment.executors import CropInWorker
from ssl_bench.augment.geometry import crop_resize, draw_boxes
from ssl_bench.augment.views import View
from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.geometry import see_batch, see_image
from ssl_bench.data.pool import Pool, ResidentPool
from ssl_bench.data.splits import Split
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
    """

    def __init__(
        self,
        pool: Pool,
        order: Order,
        crop: Callable[[Image.Image, torch.Generator], list[Tensor]],
        num_workers: int = 2,
        strict: bool = False,
    ) -> None:
        self.pool, self.order, self.strict = pool, order, strict
        # A recipe asks for what a large machine has; more processes than cores only wait for one another.
        self.crop, self.num_workers = crop, min(num_workers, os.cpu_count() or 1)
        self.broken: set[str] = set()
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
            self.broken |= set(batch.broken)
            if not batch.images:
                raise UserError(
                    f"{ATTEMPTS} images drawn in a row are broken, such as {batch.broken[-1]}: look at them"
                )
            yield batch


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


def evaluation_batches(
    split: Split, img_size: int, batch_size: int, num_workers: int = 2
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image of a split once, in the split's order, as evaluations see it.

    Args:
        split: The images.
        img_size: s.
        batch_size: B; the last batch may be smaller.
        num_workers: Processes that decode photographs.

    Yields:
        (B, 3, s, s) float images in [0, 1] and the (B,) rows of the split's pool.

    Raises:
        UserError: An image is broken: no other can stand in for it here.
    """
    rows = torch.as_tensor(split.rows)
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if isinstance(split.pool, ResidentPool):
        for part in parts:
            yield see_batch(split.pool.images[part], img_size), part
        return
    yield from _decoded(split, parts, partial(_see, img_size), batch_size, num_workers)


def augmented_batches(
    split: Split, view: View, number: int, batch_size: int, num_workers: int = 2
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image of a split once, in the split's order, as a random crop of it, perhaps mirrored.

    Which crop follows from the number and the image's row alone: it is the same whatever the network, the batch or the
    process.

    Args:
        split: The images.
        view: Its crops' size, scale, ratio and flip; colour is left alone.
        number: Of the crop among all random crops of an image.
        batch_size: B; the last batch may be smaller.
        num_workers: Processes that decode photographs.

    Yields:
        (B, 3, s, s) float images in [0, 1] and the (B,) rows of the split's pool.

    Raises:
        UserError: An image is broken.
    """
    rows = torch.as_tensor(split.rows)
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if isinstance(split.pool, ResidentPool):
        height, width = split.pool.images.shape[2:]
        everyone, generator = len(split.pool), torch.Generator().manual_seed(derive(number))
        boxes = draw_boxes(everyone, height, width, view.scale, view.ratio, generator)
        flips = torch.rand(everyone, generator=generator) < view.flip
        for part in parts:
            images = split.pool.images[part]
            yield crop_resize(images, boxes[part], view.size, view.interpolation, flips[part]).contiguous(), part
        return
    yield from _decoded(split, parts, partial(_cut, CropInWorker([view]), number), batch_size, num_workers)


def _see(size: int, image: Image.Image, row: int) -> Tensor:
    return see_image(image, size)


def _cut(crop: CropInWorker, number: int, image: Image.Image, row: int) -> Tensor:
    return crop(image, torch.Generator().manual_seed(derive(number, row)))[0]


def _decoded(
    split: Split, parts: list[Tensor], see: Callable[[Image.Image, int], Tensor], batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    workers = min(num_workers, len(parts), os.cpu_count() or 1)
    loader = DataLoader(
        _Seen(split, see), batch_size, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    for part, items in zip(parts, loader, strict=True):
        for item in items:
            if isinstance(item, str):
                raise UserError(f"broken image {item}: evaluations need every image, so mend or remove it")
        yield torch.stack(items).float() / 255, part


@final
class _Seen(Dataset["Tensor | str"]):
    def __init__(self, split: Split, see: Callable[[Image.Image, int], Tensor]) -> None:
        self.split, self.see = split, see

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: int) -> Tensor | str:
        """(3, s, s) uint8, or the name of an image that is broken."""
        row = int(self.split.rows[at])
        try:
            return self.see(self.split.pool.image(row), row)
        except BrokenImage:
            return self.split.pool.ids[row]
