"""TinyImageNet and ImageNet-100, in the layouts that `files.imagenet_subsets` knows."""

from pathlib import Path

import numpy as np

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files import imagenet_subsets as files
from ssl_bench.data.files.digests import digests_of, read_whole
from ssl_bench.data.files.listing import listed, written_name
from ssl_bench.data.in_memory import usable
from ssl_bench.data.packed import Paths
from ssl_bench.data.pool import EncodedPool, Source
from ssl_bench.errors import UserError


def tiny_imagenet(options: DataOptions) -> Source:
    """TinyImageNet; the images of `val` are the test images.

    Raises:
        UserError: It is not there, or not all of it.
    """
    return _source(options, *files.tiny_imagenet(options))


def imagenet100(options: DataOptions) -> Source:
    """ImageNet-100; the images of `val` are the test images.

    Raises:
        UserError: It is not there, or has other than 100 classes.
    """
    return _source(options, *files.imagenet100(options))


def _source(options: DataOptions, root: Path, train: files.Labelled, test: files.Labelled) -> Source:
    classes = sorted({name for _, name in train})
    number = {name: at for at, name in enumerate(classes)}
    pools = []
    for part, labelled in (("train", train), ("val", test)):
        known = listed((Path(path).relative_to(root).as_posix(), path) for path, _ in labelled)
        unknown = next((name for _, name in labelled if name not in number), None)
        if unknown is not None:
            raise UserError(f"{root}: class {unknown} of val/ is none of train/")
        pools.append(
            EncodedPool(
                labels=np.array([number[name] for _, name in labelled], dtype=np.int64),
                ids=[written_name(file.name) for file in known],
                encoded=Paths.of(file.path for file in known),
                digests=digests_of(root, known, f"{options.name}/{part}"),
                whole=read_whole(known),
            )
        )
    ready = usable(pools, options)
    return Source(train=ready[0], test=ready[1], classes=tuple(classes), test_is="val")
