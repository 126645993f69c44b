"""Folders of images: the layouts, and what is wrong with a folder said in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import SHARED, encoded, picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.errors import UserError

SPLITS = ["train/cat", "train/dog", "test/cat", "test/dog"]
PHOTOGRAPHS = SHARED / "imagenet-sample"


def opened(root: Path, **options) -> Dataset:
    return load_dataset(DataOptions(name="folder", root=str(root), **options))


def refusal(root: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_train_and_test_folders(class_folders):
    data = opened(class_folders(SPLITS, count=10, width=200, height=150))
    assert data.title == "own pictures" and data.classes == ("cat", "dog") and data.image_size == 224
    assert isinstance(data.pretrain, EncodedPool) and data.mean == (0.485, 0.456, 0.406)
    assert (len(data.train), len(data.validation), len(data.test), len(data.pretrain)) == (18, 2, 20, 20)
    assert (
        data.test.ids[:2] == ["test/cat/000.png", "test/cat/001.png"]
        and data.test.labels.tolist() == [0] * 10 + [1] * 10
    )
    assert (np.asarray(data.test.pool.image(11)) == np.asarray(picture(301, 200, 150))).all()
    data.require_labels()


def test_val_is_the_test_when_there_is_no_test(class_folders):
    data = opened(class_folders(["train/a", "train/b", "val/a", "val/b"]))
    assert data.test.ids[0] == "val/a/000.png" and data.fingerprint["test_is"] == "the folder val"


def test_test_comes_before_val(class_folders):
    data = opened(class_folders(["train/a", "train/b", "val/a", "val/b", "test/a", "test/b"]))
    assert {name.split("/")[0] for name in data.test.ids} == {"test"}


def test_small_images_of_one_size_become_resident(class_folders):
    data = opened(class_folders(SPLITS, width=40, height=30))
    assert isinstance(data.pretrain, ResidentPool) and data.pretrain.images.shape == (8, 3, 30, 40)
    assert (np.asarray(data.pretrain.image(5)) == np.asarray(picture(101))).all()
    assert data.image_size == 30


def test_small_images_of_two_sizes_stay_encoded(class_folders):
    root = class_folders(SPLITS)
    picture(9, 41, 30).save(root / "train" / "dog" / "999.png")
    data = opened(root)
    assert isinstance(data.pretrain, EncodedPool) and isinstance(data.test.pool, ResidentPool)


def test_class_folders_alone_give_a_fifth_to_test(class_folders):
    root = class_folders(["a", "b", "c"], count=10)
    data = opened(root)
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert len(data.pretrain) == 24 and not set(data.test.ids) & set(data.pretrain.ids)
    assert data.fingerprint["test_is"] == "a fifth of each class of the training images, seed 0"
    assert opened(root, split_seed=5).test.ids == data.test.ids  # only validation follows that seed


def test_one_image_per_class_pretrains_but_is_not_evaluated(class_folders):
    data = opened(class_folders(["a", "b", "c"], count=1))
    assert len(data.pretrain) == 3 and data.test is None and len(data.validation) == 0
    with pytest.raises(
        UserError, match="no test images.*class 'a' has fewer than two images; sort .* into train/ and test/"
    ):
        data.require_labels()


def test_flat_folder_is_unlabelled(tmp_path):
    for index in range(5):
        picture(index, 120, 100).save(tmp_path / f"{index}.JPEG")
    data = opened(tmp_path)
    assert len(data.pretrain) == 5 and data.classes is None and data.pretrain.labels is None
    assert data.train is data.validation is data.test is None
    with pytest.raises(UserError, match="has no labels, which evaluations need"):
        data.require_labels()


def test_flat_train_folder_is_unlabelled(tmp_path):
    (tmp_path / "train").mkdir()
    picture(0).save(tmp_path / "train" / "a.png")
    assert opened(tmp_path).pretrain.ids == ["train/a.png"]


def test_train_without_test_pretrains_but_is_not_evaluated(class_folders):
    data = opened(class_folders(["train/a", "train/b"], count=10))
    assert len(data.validation) == 2 and data.test is None
    with pytest.raises(UserError, match=r"no test images.*add .*test \(or val\)"):
        data.require_labels()


def test_images_deep_in_class_folders_and_strange_files(class_folders):
    root = class_folders(["train/a", "train/b", "train/b/more", "test/a", "test/b"])
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / "a" / ".hidden.png").write_bytes(b"")
    (root / ".cache").mkdir()
    data = opened(root)
    assert len(data.pretrain) == 12 and "train/b/more/000.png" in data.pretrain.ids


def test_broken_files_are_skipped_named_and_counted(class_folders, capsys):
    root = class_folders(SPLITS, count=5, width=200, height=150, kind="jpg")
    (root / "train" / "cat" / "aaa.jpg").write_bytes(encoded(picture(0, 200, 150), "JPEG")[:1500])
    (root / "test" / "dog" / "zzz.png").write_bytes(b"no image")
    data = opened(root)
    reasons = {"image file is truncated": 1, "it is no image that can be recognised": 1}
    names = ["train/cat/aaa.jpg", "test/dog/zzz.png"]
    assert data.fingerprint["skipped"] == {"count": 2, "names": names, "reasons": reasons}
    said = "own pictures: 2 left out: train/cat/aaa.jpg, test/dog/zzz.png (1 x image file is truncated; 1 x it is no"
    assert said in capsys.readouterr().err
    assert len(data.pretrain) == 10 and len(data.test) == 10
    assert data.pretrain.labels.tolist() == [0] * 5 + [1] * 5


def test_broken_small_files_are_skipped_too(class_folders, capsys):
    root = class_folders(SPLITS, count=5)
    (root / "train" / "cat" / "000.png").write_bytes(encoded(picture(0))[:300])
    data = opened(root)
    assert "1 left out: train/cat/000.png (1 x the file is cut short)" in capsys.readouterr().err
    assert isinstance(data.pretrain, ResidentPool) and len(data.pretrain) == 9
    assert (np.asarray(data.pretrain.image(0)) == np.asarray(picture(1))).all()
    assert data.pretrain.labels.tolist() == [0] * 4 + [1] * 5


@pytest.mark.parametrize("size", [(40, 30), (200, 150)])
def test_strict_stops_at_a_broken_file(class_folders, size):
    root = class_folders(SPLITS, width=size[0], height=size[1])
    (root / "train" / "dog" / "002.png").write_bytes(encoded(picture(0, *size))[:-100])
    message = refusal(root, strict=True)
    assert message.startswith("broken image train/dog/002.png (") and "--data.strict" in message


def test_what_is_wrong_is_said_in_one_line(class_folders, tmp_path):
    assert "--data.root" in refusal(tmp_path / "absent")
    with pytest.raises(UserError, match="--data folder needs --data.root"):
        load_dataset(DataOptions(name="folder"))
    (tmp_path / "empty").mkdir()
    assert "no images in" in refusal(tmp_path / "empty")
    root = class_folders(SPLITS)
    picture(0).save(root / "train" / "loose.png")
    assert "holds images and folders" in refusal(root)


def test_no_train_folder(class_folders):
    assert "no train/ folder" in refusal(class_folders(["test/a", "test/b"]))


def test_empty_class_folder(class_folders):
    root = class_folders(SPLITS)
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "dog").mkdir()
    assert f"no images in {root / 'train' / 'dog'}" in refusal(root)


def test_one_class(class_folders):
    assert "one class only ('a')" in refusal(class_folders(["a"]))


def test_train_and_test_with_different_classes(class_folders):
    message = refusal(class_folders(["train/cat", "train/dog", "test/cat", "test/dgo"]))
    assert "differ in their class folders, such as 'dgo'" in message


def test_only_broken_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    assert "none of the 1 files is a readable image, beginning with a.png" in refusal(tmp_path)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the sample of 62 photographs is not here")
def test_photographs_grouped_into_coarse_classes(tmp_path):
    """One photograph per class cannot be evaluated; sorted by what they show into train and test, they can."""
    kinds = ("animals", "things", "scenes")
    files = sorted(PHOTOGRAPHS.glob("*/*"))
    assert len(files) == 62
    for number, file in enumerate(files):
        kind = kinds[0] if file.parent.name < "n02600000" else kinds[1] if file.parent.name < "n07000000" else kinds[2]
        place = tmp_path / "photographs" / ("test" if number % 3 == 0 else "train") / kind
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).symlink_to(file)
    data = opened(tmp_path / "photographs")
    data.require_labels()
    assert data.classes == tuple(sorted(kinds)) and len(data.pretrain) + len(data.test) == 62
    assert len(data.validation) >= 3 and data.image_size == 224
    alone = opened(PHOTOGRAPHS)
    assert len(alone.pretrain) == 62 and len(alone.classes) == 62
    with pytest.raises(UserError, match="fewer than two images"):
        alone.require_labels()
