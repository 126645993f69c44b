"""Images in folders, in the layouts that `files.layout` tells apart."""

import numpy as np

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.digests import digests_of, read_whole
from ssl_bench.data.files.layout import Layout, Part, read_layout
from ssl_bench.data.files.listing import written_name
from ssl_bench.data.in_memory import usable
from ssl_bench.data.packed import Paths
from ssl_bench.data.pool import EncodedPool, Pool, Source
from ssl_bench.data.splits import FIFTH, split_off_test


def load(options: DataOptions) -> Source:
    """The images under `root`.

    Raises:
        UserError: There is no such folder, it is empty, or its layout is none of the three; or, with `strict`, an
            image cannot be used.
    """
    layout = read_layout(options)
    if options.strict:
        layout.refuse_lost_images()
    parts = [layout.train, *([layout.test] if layout.test else [])]
    train, *tests = usable(_pools(layout, parts), options)
    classes = None if layout.classes is None else tuple(map(written_name, layout.classes))
    left_out, remedy = layout.left_out, ""
    if classes is None:
        remedy = "sort the images into train/ and test/, each with a folder per class"
        return Source(train=train, test=None, classes=None, remedy=remedy, left_out=left_out)
    if tests:
        return Source(train=train, test=tests[0], classes=classes, test_is=layout.test_is, left_out=left_out)
    if layout.has_train:
        remedy = f"add {layout.root / 'test'} (or val) with the same class folders"
        return Source(train=train, test=None, classes=classes, remedy=remedy, left_out=left_out)
    return _with_a_fifth(train, classes, left_out)


def _with_a_fifth(pool: Pool, classes: tuple[str, ...], left_out: dict[str, str]) -> Source:
    """Class folders alone: some of their images become test images, if each class has enough."""
    assert pool.labels is not None
    counts = np.bincount(pool.labels, minlength=len(classes))
    if counts.min() < 2:
        few = classes[int(counts.argmin())]
        remedy = f"class {few!r} has fewer than two images; sort the images into train/ and test/ with the same classes"
        return Source(train=pool, test=None, classes=classes, remedy=remedy, left_out=left_out)
    train, test = split_off_test(pool)
    return Source(train=train, test=test, classes=classes, test_is=FIFTH, left_out=left_out)


def _pools(layout: Layout, parts: list[Part]) -> list[EncodedPool]:
    digests = iter(digests_of(layout.root, layout.files))
    whole = read_whole(layout.files)
    return [
        EncodedPool(
            labels=None if part.labels is None else np.array(part.labels, dtype=np.int64),
            ids=[written_name(file.name) for file in part.files],
            encoded=Paths.of(file.path for file in part.files),
            digests=[next(digests) for _ in part.files],
            whole=whole,
        )
        for part in parts
    ]
