"""Rows of images and labels, as tables and tars hold them, become the train and test images of a set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_bench.config.options import DataOptions
from ssl_bench.data.in_memory import usable
from ssl_bench.data.packed import Packed
from ssl_bench.data.pool import EncodedPool, Source
from ssl_bench.data.sources.table_labels import Labels, Value, classes_of, numbered
from ssl_bench.data.splits import FIFTH, split_off_test


@dataclass(frozen=True)
class Rows:
    """A split's images and labels.

    Args:
        ids: N names.
        encoded: N contents of image files, or their paths.
        digests: N hashes of these.
        whole: Whether the files were read whole for them.
        labels: As the files have them; None where they have none.
        left_out: What is no image: name -> why.
    """

    ids: list[str]
    encoded: Packed[bytes] | Packed[str]
    digests: list[str]
    whole: bool
    labels: Labels | None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether the labels are there, and not withheld."""
        return self.labels is not None and self.labels.values is not None


def source_of(options: DataOptions, splits: Mapping[str, Rows], noun: str, remedy: str) -> Source:
    """Train and test images of the rows.

    Args:
        options: Of the images.
        splits: train, and test or validation, which is the test where that has no labels.
        noun: Files or rows: what the test images are told by, for the record.
        remedy: What would give the images labels.
    """
    train, test, test_is = splits["train"], splits.get("test"), f"the test {noun}"
    if "validation" in splits and not (test and test.labelled):
        test, test_is = splits["validation"], f"the validation {noun}"
    left_out = {name: why for rows in splits.values() for name, why in rows.left_out.items()}
    if not train.labelled:
        (pool,) = usable([pool_of(train, ())], options)
        return Source(train=pool, test=None, classes=None, remedy=remedy, left_out=left_out)
    assert train.labels is not None
    codes = classes_of(train.labels)
    classes = tuple(map(str, codes))
    if test is not None and test.labelled:
        pool, tests = usable([pool_of(train, codes), pool_of(test, codes)], options)
        return Source(train=pool, test=tests, classes=classes, test_is=test_is, left_out=left_out)
    (pool,) = usable([pool_of(train, codes)], options)
    assert pool.labels is not None
    root = Path(options.root or "").expanduser()
    may_lack_shards = options.name == "parquet" and root.is_dir()
    if may_lack_shards or np.bincount(pool.labels).min() < 2:
        missing = f"add labelled test-*.parquet to {root}" if may_lack_shards else "give each class two images or more"
        return Source(train=pool, test=None, classes=classes, remedy=missing, left_out=left_out)
    first, second = split_off_test(pool)
    return Source(train=first, test=second, classes=classes, test_is=FIFTH, left_out=left_out)


def pool_of(rows: Rows, classes: tuple[Value, ...]) -> EncodedPool:
    """The rows' images; labels are positions among the classes, None without them."""
    labels = numbered(rows.labels, classes, rows.ids) if classes and rows.labels else None
    return EncodedPool(labels=labels, ids=rows.ids, encoded=rows.encoded, digests=rows.digests, whole=rows.whole)
