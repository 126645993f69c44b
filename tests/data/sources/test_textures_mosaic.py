"""Mosaics: masks say which texture is where, regions are of different classes, borders are of none."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.masks import IGNORE, ResidentMasks
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.sources.textures_mosaic import CLASSES, mosaics
from ssl_bench.errors import UserError


@pytest.fixture(scope="module")
def some() -> tuple[np.ndarray, np.ndarray]:
    return mosaics(60, 5)


def test_each_image_has_several_classes_and_thin_borders_of_none(some: tuple[np.ndarray, np.ndarray]) -> None:
    images, masks = some
    assert images.shape == (60, 3, 64, 64) and masks.shape == (60, 64, 64)
    many = [len(np.unique(mask[mask != IGNORE])) for mask in masks]
    assert set(many) <= set(range(2, 7)) and len(set(many)) > 2
    assert set(np.unique(masks)) == {*range(len(CLASSES)), IGNORE}
    assert 0.02 < (masks == IGNORE).mean() < 0.2
    for mask in masks:
        thick = ndimage.binary_erosion(mask == IGNORE, np.ones((5, 5)))
        assert not thick.any(), "a border is two pixels wide, a little more where borders meet"
        for axis in (0, 1):
            inner = [np.take(mask, range(64 - 1), axis), np.take(mask, range(1, 64), axis)]
            touching = (inner[0] != inner[1]) & (inner[0] != IGNORE) & (inner[1] != IGNORE)
            assert not touching.any(), "classes touch nowhere but over a border"


def test_a_region_differs_from_its_neighbours_in_more_than_noise(some: tuple[np.ndarray, np.ndarray]) -> None:
    """The mean change over a border is larger than within a region."""
    images, masks = some
    change = np.abs(np.diff(images.astype(float), axis=3)).mean(1)
    border = (masks[:, :, :-1] == IGNORE) & (masks[:, :, 1:] == IGNORE)
    within = (masks[:, :, :-1] != IGNORE) & (masks[:, :, 1:] != IGNORE)
    assert change[border].mean() > 1.1 * change[within].mean()


def test_the_same_seed_gives_the_same_set(some: tuple[np.ndarray, np.ndarray]) -> None:
    again = mosaics(60, 5)
    assert all(np.array_equal(a, b) for a, b in zip(some, again, strict=True))
    assert not np.array_equal(mosaics(60, 6)[1], some[1])


def test_as_a_data_set_with_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_bench.data.sources.textures_mosaic.COUNTS", {"train": 50, "test": 20})
    data = load_dataset(DataOptions(name="textures-mosaic"))
    assert data.known == "masks" and data.classes == CLASSES and data.image_size == 64
    assert data.train is not None and data.validation is not None and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 5, 20)
    assert not set(data.train.ids) & set(data.validation.ids)
    pool = data.train.pool
    assert isinstance(pool, ResidentPool) and isinstance(pool.masks, ResidentMasks)
    place = 7
    assert np.array_equal(data.train.mask(place), pool.masks.values[data.train.rows[place]].numpy())
    hidden = data.test.unlabelled()
    with pytest.raises(AttributeError, match="test images have no labels here"):
        hidden.mask(0)
    assert hidden.pool.masks is None and hidden.pool.digest() == data.test.pool.digest()
    with pytest.raises(UserError, match="textures-mosaic has a class for each pixel, none for each image"):
        data.require_labels("classes")
    data.require_labels("masks")
    with pytest.raises(UserError, match="digits has a class for each image, none for each pixel"):
        load_dataset(DataOptions(name="digits")).require_labels("masks")


def test_the_digest_covers_masks() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    pools = [
        ResidentPool(labels=None, ids=["a", "b"], images=images, masks=ResidentMasks(values=masks))
        for masks in (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.ones(2, 8, 8, dtype=torch.uint8))
    ]
    plain = ResidentPool(labels=None, ids=["a", "b"], images=images)
    assert len({pool.digest() for pool in [*pools, plain]}) == 3
    part = pools[1].take(np.array([1]))
    assert part.masks is not None and len(part.masks) == 1
