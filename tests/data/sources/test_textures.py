"""Generated textures: the same on all machines, hard for raw pixels, easy for a small network with labels.

Shapes: N images.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from ssl_bench.config.options import DataOptions
from ssl_bench.data.pool import Source
from ssl_bench.data.sources import textures

CHANCE = 1 / 12
MATCH = 1 / 64  # of the right match in a batch of 64, by chance


@pytest.fixture(scope="module")
def source() -> Source:
    return textures.load(DataOptions(name="textures"))


@pytest.mark.integration
def test_classes_are_balanced_and_images_differ(source: Source) -> None:
    for pool, count in ((source.train, 15_000), (source.test, 3_000)):
        assert pool is not None and pool.images.shape == (count, 3, 32, 32) and pool.images.dtype == torch.uint8
        assert set(np.bincount(pool.labels)) == {count // 12}
        assert len(set(pool.ids)) == count == len(torch.unique(pool.images.flatten(1), dim=0))
    assert source.classes == tuple(sorted(textures.CLASSES)) and len(source.classes) == 12


def test_the_same_bytes_on_all_machines(source: Source) -> None:
    assert source.test is not None
    assert source.test.digest() == TEST_DIGEST
    assert source.train.digest() == TRAIN_DIGEST


TEST_DIGEST = "833ad530ca30a89402b66962ee6909edfd02e5a121238097d648e610d6571a1f"
TRAIN_DIGEST = "99300e8865a7b39488f2fe3539c57465b2358270ad8b4f3106d5ef93390bfeb3"


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_every_channel_of_every_image_has_the_same_brightness_and_contrast(
    difficulty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(textures.NOISE, difficulty, 0.0)
    images, _ = textures.textures(240, 5, difficulty)
    values = images.astype(np.float64)
    assert np.abs(values.mean((2, 3)) - textures.LEVEL).max() < 3  # what is cut off at 0 and 255 moves it a little
    assert np.abs(values.std((2, 3)) - textures.CONTRAST).max() < 5


def test_a_harder_set_is_noisier() -> None:
    def roughness(difficulty: str) -> float:
        images, _ = textures.textures(240, 5, difficulty)
        return float(np.abs(np.diff(images.astype(float), axis=3)).mean())

    assert roughness("easy") < roughness("medium") < roughness("hard")


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.integration
def test_raw_pixels_fail(source: Source, centred: bool) -> None:
    """Weighted 20-NN by cosine, within 1.5 times chance."""
    assert source.test is not None
    bank, queries = source.train.images.flatten(1).float() / 255, source.test.images.flatten(1).float()[::3] / 255
    if centred:
        mean = bank.mean(0)
        bank, queries = bank - mean, queries - mean
    near, rows = (F.normalize(queries) @ F.normalize(bank).T).topk(20)
    votes = torch.zeros(len(queries), 12).scatter_add_(
        1, torch.from_numpy(source.train.labels)[rows], (near / 0.07).exp()
    )
    accuracy = (votes.argmax(1) == torch.from_numpy(source.test.labels[::3])).float().mean().item()
    assert accuracy < 1.5 * CHANCE


@pytest.mark.integration
def test_two_views_cannot_be_matched_by_colour_or_shading(source: Source) -> None:
    """Two SimCLR views of an image, described by what is no pattern: mean colour, and brightness in a 2 x 2 grid."""
    torch.manual_seed(0)
    view = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    images = source.train.images[:512]
    first, second = (torch.stack([view(image) for image in images]).float() / 255 for _ in range(2))
    for describe in (lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)):
        assert _matched(describe(first), describe(second)) < 6 * MATCH


def _matched(first: Tensor, second: Tensor) -> float:
    """Share of views whose nearest other view, of 64 images, is of the same image."""
    rates = []
    for a, b in zip(first.split(64), second.split(64), strict=True):
        rates.append((torch.cdist(a, b).argmin(1) == torch.arange(64)).float().mean().item())
    return float(np.mean(rates))


@pytest.mark.slow
def test_a_small_network_learns_them_with_labels(source: Source) -> None:
    assert source.test is not None
    torch.manual_seed(0)

    def layer(width: int, out: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    network = nn.Sequential(layer(3, 24), layer(24, 48, 2), layer(48, 96, 2), layer(96, 96))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 12)])
    labels, epochs, batch = torch.from_numpy(source.train.labels), 5, 64
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (15_000 // batch))
    for _ in range(epochs):
        for rows in torch.randperm(15_000)[: 15_000 // batch * batch].split(batch):
            loss = F.cross_entropy(network(source.train.images[rows].float() / 127.5 - 1), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(images.float() / 127.5 - 1).argmax(1) for images in source.test.images.split(500)])
    assert (found == torch.from_numpy(source.test.labels)).float().mean() > 0.95
