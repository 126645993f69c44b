"""Pictures that tests of data write and expect back."""

import io
import struct
from typing import Any

import numpy as np
from paths import ROOT
from PIL import Image

SHARED = ROOT.parent / "shared" / "data"


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth RGB image that no other seed gives."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image, in memory."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def four_channels(extra: tuple[int, ...] | None) -> bytes:
    """A TIFF of four 8-bit channels that marks the fourth, or does not."""
    values = np.full((2, 3, 4), 100, dtype=np.uint8)
    rows = [(256, 3, 1, 3), (257, 3, 1, 2), (258, 3, 4, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 0)]
    rows += [(277, 3, 1, 4), (279, 4, 1, values.nbytes), *([(338, 3, 1, extra[0])] if extra else [])]
    start = 8 + 2 + 12 * len(rows) + 4
    rows = [(t, k, n, start if t == 258 else start + 8 if t == 273 else v) for t, k, n, v in rows]
    table = b"".join(struct.pack("<HHII", *row) for row in rows)
    depths = struct.pack("<4H", 8, 8, 8, 8)
    return struct.pack("<2sHIH", b"II", 42, 8, len(rows)) + table + bytes(4) + depths + values.tobytes()
