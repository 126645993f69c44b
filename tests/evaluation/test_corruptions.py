"""Each corruption against plain NumPy, SciPy, PIL or colorsys; how strong it is; what its randomness depends on."""

import colorsys
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from ssl_bench.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupted,
    image_seeds,
    pixelate,
    splitmix64,
    uniform,
)

RANDOM = {"gaussian-noise", "shot-noise", "impulse-noise", "motion-blur"}
NAMES = [f"photo/{i}.png" for i in range(6)]


def pictures(size: int, count: int = 6) -> Tensor:
    """Coloured blobs with edges and some texture, 8-bit, in [0, 1]."""
    generator = torch.Generator().manual_seed(size)
    coarse = torch.rand(count, 3, size // 8 + 3, size // 8 + 3, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    smooth[:, :, size // 4 + 1 : size // 2 + 1, size // 3 : -size // 4] *= 0.3  # a dark box
    texture = 0.04 * torch.randn(count, 3, size, size, generator=generator)
    return ((smooth + texture).clamp(0, 1) * 255).round() / 255


def copies(images: Tensor, kind: str, names: list[str] = NAMES) -> Tensor:
    """(5, B, 3, H, W)."""
    return torch.stack(list(corrupted(images, kind, image_seeds(names[: len(images)], kind))))


def levels(images: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [0, 1] to whole numbers."""
    return (images * 255).round().to(torch.int64).numpy()


def assert_rounded(found: Tensor, exact: np.ndarray) -> None:
    """8-bit images are exact values in [0, 1], rounded: half a level away at most (ties go either way)."""
    assert np.abs(levels(found) - 255 * np.clip(exact, 0, 1)).max() <= 0.5 + 1e-3


def rounded(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255)


# --- of every kind


@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_copies_are_8_bit_images_that_get_worse(kind: str, size: int) -> None:
    images = pictures(size)
    before = images.clone()
    found = copies(images, kind)
    assert torch.equal(images, before), "the caller's images stay"
    assert found.shape == (SEVERITIES, *images.shape) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal((found * 255).round() / 255, found)
    distance = (found - images).square().mean((1, 2, 3, 4)).sqrt()
    assert (distance > 0.008).all() and (distance < 0.4).all(), distance.tolist()
    if size > 8 or kind != "pixelate":  # of 8 pixels a few, but which ones matters more than how many
        assert (distance.diff() > 0).all(), distance.tolist()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_copy_depends_on_the_image_and_its_name_alone(kind: str) -> None:
    images = pictures(32)
    together = copies(images, kind)
    order = [4, 0, 5, 2]
    assert torch.equal(copies(images[order], kind, [NAMES[i] for i in order]), together[:, order])
    torch.manual_seed(3)
    assert torch.equal(copies(images[1:2], kind, NAMES[1:2]), together[:, 1:2])
    state = torch.random.get_rng_state()
    renamed = copies(images, kind, [f"other/{i}" for i in range(6)])
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not used"
    same = [torch.equal(renamed[:, i], together[:, i]) for i in range(6)]
    assert not any(same) if kind in RANDOM else all(same)


def test_kinds_and_images_draw_their_own() -> None:
    seeds = torch.cat([image_seeds(NAMES, kind) for kind in CORRUPTIONS])
    assert len(seeds.unique()) == len(seeds) == 60
    noise = uniform(seeds, (500,))
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(60)).max() < 6 / np.sqrt(500)


def test_seeds_are_of_sha256() -> None:
    # printf 'jpeg a' | sha256sum
    assert image_seeds(["a"], "jpeg").tolist() == [int("43d50f733a593a07", 16)]


# --- random numbers


def test_splitmix64_is_the_published_one() -> None:
    """The first five numbers of seed 1234567, as the reference implementation in C prints them."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    golden = 0x9E3779B97F4A7C15 - 2**64
    found = splitmix64(torch.tensor(1234567) + torch.arange(1, 6) * golden)
    assert [number % 2**64 for number in found.tolist()] == expected
    drawn = uniform(torch.tensor([1234567]), (5,))
    assert drawn[0].tolist() == [((number >> 41) + 0.5) / 2**23 for number in expected]


def test_uniform_numbers() -> None:
    drawn = uniform(image_seeds([str(i) for i in range(64)], "x"), (3, 40, 40))
    assert drawn.shape == (64, 3, 40, 40)
    assert drawn.min() > 0 and drawn.max() < 1
    assert stats.kstest(drawn.flatten().double().numpy(), "uniform").pvalue > 0.001
    line = drawn.flatten(1).double().numpy()
    assert abs(np.corrcoef(line[:, 1:].ravel(), line[:, :-1].ravel())[0, 1]) < 0.01


def test_strengths_at_their_sizes_and_between() -> None:
    noise, blur = CORRUPTIONS["gaussian-noise"], CORRUPTIONS["gaussian-blur"]
    assert noise.strengths(32) == pytest.approx((0.04, 0.06, 0.08, 0.09, 0.10))
    assert noise.strengths(224) == pytest.approx((0.08, 0.12, 0.18, 0.26, 0.38))
    between = 32 * 7**0.5  # as far from 32 as 224 is from it, in ratio
    assert noise.strengths(between)[4] == pytest.approx((0.10 * 0.38) ** 0.5)  # type: ignore[arg-type]
    assert noise.strengths(8) == noise.strengths(32) and noise.strengths(448) == noise.strengths(224)
    assert blur.strengths(448) == pytest.approx((2, 4, 6, 8, 12)) and blur.strengths(16) == blur.strengths(32)
    for kind, corruption in CORRUPTIONS.items():
        assert corruption.in_pixels == kind.endswith("blur")
        for size in (32, 96, 224, 512):
            steps = np.diff(corruption.strengths(size))
            assert (steps > 0).all() or (steps < 0).all()


# --- noise


def flat(value: int, size: int = 96) -> Tensor:
    return torch.full((2, 3, size, size), value / 255)


def test_gaussian_noise() -> None:
    images = flat(128)
    noise = copies(images, "gaussian-noise") - images
    for found, deviation in zip(noise[:3], CORRUPTIONS["gaussian-noise"].strengths(96), strict=False):
        assert found.mean().abs() < 4 * deviation / images.numel() ** 0.5
        clipped = stats.truncnorm(-128 / 255 / deviation, 127 / 255 / deviation)
        assert found.std().item() == pytest.approx(deviation * clipped.std(), rel=0.02)
    drawn = stats.norm.ppf(uniform(image_seeds(NAMES[:2], "gaussian-noise"), (3, 96, 96)).double().numpy())
    for found, deviation in zip(noise, CORRUPTIONS["gaussian-noise"].strengths(96), strict=True):
        assert_rounded(found + images, 128 / 255 + deviation * drawn)


def test_shot_noise_is_poissons_quantile() -> None:
    images = pictures(32, 2)
    images[0, :, :4], images[1, :, :4] = 0, 1
    seeds = image_seeds(NAMES[:2], "shot-noise")
    draw = uniform(seeds, images.shape[1:]).double().numpy()
    for found, photons in zip(copies(images, "shot-noise"), (500, 250, 100, 75, 50), strict=True):
        expected = stats.poisson.ppf(draw, levels(images) / 255 * photons) / photons
        expected[levels(images) == 0] = 0
        assert np.array_equal(levels(found), rounded(expected))


def test_shot_noise_has_the_mean_and_variance_of_counts() -> None:
    for value in (20, 100):
        images = flat(value)
        for found, photons in zip(copies(images, "shot-noise"), CORRUPTIONS["shot-noise"].strengths(96), strict=True):
            mean, variance = value / 255, value / 255 / photons
            assert found.mean().item() == pytest.approx(mean, abs=5 * (variance / images.numel()) ** 0.5 + 2e-4)
            assert found.double().var().item() == pytest.approx(variance, rel=0.05)


def test_impulse_noise() -> None:
    images = flat(100)
    found = copies(images, "impulse-noise")
    for copy, share in zip(found, CORRUPTIONS["impulse-noise"].strengths(96), strict=True):
        error = 5 * (share / 2 / images.numel()) ** 0.5
        assert (copy == 0).double().mean().item() == pytest.approx(share / 2, abs=error)
        assert (copy == 1).double().mean().item() == pytest.approx(share / 2, abs=error)
        assert ((copy == 0) | (copy == 1) | (copy == images)).all()
    for milder, worse in zip(found, found[1:], strict=False):
        assert torch.equal(worse[milder != images], milder[milder != images]), "what was hit stays hit"


# --- blur


@pytest.mark.parametrize("size", [32, 224])
def test_gaussian_blur_is_scipys(size: int) -> None:
    images = pictures(size, 2)
    for found, sigma in zip(copies(images, "gaussian-blur"), CORRUPTIONS["gaussian-blur"].strengths(size), strict=True):
        reach = int(np.ceil(4 * sigma))
        blur = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", radius=reach)
        assert_rounded(found, blur)


@pytest.mark.parametrize("size", [32, 224])
def test_motion_blur_is_the_mean_of_shifted_images(size: int) -> None:
    images = pictures(size, 2)
    angle = np.pi * uniform(image_seeds(NAMES[:2], "motion-blur"), (1,))[:, 0].double().numpy()
    for severity in (0, 4):
        found = copies(images, "motion-blur")[severity]
        length = CORRUPTIONS["motion-blur"].strengths(size)[severity]
        points = np.linspace(-0.5, 0.5, int(np.ceil(length)) + 1) * length
        for image, copy, turn in zip(images.double().numpy(), found, angle, strict=True):
            towards = [(0, -p * np.sin(turn), -p * np.cos(turn)) for p in points]  # shift moves what is seen
            mean = np.mean([ndimage.shift(image, by, order=1, mode="mirror") for by in towards], axis=0)
            assert np.abs(levels(copy) - 255 * mean).max() <= 0.5 + 0.05  # pixels apart are met to 1e-5 of their side


def test_motion_blur_draws_a_line() -> None:
    """A white point becomes a line of the length and the direction drawn."""
    images = torch.zeros(6, 3, 65, 65)
    images[:, :, 32, 32] = 1
    angle = np.pi * uniform(image_seeds(NAMES, "motion-blur"), (1,))[:, 0].double().numpy()
    found = copies(images, "motion-blur")[4, :, 0].double().numpy()
    length = CORRUPTIONS["motion-blur"].strengths(65)[4]
    at = np.arange(65) - 32
    for line, turn in zip(found, angle, strict=True):
        weight = line / line.sum()
        along = weight * (at * np.cos(turn) + at[:, None] * np.sin(turn)) ** 2
        across = weight * (at[:, None] * np.cos(turn) - at * np.sin(turn)) ** 2
        assert across.sum() < 0.5
        assert along.sum() ** 0.5 * 12**0.5 == pytest.approx(length, rel=0.2)  # a uniform's deviation


# --- light and colour


def by_colorsys(images: Tensor, change: object) -> np.ndarray:
    """Each pixel through the standard library's HSV, changed there, and back."""
    values = images.permute(0, 2, 3, 1).reshape(-1, 3).double().tolist()
    found = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in values]  # type: ignore[operator]
    return np.array(found).reshape(len(images), *images.shape[2:], 3).transpose(0, 3, 1, 2)


def test_brightness_adds_to_the_value() -> None:
    images = pictures(16, 2)
    images[0, :, :4], images[0, :, 4:6] = 0, 1
    for found, more in zip(copies(images, "brightness"), CORRUPTIONS["brightness"].strengths(16), strict=True):
        expected = by_colorsys(images, lambda h, s, v, more=more: (h, s, min(1, v + more)))
        assert_rounded(found, expected)


def test_saturation_is_multiplied() -> None:
    images = pictures(16, 2)
    images[0, :, :4], images[0, :, 4:6] = 0, 0.6
    found = copies(images, "saturation")
    for copy, factor in zip(found, CORRUPTIONS["saturation"].strengths(16), strict=True):
        expected = by_colorsys(images, lambda h, s, v, factor=factor: (h, min(1, s * factor), v))
        assert_rounded(copy, expected)
    gray = (pictures(16, 2)[:, :1] * 255).round().div(255).expand(-1, 3, -1, -1)
    assert torch.equal(copies(gray, "saturation"), gray.expand(5, -1, -1, -1, -1)), "gray images have none"


def test_contrast_keeps_the_mean() -> None:
    images = pictures(32)
    for found, share in zip(copies(images, "contrast"), (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        values = images.double().numpy()
        mean = values.mean((2, 3), keepdims=True)
        assert_rounded(found, share * values + (1 - share) * mean)


# --- loss of data


@pytest.mark.parametrize("size", [8, 32, 224])
def test_jpeg_is_pils(size: int) -> None:
    images = pictures(size, 3)
    qualities = (25, 18, 15, 10, 7) if size == 224 else (80, 65, 58, 50, 40)
    for found, quality in zip(copies(images, "jpeg"), qualities, strict=True):
        for image, copy in zip(images, found, strict=True):
            file = io.BytesIO()
            Image.fromarray(levels(image).astype(np.uint8).transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
            assert np.array_equal(levels(copy), np.array(Image.open(file)).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [8, 32, 96, 224])
def test_pixelate_is_pils(size: int) -> None:
    images = pictures(size, 3)
    for found, share in zip(copies(images, "pixelate"), CORRUPTIONS["pixelate"].strengths(size), strict=True):
        for image, copy in zip(images, found, strict=True):
            small = Image.fromarray(levels(image).astype(np.uint8).transpose(1, 2, 0))
            small = small.resize((round(share * size),) * 2, Image.Resampling.BOX)
            expected = np.array(small.resize((size, size), Image.Resampling.BOX)).transpose(2, 0, 1)
            assert np.array_equal(levels(copy), expected)


def test_pixelate_where_parts_meet_in_the_middle_of_a_pixel() -> None:
    """Five pixels to two: the third one's middle lies between them, and it is of the first."""
    line = torch.tensor([10.0, 20, 60, 70, 91])
    images = line.expand(1, 3, 5, 5) / 255
    assert levels(next(pixelate(images, [0.4], torch.zeros(1))))[0, 0].tolist() == [[30, 30, 81, 81, 81]] * 5
    assert levels(next(pixelate(images.mT, [0.4], torch.zeros(1))))[0, 0].T.tolist() == [[30, 30, 81, 81, 81]] * 5


def test_images_that_are_not_8_bit_are_rounded_first() -> None:
    images = pictures(32)
    between = (images + 0.4 / 255 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for kind in CORRUPTIONS:
        assert torch.equal(copies(between, kind), copies(images, kind))
