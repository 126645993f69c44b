"""Labels that a method may learn from: balanced, of the train split alone, and the right ones in every batch."""

import numpy as np
import pytest
import torch
from pictures import picture

from ssl_bench.augment.views import View
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.loaders import RawBatch
from ssl_bench.data.module import DataModule
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TrainSplit, balanced
from ssl_bench.errors import UserError


def digits(**options):
    return load_dataset(DataOptions(name="digits", **options))


def names(data: Dataset) -> set[str]:
    return set(data.pretrain.ids)


def test_all_labels_are_those_of_the_train_split():
    data = digits()
    shown = data.labelled().pretrain
    assert shown.ids == data.train.ids and (shown.labels == data.train.labels).all()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_a_fraction_is_balanced_and_of_the_train_split_alone(fraction: float):
    data = digits(label_fraction=fraction)
    shown = data.labelled().pretrain
    counts = np.bincount(shown.labels, minlength=10)
    assert set(counts) == {round(fraction * 1287 / 10)}  # of all official training images
    assert names(data.labelled()) <= set(data.train.ids)
    assert not names(data.labelled()) & (set(data.validation.ids) | set(data.test.ids))
    truth = dict(zip(data.train.ids, data.train.labels, strict=True))
    assert [truth[name] for name in shown.ids] == shown.labels.tolist()


def test_evaluations_see_the_same_splits_whatever_the_fraction():
    whole, part = digits(), digits(label_fraction=0.01)
    for split in ("train", "validation", "test"):
        assert (getattr(whole, split).rows == getattr(part, split).rows).all()
    assert whole.fingerprint == part.fingerprint and len(part.pretrain) == len(whole.pretrain)


def test_the_drawing_follows_split_seed_and_more_include_the_fewer():
    few, same = (names(digits(label_fraction=0.02).labelled()) for _ in range(2))
    assert few == same <= names(digits(label_fraction=0.1).labelled())
    assert few != names(digits(label_fraction=0.02, split_seed=1).labelled())


def test_a_rare_class_gives_all_it_has():
    labels = np.array([0] * 7 + [1] * 2 + [2] * 5)
    pool = ResidentPool(labels=labels, ids=[str(i) for i in range(14)], images=torch.zeros(14, 3, 2, 2).byte())
    rows = balanced(TrainSplit(pool, np.arange(14)), 3, seed=0)
    assert np.bincount(labels[rows]).tolist() == [3, 2, 3] and (np.diff(rows) > 0).all()


def test_at_least_one_image_of_each_class():
    assert np.bincount(digits(label_fraction=1e-6).labelled().pretrain.labels).tolist() == [1] * 10
    assert len(digits(label_fraction=1.0).labelled().pretrain) == len(digits().train)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_what_is_no_fraction(fraction: float):
    with pytest.raises(UserError, match="--data.label_fraction is"):
        digits(label_fraction=fraction)


def test_all_images_with_the_labels_that_may_be_seen():
    data = digits(label_fraction=0.1)
    every = data.labelled(unlabelled_too=True).pretrain
    assert every.ids == data.pretrain.ids
    shown = dict(zip(every.ids, every.labels, strict=True))
    seen = {name for name, label in shown.items() if label >= 0}
    assert seen == names(data.labelled()) and set(shown.values()) == {-1, *range(10)}
    assert all(shown[name] == data.pretrain.labels[row] for row, name in enumerate(every.ids) if name in seen)
    assert not seen & (set(data.validation.ids) | set(data.test.ids))


VIEWS = [View(8)]


def test_batches_carry_the_labels_of_their_images():
    data = digits(label_fraction=0.1).labelled()
    rows = torch.tensor([5, 0, 77])
    raw = RawBatch(data.pretrain.images[rows], rows, 0, 0)
    batch = DataModule(data, data.options, VIEWS, 0, labels=True).on_after_batch_transfer(raw, 0)
    assert batch.labels.tolist() == data.pretrain.labels[rows.numpy()].tolist()
    assert batch.labels.dtype == torch.int64
    assert DataModule(data, data.options, VIEWS, 0).on_after_batch_transfer(raw, 0).labels is None


def test_labels_of_photographs(tmp_path):
    for part, count in (("train", 12), ("val", 4)):
        for row in range(count):
            folder = tmp_path / part / "ab"[row % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(row, 40, 40).save(folder / f"{row}.png")
    data = load_dataset(DataOptions(name="folder", root=str(tmp_path), label_fraction=0.5)).labelled()
    assert np.bincount(data.pretrain.labels).tolist() == [3, 3]
    rows = torch.tensor([1, 4])
    raw = RawBatch([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], rows, 0, 0)
    batch = DataModule(data, data.options, VIEWS, 0, labels=True).on_after_batch_transfer(raw, 0)
    folders = [data.pretrain.ids[row].split("/")[-2] for row in rows.tolist()]
    assert [data.classes[label] for label in batch.labels.tolist()] == folders
