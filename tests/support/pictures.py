"""Pictures that tests of data write and expect back."""

import io
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
