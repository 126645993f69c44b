"""Each oddity of image files, written by PIL, against pixel values worked out here."""

import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image

from ssl_bench.data.decode import UPRIGHT, BrokenImage, decode, fault

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
