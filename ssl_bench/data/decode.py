"""Any image file or its bytes to an 8-bit RGB image.

One rule per oddity, listed in docs/data.md: gray and palette become RGB; transparent pixels are laid over white; EXIF
orientation is applied; of several frames or pages the first counts. Values of more than 8 bits are scaled by a range
that is the same for all images of a set, whatever each of them holds.
"""

import io
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

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
BITS, PHOTOMETRIC, SAMPLES, EXTRA, SAMPLE_FORMAT = 258, 262, 277, 338, 339  # tags of a TIFF
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # channels of a TIFF's photometric interpretation
UNREAD = "it cannot be read"  # a fault of the disk or of permissions, not of the image
PNG_START = b"\x89PNG\r\n\x1a\n"

Range: TypeAlias = tuple[float, float]  # values that become black and white
Ranges: TypeAlias = Mapping[str, Range]  # by kind of values

INTEGER_16, INTEGER, FLOAT, COLOUR_16 = "16-bit", "integer", "float", "16-bit colour"
USUAL: dict[str, Range] = {INTEGER_16: (0, 65535), INTEGER: (0, 65535), FLOAT: (0, 1)}


class BrokenImage(Exception):
    """These bytes are no image that can be used; the message says why."""


@dataclass(frozen=True)
class Check:
    """What decoding a whole file found.

    Args:
        fault: Why it cannot be used; None if it can.
        kind: Of its values, where they have more than 8 bits or a sign; None for 8-bit images.
        low: The smallest of those values.
        high: The largest.
    """

    fault: str | None = None
    kind: str | None = None
    low: float = 0.0
    high: float = 0.0


def decode(encoded: bytes | str | Path, ranges: Ranges = USUAL) -> Image.Image:
    """The RGB image of a file's path or bytes.

    Args:
        encoded: The path or the bytes.
        ranges: Of values with more than 8 bits or a sign.

    Raises:
        BrokenImage: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            kind = _kind(image)
            image.load()
            upright = _upright(image)
            return _rgb(upright) if kind in (None, COLOUR_16) else _scaled(_values(image, upright), image, ranges[kind])
    except Exception as error:  # PIL's decoders raise anything from OSError to struct.error
        raise BrokenImage(_reason(error)) from error


def decode_gray(encoded: bytes | str | Path, ranges: Ranges = USUAL, deep: bool = False) -> Image.Image:
    """The gray image of a file's path or bytes; colour becomes its brightness.

    Args:
        encoded: The path or the bytes.
        ranges: Of values with more than 8 bits or a sign.
        deep: Give all bits: numbers from 0 to 255 with their fractions, mode F; otherwise 8 bits, mode L.

    Raises:
        BrokenImage: It cannot be decoded.
    """
    if not deep:
        return decode(encoded, ranges).convert("L")
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            kind = _kind(image)
            image.load()
            upright = _upright(image)
            if kind in (None, COLOUR_16):
                return _rgb(upright).convert("L").convert("F")
            return Image.fromarray(np.clip(_levels(_values(image, upright), image, ranges[kind]), 0, 255))
    except Exception as error:  # as in `decode`
        raise BrokenImage(_reason(error)) from error


def check(encoded: bytes | str | Path) -> Check:
    """Decode a whole file, and find damage that decoders pass over: a PNG's checksums are compared."""
    try:
        content = encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
        if content.startswith(PNG_START):
            _check_png(content)
        with Image.open(io.BytesIO(content)) as image:
            kind = _kind(image)
            if kind is None:
                image.draft(image.mode, (1, 1))  # a JPEG is read whole, but only an eighth of its pixels computed
            image.load()
            if kind is None:
                return Check()
            if kind == COLOUR_16:
                return Check(None, kind, 0, 257 * float(np.asarray(image.convert("RGB")).max()))
            values = _values(image, image)
            return Check(None, kind, float(values.min()), float(values.max()))
    except Exception as error:
        return Check(_reason(error))


def fault(encoded: bytes | str | Path) -> str | None:
    """Why a file cannot be used, or None."""
    return check(encoded).fault


def guess_range(kind: str, low: float, high: float) -> Range:
    """The usual range that a set's values fill by more than a quarter; else from the smallest to the largest of them.

    Args:
        kind: Of the values.
        low: The smallest in the whole set.
        high: The largest.
    """
    usual: list[Range] = [(0, 2**bits - 1) for bits in (8, 10, 12, 14, 16)]
    if kind == FLOAT:
        usual = [(0, 1), (-1, 1), (0, 255), (0, 65535)]
    for black, white in usual:
        if black <= low and high <= white and (black < 0) == (low < 0) and max(high, -low) > white / 4:
            return black, white
    return low, high if high > low else low + 1


def _kind(image: Image.Image) -> str | None:
    """What kind of values an opened image has, None for 8 bits.

    Raises:
        BrokenImage: It has channels of which nothing says what they are.
    """
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF":
        samples, extra = int(tags.get(SAMPLES, 1)), tags.get(EXTRA, ())
        extra = extra if isinstance(extra, tuple) else (extra,)
        spare = samples - COLOURS.get(int(tags.get(PHOTOMETRIC, 2)), samples)
        if spare > 1 or spare == 1 and (not extra or extra[0] not in (1, 2)):
            raise BrokenImage(f"{samples} channels, of which the last is not marked as transparency: save gray or RGB")
    if image.mode.startswith("I;16"):
        return INTEGER_16
    if image.mode == "I" or image.mode == "L" and _first(tags.get(SAMPLE_FORMAT, 1)) == 2:
        return INTEGER
    if image.mode == "F":
        return FLOAT
    return COLOUR_16 if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) else None


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _upright(image: Image.Image) -> Image.Image:
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1)) if "exif" in image.info else None
    return image if turn is None else image.transpose(turn)


def _values(image: Image.Image, upright: Image.Image) -> np.ndarray:
    """(H, W) numbers as the file means them: signed where it says so."""
    values = np.asarray(upright)
    form = _first(getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, 0))
    if upright.mode == "L":
        values = values.view(np.int8)
    elif upright.mode == "I" and form == 1:
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise BrokenImage("some of its values are not numbers")
    return values


def _scaled(values: np.ndarray, image: Image.Image, ranges: Range) -> Image.Image:
    """(H, W) values to RGB, beyond the range clipped; rounded to the nearest of 256 levels."""
    level = _levels(values, image, ranges, np.float64) + 0.5
    return Image.fromarray(np.clip(level, 0, 255).astype(np.uint8)).convert("RGB")


def _levels(values: np.ndarray, image: Image.Image, ranges: Range, kind: type = np.float32) -> np.ndarray:
    """(H, W) values with the range's ends at 0 and 255."""
    black, white = ranges
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # the TIFF says that zero is white
        black, white = white, black
    level: np.ndarray = ((values.astype(np.float64) - black) * (255 / (white - black))).astype(kind)
    return level


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _check_png(content: bytes) -> None:
    """Compare the checksum of each chunk up to the end.

    Raises:
        BrokenImage: One differs, or the file is cut short.
    """
    at, kind = len(PNG_START), b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise BrokenImage("the file is cut short")
        (length,) = struct.unpack_from(">I", content, at)
        kind, end = content[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(content):
            raise BrokenImage("the file is cut short")
        if zlib.crc32(memoryview(content)[at + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
            raise BrokenImage(f"the checksum of its {kind.decode('latin-1')} chunk does not match")
        at = end + 4


def _reason(error: Exception) -> str:
    """The first line, without what differs from file to file, so that equal reasons can be counted."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that can be recognised"
    if isinstance(error, OSError) and error.strerror:
        return f"{UNREAD} ({error.strerror})"
    return re.sub(r" \(\d+ bytes not processed\)", "", (str(error) or type(error).__name__).splitlines()[0])
