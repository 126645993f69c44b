"""Splits of any labels: disjoint, complete, stratified, fixed by their seed."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, balanced, split_off_test, stratified_validation

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array)
FRACTIONS = st.one_of(st.just(0.0), st.floats(0.001, 0.999))
SEEDS = st.integers(0, 2**32 - 1)


def pool_of(labels: np.ndarray) -> ResidentPool:
    """Images whose pixels and names say which they are."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return ResidentPool(images=images, labels=labels, ids=[f"image {i}" for i in range(len(labels))])


@given(LABELS, FRACTIONS, SEEDS)
def test_what_is_set_aside_is_the_fraction_of_each_class(labels: np.ndarray, fraction: float, seed: int) -> None:
    aside = stratified_validation(labels, fraction, seed)
    assert aside.shape == labels.shape and aside.dtype == bool
    for label in np.unique(labels):
        count, own = int(aside[labels == label].sum()), int((labels == label).sum())
        assert count < own, "a class is left without an image to learn from"
        if fraction == 0 or own == 1:
            assert count == 0
        else:
            assert count >= 1 and (abs(count - fraction * own) <= 0.5 or count in (1, own - 1))
    assert np.array_equal(aside, stratified_validation(labels, fraction, seed))


@given(LABELS, SEEDS)
def test_what_is_set_aside_of_a_class_does_not_depend_on_the_names_of_classes(labels: np.ndarray, seed: int) -> None:
    assert np.array_equal(stratified_validation(labels, 0.3, seed), stratified_validation(labels + 7, 0.3, seed))


def test_another_seed_sets_other_images_aside() -> None:
    labels = np.arange(400) % 4
    parts = [stratified_validation(labels, 0.25, seed) for seed in range(3)]
    assert not np.array_equal(parts[0], parts[1]) and not np.array_equal(parts[1], parts[2])


@given(LABELS)
def test_every_image_is_in_train_or_test_once_with_its_label(labels: np.ndarray) -> None:
    train, test = split_off_test(pool_of(labels))
    assert sorted(train.ids + test.ids) == sorted(f"image {i}" for i in range(len(labels)))
    for part in (train, test):
        for row, name in enumerate(part.ids):
            original = int(name.removeprefix("image "))
            assert part.labels[row] == labels[original] and part.images[row, 0, 0, 0] == original


def test_the_test_part_of_a_set_without_one_is_the_same_for_ever() -> None:
    """Literal rows: another seed or another order of drawing would change every number measured on such sets."""
    _, test = split_off_test(pool_of(np.arange(20) % 2))
    assert test.ids == ["image 5", "image 8", "image 12", "image 19"]


@given(LABELS, st.integers(1, 8), SEEDS)
def test_so_many_of_each_class_and_more_include_the_fewer(labels: np.ndarray, each: int, seed: int) -> None:
    split = TrainSplit(pool_of(labels), np.arange(len(labels), dtype=np.int64))
    rows = balanced(split, each, seed)
    assert len(set(rows.tolist())) == len(rows) and list(rows) == sorted(rows)
    for label in np.unique(labels):
        assert (labels[rows] == label).sum() == min(each, (labels == label).sum())
    assert set(rows) <= set(balanced(split, each + 1, seed))


@given(LABELS, st.data())
def test_a_split_without_some_images_keeps_the_others_in_order(labels: np.ndarray, data: st.DataObject) -> None:
    split = TestSplit(pool_of(labels), np.arange(len(labels), dtype=np.int64)[::-1].copy())
    gone = set(data.draw(st.lists(st.sampled_from(split.ids))))
    left = split.without(gone)
    assert left.ids == [name for name in split.ids if name not in gone]
    assert left.labels.tolist() == [labels[int(name.removeprefix("image "))] for name in left.ids]


def test_what_predicts_cannot_see_the_labels_of_test_images() -> None:
    images = TestSplit(pool_of(np.arange(4)), np.arange(4)).unlabelled()
    with pytest.raises(AttributeError, match="test images have no labels here"):
        images.labels  # noqa: B018
    assert images.pool.labels is None
