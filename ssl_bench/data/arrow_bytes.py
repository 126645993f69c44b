"""Contents of image files as a parquet file's columns hold them, each copied only when it is asked for."""

from collections.abc import Sequence
from typing import Any, final, overload

import numpy as np


@final
class ArrowBytes(Sequence[bytes]):
    """N contents of image files.

    Args:
        chunks: Arrow arrays of bytes, one after the other.
        rows: (N,) which of their elements, in which order; all when not given.
    """

    def __init__(self, chunks: Sequence[Any], rows: np.ndarray | None = None) -> None:
        self.chunks = chunks
        self.starts = np.cumsum([0, *map(len, chunks)])
        self.rows = np.arange(self.starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> "ArrowBytes": ...
    def __getitem__(self, at: int | slice) -> "bytes | ArrowBytes":
        if isinstance(at, slice):
            return ArrowBytes(self.chunks, self.rows[at])
        row = int(self.rows[at])
        chunk = int(np.searchsorted(self.starts, row, "right")) - 1
        content: bytes = self.chunks[chunk][row - int(self.starts[chunk])].as_py()
        return content

    def take(self, rows: np.ndarray) -> "ArrowBytes":
        """Some of them, in the order of `rows`."""
        return ArrowBytes(self.chunks, self.rows[rows])
