"""Paths in one block of memory: the same sequence as a list of them."""

import os
import sys

import numpy as np
import pytest

from ssl_bench.data.packed import Paths

LISTS = [
    [],
    ["/a"],
    ["/photos/ünï/0.jpg", "", os.fsdecode(b"/caf\xe9.jpg"), "/日本.png", "/x"],
]


@pytest.mark.parametrize("paths", LISTS)
def test_packed_paths_are_the_paths(paths):
    packed = Paths.of(paths)
    assert list(packed) == paths and len(packed) == len(paths)
    assert list(packed[1:]) == paths[1:] and list(packed[::-1]) == paths[::-1]
    rows = np.random.default_rng(0).permutation(len(paths))
    assert list(packed.take(rows)) == [paths[row] for row in rows]
    assert list(packed.take(rows).take(rows[:1])) == [paths[rows[row]] for row in rows[:1]]
    with pytest.raises(IndexError):
        packed[len(paths)]


def test_they_take_a_few_objects_only():
    paths = [f"/photos/train/class{row % 100}/{row:06d}.jpg" for row in range(10_000)]
    packed = Paths.of(paths)
    assert packed.encoded.nbytes + packed.ends.nbytes + packed.rows.nbytes < sum(map(sys.getsizeof, paths)) * 0.7
