"""Batches for pretraining and for evaluations.

Shapes: N images, B of a batch, s pixels.
"""

import io
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import encoded, picture
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from ssl_bench.augment.executors import CropInWorker
from ssl_bench.augment.views import View
from ssl_bench.data.evaluation_batches import evaluation_batches
from ssl_bench.data.files.left_out import UnreadableImage
from ssl_bench.data.geometry import see_image, short_side
from ssl_bench.data.loaders import PhotographLoader, RawBatch, ResidentLoader
from ssl_bench.data.order import Order
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit
from ssl_bench.errors import UserError

VIEWS = [View(size=24, count=2, scale=(0.2, 1.0)), View(size=16)]


def resident(count: int, height: int = 8, width: int = 8) -> ResidentPool:
    images = torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return ResidentPool(labels=np.zeros(count, dtype=np.int64), ids=[str(row) for row in range(count)], images=images)


def photographs(count: int, broken: tuple[int, ...] = ()) -> EncodedPool:
    contents = [encoded(picture(row, 100 + row, 120)) for row in range(count)]
    for row in broken:
        contents[row] = contents[row][:200]
    return EncodedPool(labels=np.arange(count) % 2, ids=[f"photo{row}" for row in range(count)], encoded=contents)


def loader(
    pool: EncodedPool, batch_size: int = 4, num_workers: int = 0, strict: bool = False, **order
) -> PhotographLoader:
    return PhotographLoader(pool, Order(len(pool), batch_size, 7, **order), CropInWorker(VIEWS), num_workers, strict)


def same(a: RawBatch, b: RawBatch) -> bool:
    crops = all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    return crops and torch.equal(a.rows, b.rows) and a[2:] == b[2:]


def test_an_epoch_has_each_image_at_most_once_and_drops_the_rest():
    order = Order(103, 10, seed=0)
    batches = list(order)
    rows = torch.cat([rows for _, _, rows in batches])
    assert len(order) == len(batches) == 10 and len(rows) == 100 and len(set(rows.tolist())) == 100
    assert [batch for _, batch, _ in batches] == list(range(10)) and {epoch for epoch, _, _ in batches} == {0}


def test_permutations_follow_seed_and_epoch_alone():
    def rows(seed: int, epoch: int) -> list[int]:
        return torch.cat([r for _, _, r in Order(64, 8, seed, epoch=lambda: epoch)]).tolist()

    torch.manual_seed(0)
    first = rows(0, 0)
    torch.manual_seed(5)
    assert rows(0, 0) == first
    assert len({tuple(rows(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_permutations_are_uniform():
    places = Counter(int(next(iter(Order(5, 1, 0, epoch=lambda e=e: e)))[2]) for e in range(2000))
    chi2 = sum((count - 400) ** 2 / 400 for count in places.values())
    assert chi2 < 18.5  # 99.9 % of four degrees of freedom


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_joint_batch(world_size):
    joint = [rows for _, _, rows in Order(50, 4 * world_size, seed=0)]
    ranks = [[rows for _, _, rows in Order(50, 4, 0, rank, world_size)] for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {len(joint)}
    for number, rows in enumerate(joint):
        assert torch.equal(torch.cat([rank[number] for rank in ranks]), rows)


def test_order_resumes_at_a_batch():
    whole = [rows.tolist() for _, _, rows in Order(40, 4, seed=0, epoch=lambda: 3)]
    resumed = [(batch, rows.tolist()) for _, batch, rows in Order(40, 4, 0, epoch=lambda: 3, first_batch=lambda: 6)]
    assert resumed == [(batch, whole[batch]) for batch in range(6, 10)]


def test_fewer_images_than_a_batch_shrink_it_with_a_warning():
    with pytest.warns(UserWarning, match=r"62 training images on 1 device\(s\): batches of 62, not of 256"):
        order = Order(62, 256, seed=0)
    assert order.batch_size == 62 and len(order) == 1 and len(next(iter(order))[2]) == 62
    with pytest.warns(UserWarning, match="batches of 20"):
        assert len(Order(62, 256, 0, rank=2, world_size=3)) == 1
    with pytest.raises(UserError, match="2 training images are too few for 3 devices"):
        Order(2, 4, 0, 0, 3)
    with pytest.raises(UserError, match="--data.batch_size is 0"):
        Order(2, 0, 0)


def test_resident_batches_hold_the_images_of_their_rows():
    pool = resident(20)
    batches = list(ResidentLoader(pool, Order(20, 6, seed=0)))
    assert len(batches) == len(ResidentLoader(pool, Order(20, 6, seed=0))) == 3
    for batch in batches:
        assert batch.images.shape == (6, 3, 8, 8) and batch.images.dtype == torch.uint8
        assert torch.equal(batch.images, pool.images[batch.rows])


def test_photograph_batches_have_a_tensor_per_crop():
    batches = list(loader(photographs(9)))
    assert len(batches) == 2
    for batch in batches:
        assert [tuple(crop.shape) for crop in batch.images] == [(4, 3, 24, 24)] * 2 + [(4, 3, 16, 16)]
        assert {crop.dtype for crop in batch.images} == {torch.uint8} and batch.broken == ()


def test_crops_are_those_of_the_rows_own_generator():
    from ssl_bench.runtime.seeds import derive

    pool = photographs(6)
    batch = next(iter(loader(pool, epoch=lambda: 2)))
    row = int(batch.rows[1])
    expected = CropInWorker(VIEWS)(pool.image(row), torch.Generator().manual_seed(derive(7, 2, row)))
    assert all(torch.equal(crop[1], wanted) for crop, wanted in zip(batch.images, expected, strict=True))


def test_workers_that_outlive_epochs_see_the_right_one():
    pool, epoch = photographs(8), 0
    with_workers = loader(pool, num_workers=2, epoch=lambda: epoch)
    alone = loader(pool, epoch=lambda: epoch)
    state = torch.get_rng_state()
    seen = []
    for epoch in range(3):  # noqa: B007  the loaders read it
        found = list(with_workers)
        assert [batch.epoch for batch in found] == [epoch] * 2
        assert all(same(a, b) for a, b in zip(found, alone, strict=True))
        seen.append(found)
    assert not same(seen[0][0], seen[1][0])
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is nobody's business here


def test_a_broken_photograph_is_replaced_the_same_way_each_time():
    pool = photographs(8, broken=(3, 5))
    tried = loader(pool)
    with pytest.warns(UserWarning, match="photo[35] cannot be decoded; other images stand in for it"):
        batches = list(tried)
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert len(rows) == 8 and not {3, 5} & set(rows)
    assert tried.broken == {"photo3", "photo5"} and {name for b in batches for name in b.broken} == tried.broken
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [b.rows.tolist() for b in tried] == [b.rows.tolist() for b in batches]  # warned once, same again
    with pytest.warns(UserWarning):
        assert all(same(a, b) for a, b in zip(loader(pool, num_workers=2), batches, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_photograph_leaves_the_other_images_of_its_batch_alone(num_workers):
    whole = list(loader(photographs(12)))
    with pytest.warns(UserWarning):
        found = list(loader(photographs(12, broken=(3,)), num_workers=num_workers))
    for a, b in zip(whole, found, strict=True):
        same_rows = a.rows == b.rows
        assert len(b.rows) == 4 and int(same_rows.sum()) == 4 - int(3 in a.rows)
        assert all(torch.equal(x[same_rows], y[same_rows]) for x, y in zip(a.images, b.images, strict=True))


def test_a_broken_photograph_is_told_of_once_and_why():
    pool, told = photographs(8, broken=(3, 5)), []
    tried = PhotographLoader(
        pool, Order(8, 4, 7), CropInWorker(VIEWS), 0, False, ["photo5"], lambda *found: told.append(found)
    )
    with pytest.warns(UserWarning, match="photo3 cannot be decoded") as warned:
        for _ in range(2):
            list(tried)
    assert told == [("photo3", "image file is truncated")] and len(warned) == 1  # photo5 was known
    assert tried.broken == {"photo3", "photo5"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_strict_stops_at_a_photograph_broken_later(num_workers):
    with pytest.raises(UserError, match="^broken image photo3: remove it[^\n]*$"):
        list(loader(photographs(8, broken=(3,)), num_workers=num_workers, strict=True))


def test_nothing_but_broken_photographs():
    with pytest.warns(UserWarning), pytest.raises(UserError, match="images drawn in a row are broken"):
        list(loader(photographs(8, broken=tuple(range(8)))))


# Evaluations


def oracle(image: Image.Image, size: int) -> torch.Tensor:
    """torchvision's resize and centre crop of a PIL image, (3, s, s) uint8."""
    short = int(size / 0.875) if size <= 224 else size
    resize = v2.Resize(short, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return tv.pil_to_tensor(v2.CenterCrop(size)(resize(image)))


@pytest.mark.parametrize(("size", "short"), [(224, 256), (32, 36), (96, 109), (225, 225), (384, 384)])
def test_short_side_by_hand(size, short):
    assert short_side(size) == short


@pytest.mark.parametrize("size", [32, 96, 224, 256])
@pytest.mark.parametrize("shape", [(120, 100), (101, 300), (64, 64), (333, 500)])
def test_photographs_are_seen_as_torchvision_shows_them(shape, size):
    image = picture(3, *shape)
    pool = EncodedPool(labels=None, ids=["a"], encoded=[encoded(image)])
    ((found, _),) = evaluation_batches(TrainSplit(pool, np.array([0])), size, 4, num_workers=0)
    assert torch.equal(found[0], oracle(image, size) / 255)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (30, 41), (96, 96)])
@pytest.mark.parametrize("size", [24, 32, 64])
def test_resident_images_are_seen_as_torchvision_shows_them(height, width, size):
    smooth = torch.stack([tv.pil_to_tensor(picture(row, width, height)) for row in range(3)]) // 2 + 64
    pool = replace(resident(3), images=smooth)
    ((found, _),) = evaluation_batches(TestSplit(pool, np.arange(3)), size, 4)
    for row in range(3):
        difference = 255 * found[row] - oracle(pool.image(row), size)
        assert difference.abs().max() < 1.5  # PIL rounds after each of the two directions


def test_native_size_is_left_alone():
    pool = resident(5, 32, 32)
    ((images, rows),) = evaluation_batches(TestSplit(pool, np.arange(5)), 32, 8)
    assert torch.equal(images, pool.images.float() / 255) and rows.tolist() == [0, 1, 2, 3, 4]
    photograph = EncodedPool(labels=None, ids=["a"], encoded=[encoded(picture(1, 64, 64))])
    ((images, _),) = evaluation_batches(TestSplit(photograph, np.arange(1)), 64, 8, num_workers=0)
    assert torch.equal(images[0], tv.pil_to_tensor(picture(1, 64, 64)).float() / 255)


@pytest.mark.parametrize("pool", [resident(23), photographs(23)], ids=["resident", "photographs"])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_each_row_comes_once_and_in_order(pool, batch_size):
    rows = np.random.default_rng(0).permutation(23)[:17]
    batches = list(evaluation_batches(TrainSplit(pool, rows), 16, batch_size))
    assert torch.cat([found for _, found in batches]).tolist() == rows.tolist()
    assert [len(images) for images, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1 for images, _ in batches)
    whole, _ = next(iter(evaluation_batches(TrainSplit(pool, np.arange(23)), 16, 23)))
    assert torch.equal(torch.cat([images for images, _ in batches]), whole[torch.as_tensor(rows)])


def test_an_empty_split_has_no_batches():
    for pool in (resident(3), photographs(3)):
        assert list(evaluation_batches(TrainSplit(pool, np.array([], dtype=np.int64)), 16, 4)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_cannot_be_evaluated(num_workers):
    split = TestSplit(photographs(6, broken=(4,)), np.arange(6))
    with pytest.raises(UnreadableImage, match="^broken image photo4: evaluations need every image[^\n]*$") as caught:
        list(evaluation_batches(split, 16, 2, num_workers))
    assert (caught.value.name, caught.value.why) == ("photo4", "image file is truncated")
    assert len(list(evaluation_batches(split.without(["photo4"]), 16, 2, num_workers))) == 3


@pytest.mark.parametrize("shape", [(2000, 2), (3, 4000), (300, 17)])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.integration
def test_a_strip_is_seen_as_if_enlarged_whole(shape, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), dtype=np.uint8))
    pool = EncodedPool(labels=None, ids=["a"], encoded=[encoded(image)])
    ((found, _),) = evaluation_batches(TrainSplit(pool, np.array([0])), size, 4, num_workers=0)
    assert (255 * found[0] - oracle(image, size)).abs().max() <= 1


def test_a_long_strip_takes_no_memory(monkeypatch):
    """20,000 x 2 pixels: enlarged whole they would be 2,560,000 x 256."""
    largest = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: largest.append(size) or resize(self, size, *a, **k)
    )
    assert see_image(Image.new("RGB", (20_000, 2)), 224).shape == (3, 224, 224) and largest == [(224, 224)]


def test_resident_strips_are_seen_one_by_one():
    pool = resident(3, 2, 90)
    ((found, _),) = evaluation_batches(TestSplit(pool, np.arange(3)), 32, 4)
    for row in range(3):
        assert (255 * found[row] - oracle(pool.image(row), 32)).abs().max() <= 1


def test_jpeg_photographs_survive_the_trip_through_workers():
    file = io.BytesIO()
    picture(0, 300, 200).save(file, "JPEG")
    pool = EncodedPool(labels=None, ids=["a", "b"], encoded=[file.getvalue()] * 2)
    ((images, _),) = evaluation_batches(TestSplit(pool, np.arange(2)), 64, 2, num_workers=2)
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], oracle(pool.image(0), 64) / 255)
