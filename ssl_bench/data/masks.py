"""The class of each pixel of an image: labels of segmentation sets, beside the images in a pool.

Shapes: N images, H x W pixels.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ssl_bench.data.packed import Packed
from ssl_bench.errors import UserError

IGNORE = 255  # a pixel of no class: neither learned from nor scored

Mask = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Masks(ABC):
    """Masks of the images of a pool, in its order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def mask(self, row: int) -> Mask:
        """(H, W) class of each pixel of an image, or IGNORE.

        Raises:
            UserError: It is no mask.
        """

    @abstractmethod
    def take(self, rows: np.ndarray) -> Self:
        """The masks of some of the images, in their order."""

    @abstractmethod
    def hashed(self) -> Iterable[bytes | memoryview]:
        """What tells them from others."""


@final
@dataclass(frozen=True, kw_only=True)
class ResidentMasks(Masks):
    """Masks in memory.

    Args:
        values: (N, H, W) uint8.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def mask(self, row: int) -> Mask:
        found: Mask = self.values[row].numpy()
        return found

    def take(self, rows: np.ndarray) -> Self:
        return replace(self, values=self.values[torch.as_tensor(rows)])

    def hashed(self) -> Iterable[bytes | memoryview]:
        yield self.values.contiguous().numpy().reshape(-1).data


@final
@dataclass(frozen=True, kw_only=True)
class EncodedMasks(Masks):
    """Masks in image files whose values are numbers of classes: gray or with a palette.

    Args:
        encoded: N paths of files, or contents of files.
        names: N names, for messages.
        classes: (256,) class of each value in the files, or IGNORE; a value is its own class when not given.
    """

    encoded: Sequence[str | bytes]
    names: Sequence[str]
    classes: Mask | None = None

    def __len__(self) -> int:
        return len(self.names)

    def mask(self, row: int) -> Mask:
        values = read_mask(self.encoded[row], self.names[row])
        return values if self.classes is None else self.classes[values]

    def take(self, rows: np.ndarray) -> Self:
        encoded = self.encoded.take(rows) if isinstance(self.encoded, Packed) else [self.encoded[row] for row in rows]
        return replace(self, encoded=encoded, names=[self.names[row] for row in rows])

    def hashed(self) -> Iterable[bytes | memoryview]:
        for item in self.encoded:
            content = item if isinstance(item, bytes) else Path(item).read_bytes()
            yield hashlib.sha256(content).digest()
        if self.classes is not None:
            yield self.classes.data


def read_mask(encoded: str | bytes, name: str) -> Mask:
    """(H, W) values of a mask's file.

    Raises:
        UserError: It cannot be read, is in colour, or has values of more than 8 bits.
    """
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            mode = image.mode
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"mask {name} cannot be read: {str(error).splitlines()[0]}") from None
    if mode == "1":
        return np.asarray(values, dtype=np.uint8)
    if values.ndim != 2:
        raise UserError(f"mask {name} is in colour ({mode}): save the number of each pixel's class, gray or by palette")
    if values.min(initial=0) < 0 or values.max(initial=0) > IGNORE:
        raise UserError(f"mask {name} has values up to {values.max()}: classes are numbers from 0 to 254, 255 for none")
    return np.asarray(values, dtype=np.uint8)
