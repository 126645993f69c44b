"""Oracle: torchvision's functions on float images, one image at a time, and its own draws of parameters."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from ssl_bench.augment import colour, executors, geometry
from ssl_bench.augment.executors import ColourOnDevice, CropInWorker, DeviceViews
from ssl_bench.augment.views import View

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std that leave [0, 1] alone
FULL = View(32, jitter=(0.8, 0.8, 0.8, 0.2), grayscale=0.2, blur=0.5, solarize=0.2)
STILL = View(32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)  # the image itself


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int, width: int) -> Tensor:
    """Smooth random uint8 images with full black, full white and grey in them."""
    coarse = torch.rand(count, 3, 5, 6, generator=seeded())
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").mul(1.6).sub(0.3).clamp(0, 1)
    images[:, :, :2, :2] = 0
    images[:, :, 2:4, :2] = 1
    images[:, :, 4:6, :2] = 0.5
    return images.mul(255).round().byte()


def floats(count: int, size: int = 32) -> Tensor:
    return photos(count, size, size).float() / 255


def one_by_one(function: Callable[..., Tensor], images: Tensor, *parameters: Sequence[object]) -> Tensor:
    return torch.stack([function(*arguments) for arguments in zip(images, *parameters, strict=True)])


# --- equal parameters, equal results


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (96, 96, 96), (40, 61, 24), (61, 40, 96), (8, 8, 32)]
)
def test_crop_is_torchvisions(height: int, width: int, size: int, interpolation: str) -> None:
    images = photos(40, height, width)
    boxes = geometry.draw_boxes(40, height, width, (0.01, 1.0), (0.4, 2.5), seeded())
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, width - 1, 1, 1])
    flip = torch.arange(40) % 3 == 0
    expected = []
    for image, box, mirrored in zip(images, boxes.tolist(), flip.tolist(), strict=True):
        crop = oracle.resized_crop(image / 255, *box, [size, size], InterpolationMode(interpolation), antialias=True)
        expected.append(crop.clamp(0, 1).flip(-1) if mirrored else crop.clamp(0, 1))
    result = geometry.crop_resize(images, boxes, size, interpolation, flip)
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (colour.adjust_brightness, oracle.adjust_brightness, 0.0, 2.0),
        (colour.adjust_contrast, oracle.adjust_contrast, 0.0, 2.0),
        (colour.adjust_saturation, oracle.adjust_saturation, 0.0, 2.0),
        (colour.adjust_hue, oracle.adjust_hue, -0.5, 0.5),
    ],
)
def test_adjustments_are_torchvisions(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], low: float, high: float
) -> None:
    images, factors = floats(21), torch.linspace(low, high, 21)
    before = images.clone()
    result = ours(images, factors)
    torch.testing.assert_close(result, one_by_one(theirs, images, factors.tolist()), rtol=0, atol=2e-6)
    assert torch.equal(images, before)


def test_hue_of_every_corner_of_the_colour_cube() -> None:
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8).repeat(13, 1, 1, 1)
    shifts = torch.linspace(-0.5, 0.5, 13)
    expected = one_by_one(oracle.adjust_hue, cube, shifts.tolist())
    torch.testing.assert_close(colour.adjust_hue(cube, shifts), expected, rtol=0, atol=2e-6)


def test_jitter_is_torchvisions_in_each_order() -> None:
    operations = (oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue)
    orders = sorted(permutations(range(4)), key=lambda order: order.index(colour.HUE))  # 6 have hue first, ...
    images = floats(24)
    factors = 0.2 + 1.6 * torch.rand(24, 4, generator=seeded())
    factors[:, colour.HUE] = torch.linspace(-0.2, 0.2, 24)
    expected = []
    for image, order, factor in zip(images, orders, factors.tolist(), strict=True):
        for operation in order:
            image = operations[operation](image, factor[operation])
        expected.append(image)
    others = torch.tensor([[k for k in order if k != colour.HUE] for order in orders])
    result = colour.jitter_(images.clone(), factors, others, [6, 6, 6, 6])
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=2e-5)
    assert len(result.flatten(1).unique(dim=0)) == 24


def test_grayscale_and_solarize_are_torchvisions() -> None:
    images = floats(4)
    torch.testing.assert_close(colour.grayscale(images), oracle.rgb_to_grayscale(images, 3), rtol=0, atol=1e-6)
    images[:, :, 0] = 0.5
    assert torch.equal(colour.solarize(images), oracle.solarize(images, 0.5))


@pytest.mark.parametrize(("size", "taps"), [(32, 3), (64, 7), (224, 23), (12, 23)])
def test_blur_is_torchvisions(size: int, taps: int) -> None:
    images, sigma = floats(6, size), torch.linspace(0.1, 2.0, 6)
    expected = one_by_one(lambda image, s: oracle.gaussian_blur(image, [taps, taps], [s, s]), images, sigma.tolist())
    torch.testing.assert_close(colour.gaussian_blur(images, sigma, taps), expected, rtol=0, atol=2e-6)


# --- equal images, different results


@pytest.mark.parametrize(
    ("view", "least", "most"),
    [
        (replace(STILL, scale=(0.08, 1.0)), 60, 64),  # boxes are in whole pixels, so that two may be the same
        (replace(STILL, jitter=(0.8, 0.0, 0.0, 0.0), jitter_p=1.0), 64, 64),
        (replace(STILL, jitter=(0.0, 0.8, 0.0, 0.0), jitter_p=1.0), 64, 64),
        (replace(STILL, jitter=(0.0, 0.0, 0.8, 0.0), jitter_p=1.0), 64, 64),
        (replace(STILL, jitter=(0.0, 0.0, 0.0, 0.2), jitter_p=1.0), 64, 64),
        (replace(STILL, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.5), 20, 45),
        (replace(STILL, blur=1.0), 60, 64),  # a sigma below 0.15 changes nothing
        (replace(STILL, flip=0.5), 2, 2),
        (replace(STILL, grayscale=0.5), 2, 2),
        (replace(STILL, solarize=0.5), 2, 2),
        (STILL, 1, 1),
    ],
)
def test_each_of_64_equal_images_has_its_own_parameters(view: View, least: int, most: int) -> None:
    images = photos(1, 32, 32).repeat(64, 1, 1, 1)
    (result,) = DeviceViews([view], *PLAIN)(images, seeded())
    assert least <= len(result.flatten(1).unique(dim=0)) <= most


def test_all_24_orders_of_the_jitter_are_equally_frequent() -> None:
    drawn = executors._Colour(replace(FULL, jitter_p=1.0), 4800, seeded())
    orders = torch.cat([drawn.turn[:, None], drawn.order], 1).unique(dim=0, return_counts=True)[1]
    assert len(orders) == 24
    assert chisquare(orders.numpy()).pvalue > 1e-3


def test_draws_have_their_probabilities_and_nothing_to_do_with_each_other() -> None:
    view = replace(FULL, jitter_p=0.7, grayscale=0.2, blur=0.5, solarize=0.4)
    drawn = executors._Colour(view, 10_000, seeded())
    happens = torch.stack([drawn.turn != executors.NEVER, drawn.grayscale, drawn.blur, drawn.solarize]).float()
    torch.testing.assert_close(happens.mean(1), torch.tensor([0.7, 0.2, 0.5, 0.4]), rtol=0, atol=0.02)
    correlations = torch.corrcoef(torch.cat([happens, drawn.factors.T, drawn.sigma[None]]))
    assert (correlations - torch.eye(9)).abs().max() < 0.04
    assert ks_2samp(drawn.sigma, torch.linspace(*view.blur_sigma, 10_000)).pvalue > 1e-3
    for factors, (low, high) in zip(drawn.factors.T, [(0.2, 1.8)] * 3 + [(-0.2, 0.2)], strict=True):
        assert ks_2samp(factors, torch.linspace(low, high, 10_000)).pvalue > 1e-3


# --- the same distributions


def same_distribution(ours: Tensor, theirs: Tensor) -> None:
    for mine, other in zip(ours.double().T, theirs.double().T, strict=True):
        assert ks_2samp(mine.numpy(), other.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (32, 32, (0.08, 1.0)),  # of these, 0.2 % central crops
        (375, 500, (0.2, 1.0)),  # none
        (20, 100, (0.15, 0.5)),  # 14 %
        (100, 20, (0.26, 1.0)),  # 98 %
        (20, 99, (0.9, 1.0)),  # all
    ],
)
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    ratio = (3 / 4, 4 / 3)
    ours = geometry.draw_boxes(2000, height, width, scale, ratio, seeded())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        image, draw = torch.empty(3, height, width), transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([draw(image, list(scale), list(ratio)) for _ in range(2000)])
    boxes = [torch.cat([b, b[:, 2:3] * b[:, 3:], b[:, 2:3] / b[:, 3:], b[:, :2] + b[:, 2:]], 1) for b in (ours, theirs)]
    same_distribution(*boxes)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all()


def statistics(images: Tensor) -> Tensor:
    """Means and deviations of the channels, colourfulness, roughness along x, left minus right: (B, 9)."""
    means, deviations = images.mean((2, 3)), images.std((2, 3))
    colourful = (images.amax(1) - images.amin(1)).mean((1, 2))
    rough = images.diff(dim=3).abs().mean((1, 2, 3))
    lean = images[..., :16].mean((1, 2, 3)) - images[..., 16:].mean((1, 2, 3))
    return torch.cat([means, deviations, torch.stack([colourful, rough, lean], 1)], 1)


@pytest.fixture(scope="module")
def batched() -> Tensor:
    images = photos(1, 48, 64).repeat(800, 1, 1, 1)
    return statistics(DeviceViews([FULL], *PLAIN)(images, seeded())[0])


@pytest.mark.integration
def test_views_are_distributed_as_torchvisions(batched: Tensor) -> None:
    blur = transforms.GaussianBlur(FULL.taps, FULL.blur_sigma)
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, (0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.Lambda(lambda image: image.clamp(0, 1)),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.RandomSolarize(0.5, p=0.2),
        ]
    )
    image = photos(1, 48, 64)[0] / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = torch.stack([pipeline(image) for _ in range(800)])
    same_distribution(batched, statistics(theirs))


def test_both_executors_agree_in_distribution(batched: Tensor) -> None:
    image, crop = oracle.to_pil_image(photos(1, 48, 64)[0]), CropInWorker([FULL])
    crops = torch.stack([crop(image, seeded(row))[0] for row in range(800)])
    (result,) = ColourOnDevice([FULL], *PLAIN)([crops], seeded(1))
    same_distribution(batched, statistics(result))


def test_both_executors_cut_the_same_from_the_same_boxes() -> None:
    image, view = photos(1, 75, 100), replace(FULL, count=6)
    crops = CropInWorker([view])(oracle.to_pil_image(image[0]), seeded())
    generator = seeded()
    boxes = geometry.draw_boxes(6, 75, 100, view.scale, view.ratio, generator)
    flip = torch.rand(6, generator=generator) < view.flip
    assert 0 < flip.sum() < 6
    expected = geometry.crop_resize(image.expand(6, -1, -1, -1), boxes, 32, "bicubic", flip)
    assert all(crop.dtype == torch.uint8 and crop.is_contiguous() for crop in crops)
    torch.testing.assert_close(torch.stack(crops) / 255, expected, rtol=0, atol=1.6 / 255)  # rounded after each axis


# --- what comes out


@pytest.mark.parametrize("count", [1, 3, 129])
def test_views_come_in_the_order_and_sizes_described(count: int) -> None:
    views = [replace(FULL, count=2), View(16, count=3, scale=(0.05, 0.4), interpolation="bilinear"), View(40)]
    images = photos(count, 32, 32)
    results = DeviceViews(views, *PLAIN)(images, seeded())
    assert [tuple(result.shape) for result in results] == [(count, 3, s, s) for s in (32, 32, 16, 16, 16, 40)]
    assert all(result.dtype == torch.float32 and result.is_contiguous() for result in results)
    assert all(result.min() > -1e-5 and result.max() < 1 + 1e-5 for result in results)
    assert not torch.equal(results[0], results[1])

    crops = CropInWorker(views)(oracle.to_pil_image(images[0]), seeded())
    assert [tuple(crop.shape) for crop in crops] == [(3, s, s) for s in (32, 32, 16, 16, 16, 40)]
    coloured = ColourOnDevice(views, *PLAIN)([crop.expand(count, -1, -1, -1) for crop in crops], seeded())
    assert [result.shape for result in coloured] == [result.shape for result in results]
    assert all(result.dtype == torch.float32 and result.is_contiguous() for result in coloured)


def test_the_seed_decides_everything_and_nothing_else_is_touched() -> None:
    images, state = photos(20, 32, 32), torch.get_rng_state()
    views = DeviceViews([FULL, FULL], *PLAIN)
    first, again, other = views(images, seeded(3)), views(images, seeded(3)), views(images, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])

    image, worker = oracle.to_pil_image(images[0]), CropInWorker([FULL, FULL])
    crops = worker(image, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(crops, worker(image, seeded(3)), strict=True))
    batches, colours = [crop[None] for crop in crops], ColourOnDevice([FULL, FULL], *PLAIN)
    assert torch.equal(colours(batches, seeded(3))[1], colours(batches, seeded(3))[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    images, views = photos(50, 32, 32), DeviceViews([FULL], *PLAIN)
    (whole,) = views(images, seeded())
    monkeypatch.setattr(executors, "CPU_CHUNK", 7 * 3 * 32 * 32)
    torch.testing.assert_close(views(images, seeded())[0], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (STILL, lambda images: images),
        (replace(STILL, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.0), lambda images: images),
        (replace(STILL, jitter=(0.0, 0.0, 0.0, 0.0), jitter_p=1.0), lambda images: images),
        (replace(STILL, flip=1.0), lambda images: images.flip(3)),
        (replace(STILL, grayscale=1.0), lambda images: oracle.rgb_to_grayscale(images, 3)),
        (replace(STILL, solarize=1.0), lambda images: oracle.solarize(images, 0.5)),
        (
            replace(STILL, blur=1.0, blur_sigma=(0.7, 0.7)),
            lambda images: oracle.gaussian_blur(images, [3, 3], [0.7, 0.7]),
        ),
    ],
)
def test_probabilities_of_zero_and_one(view: View, expected: Callable[[Tensor], Tensor]) -> None:
    images = photos(5, 32, 32)
    floating = images.float() / 255
    (result,) = DeviceViews([view], *PLAIN)(images, seeded())
    torch.testing.assert_close(result, expected(floating), rtol=0, atol=2e-6)
    (coloured,) = ColourOnDevice([view], *PLAIN)([images.flip(3) if view.flip else images], seeded())
    torch.testing.assert_close(coloured, expected(floating), rtol=0, atol=2e-6)


def test_results_are_normalised() -> None:
    images, mean, std = photos(5, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    (plain,), (normalised,) = (DeviceViews([FULL], *how)(images, seeded()) for how in (PLAIN, (mean, std)))
    torch.testing.assert_close(normalised, oracle.normalize(plain, list(mean), list(std)), rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_a_gpu() -> None:
    images = photos(1, 48, 64).repeat(800, 1, 1, 1).cuda()
    views, generator = DeviceViews([FULL], *PLAIN), torch.Generator("cuda").manual_seed(0)
    (result,) = views(images, generator)
    same_distribution(statistics(result.cpu()), statistics(DeviceViews([FULL], *PLAIN)(images.cpu(), seeded(1))[0]))
    assert torch.equal(views(images, generator.manual_seed(0))[0], result)
