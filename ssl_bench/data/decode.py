"""Any image file or its bytes to an 8-bit RGB image.

One rule per oddity: gray and palette become RGB; transparent pixels are laid over white; 16-bit gray is
scaled to 8 bits; EXIF orientation is applied; of an animation the first frame counts.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


class BrokenImage(Exception):
    """These bytes are no whole image; the message says why."""


def decode(encoded: bytes | str | Path) -> Image.Image:
    """The RGB image of a file's path or bytes.

    Raises:
        BrokenImage: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            image.load()
            turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1)) if "exif" in image.info else None
            return rgb(image if turn is None else image.transpose(turn))
    except Exception as error:  # PIL's decoders raise anything from OSError to struct.error
        raise BrokenImage(_reason(error)) from error


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit gray: I;16 and its byte orders, and I, as older PIL reads 16-bit PNG
        gray = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "PA"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fault(encoded: bytes | str | Path) -> str | None:
    """Why an image is broken, or None; found without decoding where the format has an end marker."""
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            end = ENDS.get(image.format or "")
        if end is not None and end in _tail(encoded):
            return None
        decode(encoded)
    except Exception as error:
        return _reason(error)
    return None


def _tail(encoded: bytes | str | Path, size: int = 4096) -> bytes:
    if isinstance(encoded, bytes):
        return encoded[-size:]
    with open(encoded, "rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - size))
        return file.read()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
