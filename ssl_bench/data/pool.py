"""A pool: the images of one official split, resident in memory or decoded when asked for.

Shapes: N images, C channels (3 but in sets that have others), H x W pixels.
"""

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_bench.data.decode import USUAL, Ranges, decode, decode_gray
from ssl_bench.data.masks import Masks
from ssl_bench.data.packed import Packed


@dataclass(frozen=True, kw_only=True)
class Pool(ABC):
    """Images with names and, where there are any, labels.

    Args:
        labels: (N,) int64 class, or None for unlabelled images.
        ids: N names that stay the same however the images are ordered or split.
        skipped: Images that were left out because they cannot be used: name -> why.
        masks: The class of each pixel, of sets that have it in place of a class of the image.
    """

    labels: np.ndarray | None
    ids: list[str]
    skipped: Mapping[str, str] = field(default_factory=dict)
    masks: Masks | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    @abstractmethod
    def channels(self) -> int:
        """C."""

    @abstractmethod
    def image(self, row: int) -> Image.Image:
        """The image of a row: RGB, or gray in sets of one channel.

        Raises:
            BrokenImage: It cannot be decoded.
        """

    @abstractmethod
    def take(self, rows: np.ndarray) -> Self:
        """The pool of some of the rows, in their order."""

    def unlabelled(self) -> Self:
        """The same images without labels; the digest stays that of both, so that kept features are found."""
        hidden = replace(self, labels=None, masks=None)
        vars(hidden)["_digest"] = self.digest()
        return hidden

    def digest(self) -> str:
        """sha256 of the images' content and labels, in their order; computed once."""
        return self._digest

    @property
    def digest_covers(self) -> str:
        """What the digest is of."""
        return "content and labels"

    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256()
        for part in self._hashed():
            sha.update(part)
        sha.update(b"unlabelled" if self.labels is None else np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        for part in () if self.masks is None else self.masks.hashed():
            sha.update(part)
        return sha.hexdigest()

    @abstractmethod
    def _hashed(self) -> Iterable[bytes | memoryview]: ...

    def _part(self, rows: np.ndarray) -> dict[str, object]:
        labels = None if self.labels is None else self.labels[rows]
        masks = None if self.masks is None else self.masks.take(rows)
        return {"labels": labels, "ids": [self.ids[row] for row in rows], "masks": masks}


@final
@dataclass(frozen=True, kw_only=True)
class ResidentPool(Pool):
    """Images of one size, decoded in memory.

    Args:
        images: (N, C, H, W) uint8, or float32 from 0 to 255 where values have more than 8 bits.
    """

    images: Tensor

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def image(self, row: int) -> Image.Image:
        assert self.channels in (1, 3), "no image has so many"
        pixels = self.images[row].permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)

    def take(self, rows: np.ndarray) -> Self:
        return replace(self, images=self.images[torch.as_tensor(rows)], **self._part(rows))  # type: ignore[arg-type]

    def _hashed(self) -> Iterable[bytes | memoryview]:
        yield str(tuple(self.images.shape)).encode()
        yield self.images.contiguous().numpy().reshape(-1).data


@final
@dataclass(frozen=True, kw_only=True)
class EncodedPool(Pool):
    """Images decoded when asked for: photographs.

    Args:
        encoded: N paths of files, or contents of files.
        digests: N hashes of their content, when they are known already; empty for a file that cannot be read.
        whole: Whether those are of all of the content.
        ranges: Of values with more than 8 bits or a sign, by their kind; empty where no image has such.
        gray: Images have one channel, and all their bits.
    """

    encoded: Sequence[str | bytes]
    digests: Sequence[str] | None = None
    whole: bool = True
    ranges: Ranges = field(default_factory=dict)
    gray: bool = False

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3

    @property
    def deep(self) -> bool:
        """Whether images have more than 8 bits: gray ones alone keep them."""
        return self.gray and bool(self.ranges)

    def image(self, row: int) -> Image.Image:
        if self.gray:
            return decode_gray(self.encoded[row], {**USUAL, **self.ranges}, self.deep)
        return decode(self.encoded[row], {**USUAL, **self.ranges})

    def size(self, row: int) -> tuple[int, int] | None:
        """Width and height as the file has them, from its header alone; None where it cannot be read."""
        encoded = self.encoded[row]
        try:
            with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
                return opened.size
        except Exception:  # PIL's decoders raise anything; a broken image is named when it is read
            return None

    def take(self, rows: np.ndarray) -> Self:
        digests = None if self.digests is None else [self.digests[row] for row in rows]
        encoded: Sequence[str | bytes]
        if isinstance(self.encoded, Packed):
            encoded = self.encoded.take(rows)
        else:
            encoded = [self.encoded[row] for row in rows]
        return replace(self, encoded=encoded, digests=digests, **self._part(rows))  # type: ignore[arg-type]

    @property
    def digest_covers(self) -> str:
        return "content and labels" if self.whole else "sizes, samples of the content and labels"

    @cached_property
    def content(self) -> list[str]:
        """32 hex digits for each image; its content is read unless they are known."""
        return list(self.digests) if self.digests is not None else [_digest(item) for item in self.encoded]

    def _hashed(self) -> Iterable[bytes | memoryview]:
        yield "\n".join(self.content).encode()
        if self.ranges:
            yield json.dumps(self.ranges, sort_keys=True).encode()
        if self.gray:
            yield b"gray"


def _digest(encoded: str | bytes) -> str:
    try:
        content = encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(content).hexdigest()[:32]


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """What a data set's files gave, before anything is split off for validation.

    Args:
        train: The official training images, with a class each, or with masks, or without labels.
        test: The official test images; None when there are none.
        classes: Names of the classes, of images or of pixels, in the order of the labels; None without labels.
        pretrain: Training images with and without labels, when there are more of them than in `train`.
        test_is: Where the test images come from, for the record.
        remedy: What would make this data set fit for evaluations, when it is not.
        left_out: Files that are no images, or none of those that count: name -> why.
    """

    train: Pool
    test: Pool | None
    classes: tuple[str, ...] | None
    pretrain: Pool | None = None
    test_is: str = "official"
    remedy: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
