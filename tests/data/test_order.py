"""Orders of training images: each once an epoch, whatever the number of processes and wherever it was stopped."""

import warnings
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ssl_bench.data.order import Order
from ssl_bench.errors import UserError

SIZES = {"images": st.integers(1, 60), "batch_size": st.integers(1, 70), "seed": st.integers(0, 2**32 - 1)}


def order(**fields: object) -> Order:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of batches that are larger than the set
        return Order(**fields)  # type: ignore[arg-type]


def seen(one: Order) -> list[list[int]]:
    return [rows.tolist() for _, _, rows in one]


@given(**SIZES, world=st.integers(1, 5), epoch=st.integers(0, 20))
def test_each_image_comes_at_most_once_over_all_processes(images, batch_size, seed, world, epoch) -> None:
    if images < world:
        with pytest.raises(UserError, match="too few"):
            order(images=images, batch_size=batch_size, seed=seed, world_size=world)
        return
    ranks = [
        order(images=images, batch_size=batch_size, seed=seed, rank=r, world_size=world, epoch=lambda: epoch)
        for r in range(world)
    ]
    batches = [seen(rank) for rank in ranks]
    size = min(batch_size, images // world)
    assert {len(own) for own in batches} == {len(ranks[0])} == {images // (size * world)}
    assert all(len(rows) == size for own in batches for rows in own)
    times = Counter(row for own in batches for rows in own for row in rows)
    assert set(times.values()) == {1} and set(times) <= set(range(images))
    assert images - len(times) < size * world, "a whole joint batch is left out"


@given(**SIZES, world=st.integers(2, 4))
def test_processes_share_the_joint_batches_of_a_single_one(images, batch_size, seed, world) -> None:
    if images < world * batch_size:
        return
    alone = seen(order(images=images, batch_size=batch_size * world, seed=seed))
    shared = [
        seen(order(images=images, batch_size=batch_size, seed=seed, rank=r, world_size=world)) for r in range(world)
    ]
    assert alone == [[row for rank in parts for row in rank] for parts in zip(*shared, strict=True)]


@given(**SIZES, first=st.integers(0, 80), epoch=st.integers(0, 5))
def test_an_interrupted_epoch_goes_on_with_the_batches_that_are_left(images, batch_size, seed, first, epoch) -> None:
    fields = {"images": images, "batch_size": batch_size, "seed": seed, "epoch": lambda: epoch}
    whole = [(e, b, rows.tolist()) for e, b, rows in order(**fields)]
    rest = [(e, b, rows.tolist()) for e, b, rows in order(**fields, first_batch=lambda: first)]
    assert rest == whole[first:]
    assert [(e, b) for e, b, _ in whole] == [(epoch, b) for b in range(len(whole))]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [seen(order(images=100, batch_size=10, seed=s, epoch=lambda e=e: e)) for s in (0, 1) for e in (0, 1)]
    assert len({str(rows) for rows in orders}) == 4
