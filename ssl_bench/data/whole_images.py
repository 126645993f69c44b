"""Whole images for what predicts each pixel: nothing is cropped away, and windows slide over what is larger.

An image in memory keeps its own size, if the network's input is not larger; a photograph's short side is brought to the
network's input, or to what is asked for. Sides are rounded to whole cells, a cell being what one feature of the network
stands for. Windows as large as the input overlap by a third.

For training there is a crop of image and mask together: the same box and the same flip for both.

Shapes: 3 x h x w pixels of an image, H x W before it was resized, g cells of a window's side, G x F cells of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.files.left_out import UnreadableImage
from ssl_bench.data.geometry import as_tensor
from ssl_bench.data.masks import IGNORE
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import Split


@final
@dataclass(frozen=True)
class Whole:
    """An image as a network will look over it.

    Args:
        image: (3, h, w) float in [0, 1].
        size: H and W.
    """

    image: Tensor
    size: tuple[int, int]


@final
@dataclass(frozen=True)
class Grid:
    """The windows of a network's input and the cells in them.

    Args:
        img_size: Pixels of a window's side.
        cells: g.
        short_side: Pixels that images' short side is brought to; see above when not given.
    """

    img_size: int
    cells: int
    short_side: int | None = None

    @property
    def cell(self) -> int:
        """Pixels of a cell's side."""
        return self.img_size // self.cells

    def resized(self, height: int, width: int, resident: bool) -> tuple[int, int]:
        """h and w of an image of H x W pixels."""
        own = min(height, width)
        short = self.short_side or (max(own, self.img_size) if resident else self.img_size)
        least = self.cells
        h, w = (max(least, round(side * short / own / self.cell)) * self.cell for side in (height, width))
        return h, w

    def starts(self, length: int) -> list[int]:
        """First cell of each window along a side of so many pixels; the last window ends where the image does."""
        last = length // self.cell - self.cells
        step = max(1, round(2 * self.cells / 3))
        return [*range(0, last, step), last]

    def windows(self, image: Tensor) -> Tensor:
        """(M, 3, s, s) windows of a (3, h, w) image, row by row."""
        tops, lefts = self.starts(image.shape[1]), self.starts(image.shape[2])
        s, cell = self.img_size, self.cell
        return torch.stack([image[:, t * cell : t * cell + s, j * cell : j * cell + s] for t in tops for j in lefts])

    def joined(self, maps: Tensor, height: int, width: int) -> Tensor:
        """(M, g, g, D) features of an image's windows to (G, F, D) of the h x w image: their mean where they overlap.

        Of what a linear head makes of them the mean would be the same.
        """
        g, rows, columns = self.cells, height // self.cell, width // self.cell
        total, times = maps.new_zeros(rows, columns, maps.shape[-1]), maps.new_zeros(rows, columns, 1)
        places = [(top, left) for top in self.starts(height) for left in self.starts(width)]
        for (top, left), found in zip(places, maps, strict=True):
            total[top : top + g, left : left + g] += found
            times[top : top + g, left : left + g] += 1
        return total / times


def whole_images(split: Split, grid: Grid, num_workers: int = 0) -> Iterator[Whole]:
    """Each image of a split once, in its order.

    Raises:
        UnreadableImage: One is broken.
    """
    if isinstance(split.pool, ResidentPool):
        for row in split.rows:
            image = split.pool.images[row].float() / 255
            yield Whole(_resized(image, grid), (image.shape[1], image.shape[2]))
        return
    loader = DataLoader(_Whole(split, grid), None, num_workers=num_workers, generator=torch.Generator())
    for found in loader:
        if isinstance(found, UnreadableImage):
            raise found
        image, size = found
        yield Whole(image.float() / 255, size)


def _resized(image: Tensor, grid: Grid) -> Tensor:
    size = grid.resized(image.shape[1], image.shape[2], resident=True)
    if size == tuple(image.shape[1:]):
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


@final
class _Whole(Dataset["tuple[Tensor, tuple[int, int]] | UnreadableImage"]):
    def __init__(self, split: Split, grid: Grid) -> None:
        self.split, self.grid = split, grid

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, at: int) -> tuple[Tensor, tuple[int, int]] | UnreadableImage:
        row = int(self.split.rows[at])
        try:
            image = self.split.pool.image(row)
        except BrokenImage as error:
            return UnreadableImage.of(self.split.pool.ids[row], str(error))
        height, width = self.grid.resized(image.height, image.width, resident=False)
        seen = image.resize((width, height), Image.Resampling.BICUBIC)
        return as_tensor(seen), (image.height, image.width)


def crop_together(
    image: Tensor, mask: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A square crop of an image and the same of its mask, mirrored half of the time.

    Args:
        image: (3, h, w) float.
        mask: (H, W) uint8 classes of the same picture.
        size: Pixels of the crop's side afterwards.
        scale: Least and largest part of the short side that the crop's side has.
        generator: Of its size, place and flip.

    Returns:
        (3, size, size) and (size, size): interpolated the one, of the nearest pixel the other.
    """
    part, down, across, flip = torch.rand(4, generator=generator).tolist()
    h, w = image.shape[1:]
    side = min(h, w) * (scale[0] + part * (scale[1] - scale[0]))
    top, left = down * (h - side), across * (w - side)
    steps = (torch.arange(size) + 0.5) / size * side
    y, x = (top + steps) / h * 2 - 1, (left + steps) / w * 2 - 1  # in grid_sample's units
    if flip < 0.5:
        x = x.flip(0)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]  # (1, size, size, 2)
    seen = F.grid_sample(image[None], places, mode="bilinear", padding_mode="border", align_corners=False)[0]
    rows = ((y + 1) / 2 * mask.shape[0]).long().clamp(0, mask.shape[0] - 1)
    columns = ((x + 1) / 2 * mask.shape[1]).long().clamp(0, mask.shape[1] - 1)
    return seen, mask[rows][:, columns]


def cell_shares(mask: Tensor, rows: int, columns: int, classes: int) -> tuple[Tensor, Tensor]:
    """(G, F, K) part of each cell's pixels that is of each class, and (G, F) the part that is of any.

    Args:
        mask: (H, W) uint8.
        rows: G.
        columns: F.
        classes: K.
    """
    known = mask != IGNORE
    shares = torch.zeros(rows, columns, classes)
    for label in mask[known].unique().tolist():
        shares[..., label] = F.adaptive_avg_pool2d((mask == label).float()[None], (rows, columns))[0]
    total = F.adaptive_avg_pool2d(known.float()[None], (rows, columns))[0]
    return shares / total.clamp(min=1e-6)[..., None], total
