"""What every opened data set has: splits, validation, statistics, fingerprint; and pools' digests."""

import hashlib
import importlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import encoded, picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.data.dataset import load_dataset, measured
from ssl_bench.data.pool import EncodedPool, Pool, ResidentPool
from ssl_bench.data.splits import split_off_test, stratified_validation
from ssl_bench.errors import UserError


def digits(**options):
    return load_dataset(DataOptions(name="digits", **options))


def resident(count: int = 6, labels: bool = True) -> ResidentPool:
    images = torch.randint(0, 256, (count, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes = np.arange(count) % 3 if labels else None
    return ResidentPool(labels=classes, ids=[f"i{row}" for row in range(count)], images=images)


def files(count: int = 6) -> EncodedPool:
    contents = [encoded(picture(index)) for index in range(count)]
    return EncodedPool(labels=np.arange(count) % 3, ids=[f"i{row}" for row in range(count)], encoded=contents)


@pytest.mark.integration
def test_catalogue_needs_no_torch_and_its_loaders_exist():
    code = "import sys, ssl_bench.data.catalogue; sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for entry in CATALOGUE.values():
        module, _, function = entry.loader.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", ["digits", "digits-canvas", "textures", "textures-easy", "textures-hard"])
@pytest.mark.integration
def test_the_catalogue_counts_the_images_that_come_with_the_package(name):
    assert CATALOGUE[name].images == len(load_dataset(DataOptions(name=name)).pretrain)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="no data set 'cifra10'; did you mean 'cifar10'"):
        load_dataset(DataOptions(name="cifra10"))


def test_bad_selection_fraction():
    with pytest.raises(UserError, match="--data.val_fraction is 1.5"):
        digits(val_fraction=1.5)


def test_train_and_selection_make_up_the_official_training_images():
    data = digits()
    both = np.sort(np.concatenate([data.train.rows, data.validation.rows]))
    assert (both == np.arange(1287)).all() and data.train.pool is data.validation.pool is data.pretrain
    counts = np.bincount(data.pretrain.labels)
    assert np.bincount(data.validation.labels).tolist() == [round(0.1 * count) for count in counts]
    assert data.test.rows.tolist() == list(range(510)) and not set(data.test.ids) & set(data.pretrain.ids)


def test_selection_follows_its_own_seed_only():
    rows = digits().validation.rows
    assert (digits().validation.rows == rows).all()
    assert (digits(split_seed=1).validation.rows != rows).any()
    assert len(digits(val_fraction=0.0).validation) == 0
    assert len(digits(val_fraction=0.5).validation) == pytest.approx(1287 / 2, abs=10)


def test_stratified_part_by_hand():
    labels = np.array([0] * 30 + [1] * 4 + [2] * 2 + [3])
    chosen = stratified_validation(labels, 0.1, seed=0)
    assert [int(chosen[labels == label].sum()) for label in range(4)] == [3, 1, 1, 0]


def test_carve_keeps_every_image_once():
    train, test = split_off_test(resident(30))
    assert sorted(train.ids + test.ids) == sorted(resident(30).ids) and np.bincount(test.labels).tolist() == [2, 2, 2]


def test_statistics_are_those_of_the_pixels():
    pool = resident(60)
    pixels = pool.images.double() / 255
    mean, std = measured(pool)
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    some = pixels[::2]  # every other image, when at most 30 of 60 are to be looked at
    assert measured(pool, most=30)[0] == pytest.approx(some.mean((0, 2, 3)).tolist(), abs=1e-4)


def test_statistics_of_one_colour_stay_usable():
    assert measured(replace(resident(), images=torch.full((6, 3, 2, 2), 51, dtype=torch.uint8))) == (
        (0.2, 0.2, 0.2),
        (1 / 255,) * 3,
    )


def test_image_size_is_native_or_as_asked():
    assert digits().image_size == 8 and digits(image_size=32).image_size == 32


def test_fingerprint_is_plain_complete_and_repeatable():
    data = digits()
    assert json.loads(json.dumps(data.fingerprint)) == data.fingerprint == digits().fingerprint
    parts = {"pretrain": data.pretrain, "train": data.train, "validation": data.validation, "test": data.test}
    assert data.fingerprint["images"] == {name: len(part) for name, part in parts.items()}
    assert data.fingerprint["skipped"] == {"count": 0, "names": []} and len(data.fingerprint["sha256"]) == 64
    assert data.fingerprint["sha256_covers"] == "content and labels" and data.fingerprint["test_is"] == "official"


@pytest.mark.parametrize("make", [resident, files])
def test_digest_sees_content_labels_and_order(make):
    pool: Pool = make()
    assert pool.digest() == make().digest()
    swapped = np.array([1, 0, 2, 3, 4, 5])
    others = [
        pool.take(swapped),
        pool.take(swapped[:5]),
        replace(pool, labels=None),
        replace(pool, labels=pool.labels[::-1]),
        replace(pool, labels=np.zeros(6, dtype=np.int64)),
    ]
    assert len({pool.digest(), *(other.digest() for other in others)}) == 6


def test_digest_of_resident_images_by_hand():
    pool = resident()
    content = str((6, 3, 5, 4)).encode() + pool.images.numpy().tobytes()
    assert pool.digest() == hashlib.sha256(content + np.arange(6, dtype="<i8").__mod__(3).tobytes()).hexdigest()


def test_digest_of_files_follows_their_content(tmp_path):
    def pool() -> EncodedPool:
        return EncodedPool(labels=None, ids=["a"], encoded=[str(tmp_path / "a.png")])

    picture(0).save(tmp_path / "a.png")
    first = pool().digest()
    assert pool().digest() == first and pool().digest_covers == "content and labels"
    picture(1).save(tmp_path / "a.png")
    assert pool().digest() != first


def test_digest_of_known_hashes_is_that_of_the_content():
    whole = files()
    known = replace(whole, digests=whole.content)
    assert known.digest() == whole.digest() and whole.digest_covers == "content and labels"
    assert replace(whole, ids=[f"j{row}" for row in range(6)]).digest() == whole.digest()
    assert replace(known, whole=False).digest_covers == "sizes, samples of the content and labels"
    assert replace(whole, ranges={"16-bit": (0, 4095)}).digest() != whole.digest()


def test_resident_image_is_its_pixels():
    pool = resident()
    assert (np.asarray(pool.image(2)) == pool.images[2].permute(1, 2, 0).numpy()).all()
