"""Long sequences that lie in a few blocks of memory instead of an object for each element.

Processes that decode images share such blocks with the one that started them; a list of texts each of them would copy
piece by piece, because reading an element changes its count of references.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar, final, overload

import numpy as np

Item = TypeVar("Item", str, bytes)


class Packed(Sequence[Item], ABC):
    """N elements, some of which may be left out.

    Args:
        rows: (N,) which elements of the blocks, in which order.
    """

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> "Item | Self":
        return self.take(self.rows_of(at)) if isinstance(at, slice) else self.element(int(self.rows[at]))

    def rows_of(self, at: slice) -> np.ndarray:
        """(M,) indices that a slice takes."""
        return np.arange(len(self.rows))[at]

    @abstractmethod
    def element(self, row: int) -> Item:
        """An element of the blocks."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> Self:
        """Some of them, in the order of `rows`."""


@final
class ArrowBytes(Packed[bytes]):
    """Contents of image files as a parquet file's columns hold them, each copied only when it is asked for.

    Args:
        chunks: Arrow arrays of bytes, one after the other.
        rows: (N,) which of their elements; all when not given.
    """

    def __init__(self, chunks: Sequence[Any], rows: np.ndarray | None = None) -> None:
        self.chunks = chunks
        self.starts = np.cumsum([0, *map(len, chunks)])
        self.rows = np.arange(self.starts[-1]) if rows is None else rows

    def element(self, row: int) -> bytes:
        chunk = int(np.searchsorted(self.starts, row, "right")) - 1
        content: bytes = self.chunks[chunk][row - int(self.starts[chunk])].as_py()
        return content

    def take(self, rows: np.ndarray) -> "ArrowBytes":
        return ArrowBytes(self.chunks, self.rows[rows])


@final
class Paths(Packed[str]):
    """Paths of files.

    Args:
        encoded: All of them, one after the other, as the system writes them.
        ends: Where each ends.
        rows: (N,) which of them; all when not given.
    """

    def __init__(self, encoded: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.encoded, self.ends = encoded, ends
        self.rows = np.arange(len(ends)) if rows is None else rows

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Paths":
        """Pack paths."""
        parts = [os.fsencode(path) for path in paths]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), dtype=np.uint8), np.cumsum(lengths))

    def element(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.encoded[start : int(self.ends[row])].tobytes())

    def take(self, rows: np.ndarray) -> "Paths":
        return Paths(self.encoded, self.ends, self.rows[rows])
