"""What evaluations see of images of any shape: a square, the centre, never distorted."""

import hypothesis.strategies as st
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from PIL import Image

from ssl_bench.data.geometry import STRIP, centre, is_strip, scaled, see_batch, see_image, short_side

SIDES = st.integers(1, 600)
SIZES = st.integers(1, 300)


@given(SIDES, SIDES, SIZES)
def test_the_aspect_is_kept_and_the_crop_lies_inside(height: int, width: int, size: int) -> None:
    high, wide = scaled(height, width, size)
    assert min(high, wide) == short_side(size) >= size
    assert abs(high * width - wide * height) < max(height, width), "less than a pixel of distortion"
    top, left = centre(high, wide, size)
    assert top >= 0 and top + size <= high and abs(2 * top - (high - size)) <= 1
    assert left >= 0 and left + size <= wide and abs(2 * left - (wide - size)) <= 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
def test_an_image_of_one_colour_stays_one(height: int, width: int, size: int) -> None:
    colour = torch.tensor([200, 7, 90], dtype=torch.uint8)
    batch = colour.view(1, 3, 1, 1).expand(2, 3, height, width)
    seen = see_batch(batch, size)
    assert seen.shape == (2, 3, size, size)
    assert (seen * 255 - colour.view(1, 3, 1, 1)).abs().max() < 0.01
    alone = see_image(Image.fromarray(batch[0].permute(1, 2, 0).contiguous().numpy()), size)
    assert alone.shape == (3, size, size) and torch.equal(alone[:, 0, 0], colour)
    assert (alone.flatten(1) == alone[:, :1, 0]).all()


@given(st.integers(4, 40), st.integers(4, 40), st.integers(4, 20), st.integers(0, 10**6))
def test_a_mirrored_image_is_seen_mirrored(height: int, width: int, size: int, seed: int) -> None:
    """The crop is central up to the pixel by which an odd border must be uneven."""
    high, wide = scaled(height, width, size)
    if (wide - size) % 2 or (high - size) % 2:
        return
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, height, width), dtype=np.uint8))
    assert torch.allclose(see_batch(pixels.flip(3), size), see_batch(pixels, size).flip(3), atol=1e-4)
    assert torch.allclose(see_batch(pixels.flip(2), size), see_batch(pixels, size).flip(2), atol=1e-4)


@given(st.integers(1, 24), st.integers(0, 10**6))
def test_an_image_of_that_size_stays_as_it_is(size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(see_image(Image.fromarray(pixels), size), expected)
    assert torch.equal(see_batch(expected[None], size)[0], expected.float() / 255)


@given(st.integers(1, 3), st.integers(60, 200), st.integers(4, 12), st.booleans(), st.integers(0, 10**6))
def test_a_strip_is_seen_as_if_it_had_been_enlarged_whole(short, long, size, upright, seed) -> None:
    """Of colours that no pass of the filter saturates: Pillow may take rows first or columns first."""
    height, width = (long, short) if upright else (short, long)
    pixels = np.random.default_rng(seed).integers(96, 160, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert is_strip(height, width) == (long > STRIP * short)
    high, wide = scaled(height, width, size)
    top, left = centre(high, wide, size)
    whole = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    difference = np.abs(np.asarray(whole).astype(int) - see_image(image, size).permute(1, 2, 0).numpy().astype(int))
    assert difference.max() <= 1, "more than the rounding between the two passes"


def test_a_batch_is_scaled_as_torch_does_with_antialiasing() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 56), dtype=np.uint8))
    expected = F.interpolate(pixels.float() / 255, (18, 25), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(see_batch(pixels, 16), expected[:, :, 1:17, 4:20])
