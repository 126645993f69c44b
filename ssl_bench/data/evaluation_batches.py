"""Each image of a split once and in order, as evaluations see it.

Shapes: B images of a batch, s pixels of a view.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_bench.augment.executors import CropInWorker
from ssl_bench.augment.geometry import crop_resize, draw_boxes
from ssl_bench.augment.views import View
from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.files.left_out import UnreadableImage
from ssl_bench.data.geometry import see_batch, see_image
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import Split
from ssl_bench.runtime.seeds import derive


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
        UnreadableImage: One is broken: no other can stand in for it here.
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
        UnreadableImage: One is broken.
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
            if isinstance(item, UnreadableImage):
                raise item
        yield torch.stack(items).float() / 255, part


@final
class _Seen(Dataset["Tensor | UnreadableImage"]):
    def __init__(self, split: Split, see: Callable[[Image.Image, int], Tensor]) -> None:
        self.split, self.see = split, see

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: int) -> Tensor | UnreadableImage:
        """(3, s, s) uint8, or which image is broken."""
        row = int(self.split.rows[at])
        try:
            return self.see(self.split.pool.image(row), row)
        except BrokenImage as error:
            return UnreadableImage.of(self.split.pool.ids[row], str(error))
