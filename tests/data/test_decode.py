"""Each oddity of image files, written by PIL, against pixel values worked out here."""

import struct
import zlib

import numpy as np
import pytest
from pictures import encoded, four_channels, picture
from PIL import Image

from ssl_bench.data.decode import UPRIGHT, USUAL, BrokenImage, Check, check, decode, fault, guess_range

GRAY = np.array([[0, 64, 128], [192, 254, 255]], dtype=np.uint8)


def pixels(file: bytes) -> np.ndarray:
    image = decode(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_unchanged():
    assert (pixels(encoded(picture(0))) == np.asarray(picture(0))).all()


def test_gray_is_repeated():
    assert (pixels(encoded(Image.fromarray(GRAY))) == GRAY[:, :, None]).all()


def test_bilevel_is_black_and_white():
    assert (pixels(encoded(Image.fromarray(GRAY > 100))) == np.where(GRAY > 100, 255, 0)[:, :, None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    deep = np.array([[0, 257, 16448], [32896, 65278, 65535]], dtype=np.uint16)  # 257 x (0, 1, 64, 128, 254, 255)
    expected = np.array([[0, 1, 64], [128, 254, 255]])
    assert (pixels(encoded(Image.fromarray(deep), kind)) == expected[:, :, None]).all()


def test_16_bit_gray_rounds_to_the_nearest():
    deep = np.array([[128, 129, 385, 386]], dtype=np.uint16)  # 0.498, 0.502, 1.498 and 1.502 of 257
    assert pixels(encoded(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 1, 2]


def test_palette_is_looked_up():
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image = image.convert("P")
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 100])
    assert pixels(encoded(image)).tolist() == [[[255, 0, 0], [0, 200, 0], [0, 0, 100]]]


def test_transparent_palette_entry_is_white():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 200, 0])
    assert pixels(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [0, 200, 0]]]


def test_alpha_is_laid_over_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], dtype=np.uint8)
    # A fifth of the colour and four fifths of white: 204, 224, 255.
    assert pixels(encoded(Image.fromarray(rgba))).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]]


def test_gray_with_alpha_is_laid_over_white():
    image = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(np.full_like(GRAY, 0))))
    assert (pixels(encoded(image)) == 255).all()


def test_rgb_with_a_transparent_colour():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert pixels(encoded(image, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_cmyk_jpeg():
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:, :, 0], ink[:, :, 3] = 255, 51  # full cyan, a fifth of black: no red, four fifths of green and blue
    found = pixels(encoded(Image.frombytes("CMYK", (16, 16), ink.tobytes()), "JPEG"))
    assert np.abs(found.astype(int) - [0, 204, 204]).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    corners = np.zeros((16, 32), dtype=np.uint8)
    corners[:8, :16] = 255  # bright at the top left, upright
    upright = Image.fromarray(corners).convert("RGB")
    undo = {6: 8, 8: 6}.get(orientation, orientation)  # the turn that the camera's sensor saw
    stored = upright if undo == 1 else upright.transpose(UPRIGHT[undo])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encoded(stored, kind, exif=exif.tobytes(), **options))
    assert found.shape == (16, 32, 3)
    assert np.abs(found[:, :, 0].astype(int) - corners).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(file) == [255, 0, 0]).all()


def test_paths_and_bytes_give_the_same(tmp_path):
    picture(3).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    by_path = np.asarray(decode(str(tmp_path / "a.jpg")))
    assert (by_path == pixels(content)).all() and fault(str(tmp_path / "a.jpg")) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_broken(kind):
    whole = encoded(picture(1, 200, 150), kind)
    cut = whole[: len(whole) // 2]
    assert fault(whole) is None
    assert fault(cut)
    with pytest.raises(BrokenImage) as caught:
        decode(cut)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0" + b"\x00" * 100])
def test_what_is_no_image_is_broken(content):
    assert fault(content)
    with pytest.raises(BrokenImage):
        decode(content)


def test_missing_file_is_broken(tmp_path):
    assert fault(str(tmp_path / "gone.png"))
    with pytest.raises(BrokenImage):
        decode(str(tmp_path / "gone.png"))


# Values of more than 8 bits, or with a sign


def gray(values: np.ndarray, kind: str = "TIFF", **options) -> bytes:
    return encoded(Image.fromarray(values), kind, **options)


def signed_tiff(values: np.ndarray) -> bytes:
    """A TIFF of 8- or 16-bit integers with a sign, or 32-bit ones without: what Pillow reads and does not write."""
    height, width = values.shape
    form = 1 if values.dtype.kind == "u" else 2
    rows = [(256, 3, width), (257, 3, height), (258, 3, 8 * values.itemsize), (259, 3, 1), (262, 3, 1)]
    rows += [(273, 4, 8 + 2 + 12 * 9 + 4), (277, 3, 1), (279, 4, values.nbytes), (339, 3, form)]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in rows)
    return struct.pack("<2sHIH", b"II", 42, 8, 9) + table + bytes(4) + values.tobytes()


@pytest.mark.parametrize(
    ("values", "kind", "low", "high"),
    [
        (np.array([[0, 4095]], dtype=np.uint16), "16-bit", 0, 4095),
        (np.array([[-5, 70000]], dtype=np.int32), "integer", -5, 70000),
        (np.array([[-0.5, 0.25]], dtype=np.float32), "float", -0.5, 0.25),
    ],
)
def test_a_check_tells_the_values(values, kind, low, high):
    assert check(gray(values)) == Check(None, kind, low, high)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.array([[-100, 100]], dtype=np.int8), -100, 100),
        (np.array([[-1024, 3071]], dtype=np.int16), -1024, 3071),
        (np.array([[0, 4_000_000_000]], dtype=np.uint32), 0, 4_000_000_000),
    ],
)
def test_signs_are_those_of_the_file(values, low, high):
    file = signed_tiff(values)
    assert check(file) == Check(None, "integer", low, high)
    assert np.asarray(decode(file, {**USUAL, "integer": (low, high)}))[0, :, 0].tolist() == [0, 255]


def test_eight_bits_have_no_range():
    assert check(gray(GRAY)) == check(encoded(picture(0), "JPEG")) == Check()


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("16-bit", 0, 255, (0, 255)),
        ("16-bit", 3, 1000, (0, 1023)),
        ("16-bit", 0, 4000, (0, 4095)),
        ("16-bit", 0, 16000, (0, 16383)),
        ("16-bit", 0, 40000, (0, 65535)),
        ("16-bit", 0, 9, (0, 9)),
        ("integer", -1024, 3071, (-1024, 3071)),
        ("integer", 0, 10**6, (0, 10**6)),
        ("float", 0, 1, (0, 1)),
        ("float", -0.9, 0.8, (-1, 1)),
        ("float", 0.0, 250.0, (0, 255)),
        ("float", 0.0, 2.5, (0, 2.5)),
        ("float", -3.0, 8.0, (-3, 8)),
        ("float", 0.0, 0.01, (0, 0.01)),
        ("float", 5.0, 5.0, (5, 6)),
    ],
)
def test_a_range_is_guessed(kind, low, high, expected):
    assert guess_range(kind, low, high) == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_scale_to_the_nearest_level_and_are_clipped(dtype):
    values = np.array([[0, 100, 1100, 2100, 3000]], dtype=dtype)
    kind = check(gray(values)).kind
    found = np.asarray(decode(gray(values), {kind: (100, 2100)}))[0, :, 0]
    assert found.tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds up


def test_zero_may_be_white():
    values = np.array([[0.0, 1.0]], dtype=np.float32)
    file = gray(values, tiffinfo={262: 0})
    assert np.asarray(decode(file))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_broken(value):
    file = gray(np.array([[0.0, value]], dtype=np.float32))
    assert fault(file) == "some of its values are not numbers"
    with pytest.raises(BrokenImage, match="not numbers"):
        decode(file)


def test_16_bit_colour_gives_its_upper_bits(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">6H", 0x1234, 0xFFFF, 0, 256, 255, 0x8000) for _ in range(2))
    file = made_png(2, 2, 16, 2, rows)
    assert check(file) == Check(None, "16-bit colour", 0, 65535)
    assert pixels(file)[0].tolist() == [[0x12, 255, 0], [1, 0, 0x80]]


def made_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with the given lines, each after its filter's byte."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    body = b""
    for name, content in [*parts, (b"IEND", b"")]:
        body += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return b"\x89PNG\r\n\x1a\n" + body


# Four channels


@pytest.mark.parametrize("extra", [None, (0,)])
def test_a_fourth_channel_of_unknown_meaning_is_refused(extra):
    assert "4 channels, of which the last is not marked as transparency: save gray or RGB" in fault(
        four_channels(extra)
    )
    with pytest.raises(BrokenImage, match="4 channels"):
        decode(four_channels(extra))


@pytest.mark.parametrize(("extra", "expected"), [((2,), 255 - 155 * 100 / 255), ((1,), 255)])
def test_a_fourth_channel_that_is_transparency_is_laid_over_white(extra, expected):
    assert np.abs(pixels(four_channels(extra)).astype(float) - expected).max() <= 1


def test_cmyk_tiff_is_converted():
    assert (pixels(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF")) == 0).all()


# Damage


@pytest.mark.parametrize("at", np.linspace(0.05, 0.95, 19))
def test_a_flipped_byte_anywhere_in_a_png_is_found(at):
    content = bytearray(encoded(picture(1, 200, 150)))
    content[int(at * len(content))] ^= 0xFF
    assert fault(bytes(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_what_is_cut_short_is_found_wherever(kind, part):
    whole = encoded(picture(1, 200, 150), kind)
    assert fault(whole[: int(part * len(whole))]) and fault(whole) is None


def test_reasons_can_be_counted():
    reasons = {fault(encoded(picture(i, 200, 150), "JPEG")[: 1000 + 37 * i]) for i in range(5)}
    assert reasons == {"image file is truncated"}
    assert fault(b"no image") == fault(b"nor this") == "it is no image that can be recognised"
