"""torchvision's data sets: read where they are, downloaded when asked.

torchvision's classes know archives, checksums and label files; decoding and everything after it is ours. What they hold
is reached in two ways: arrays of images, or lists of files.
"""

import contextlib
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_bench.config.options import DataOptions
from ssl_bench.data.catalogue import default_root
from ssl_bench.data.files.digests import digests_of, read_whole
from ssl_bench.data.files.listing import listed
from ssl_bench.data.in_memory import usable
from ssl_bench.data.packed import Paths
from ssl_bench.data.pool import EncodedPool, Pool, ResidentPool, Source
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError


@dataclass(frozen=True)
class Parts:
    """How a torchvision class names its parts.

    Args:
        cls: Name of the class in torchvision.datasets.
        train: Arguments for each part that belongs to the official training images.
        test: Arguments for the official test images; None when there are none.
    """

    cls: str
    train: tuple[dict[str, Any], ...]
    test: dict[str, Any] | None


SETS = {
    "cifar10": Parts("CIFAR10", ({"train": True},), {"train": False}),
    "cifar100": Parts("CIFAR100", ({"train": True},), {"train": False}),
    "stl10": Parts("STL10", ({"split": "train+unlabeled"},), {"split": "test"}),
    "svhn": Parts("SVHN", ({"split": "train"},), {"split": "test"}),
    "fashion_mnist": Parts("FashionMNIST", ({"train": True},), {"train": False}),
    "eurosat": Parts("EuroSAT", ({},), None),
    "flowers102": Parts("Flowers102", ({"split": "train"}, {"split": "val"}), {"split": "test"}),
    "food101": Parts("Food101", ({"split": "train"},), {"split": "test"}),
    "oxford_pets": Parts("OxfordIIITPet", ({"split": "trainval"},), {"split": "test"}),
    "dtd": Parts("DTD", ({"split": "train"}, {"split": "val"}), {"split": "test"}),
    "imagenette": Parts("Imagenette", ({"split": "train"},), {"split": "val"}),
}


def load(options: DataOptions) -> Source:
    """A torchvision set by our name for it.

    Raises:
        UserError: It is not there and may not be downloaded, or cannot be.
    """
    parts = SETS[options.name]
    root = Path(options.root).expanduser() if options.root else default_root()
    opened = [open_set(options, root, parts.cls, arguments) for arguments in parts.train]
    classes = _classes(opened[0])
    train = _pool(opened, root, "train", options)
    if parts.test is None:
        train, test = split_off_test(train)
        return Source(train=train, test=test, classes=classes, test_is=FIFTH)
    test = _pool([open_set(options, root, parts.cls, parts.test)], root, "test", options)
    assert train.labels is not None
    labelled = np.flatnonzero(train.labels >= 0)
    if len(labelled) == len(train):
        return Source(train=train, test=test, classes=classes)
    return Source(train=train.take(labelled), test=test, classes=classes, pretrain=train)


def open_set(options: DataOptions, root: Path, name: str, arguments: dict[str, Any]) -> Any:
    """An object of a class of torchvision.datasets, its files downloaded where that is asked for.

    Raises:
        UserError: They are not there and may not be downloaded, or cannot be.
    """

    # isort: split
    from torchvision import datasets

    opener: Callable[..., Any] = getattr(datasets, name)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        try:
            return opener(str(root), **arguments)
        except (RuntimeError, FileNotFoundError):
            if not options.download:
                raise UserError(
                    f"{options.name} is not in {root}: --data.download fetches it, --data.root says where else it is"
                ) from None
        try:
            root.mkdir(parents=True, exist_ok=True)
            return opener(str(root), **arguments, download=True)
        except (RuntimeError, OSError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{options.name} could not be downloaded to {root}: {why}") from None


def _pool(opened: list[Any], root: Path, part: str, options: DataOptions) -> Pool:
    if hasattr(opened[0], "data"):
        images = torch.cat([_images(dataset.data) for dataset in opened])
        labels = np.concatenate([_first(dataset, "targets", "labels") for dataset in opened]).astype(np.int64)
        return ResidentPool(labels=labels, ids=[f"{part}/{row:06d}" for row in range(len(images))], images=images)
    files: list[str] = []
    targets: list[int] = []
    for dataset in opened:
        if hasattr(dataset, "samples") or hasattr(dataset, "_samples"):
            pairs = _first(dataset, "samples", "_samples")
        else:
            pairs = zip(_first(dataset, "_image_files", "_images"), dataset._labels, strict=True)
        for file, label in pairs:
            files.append(str(file))
            targets.append(int(label))
    names = [Path(file).relative_to(root).as_posix() for file in files]
    known = listed(zip(names, files, strict=True))
    pool = EncodedPool(
        labels=np.array(targets, dtype=np.int64),
        ids=names,
        encoded=Paths.of(files),
        digests=digests_of(root, known, f"{options.name}/{part}"),
        whole=read_whole(known),
    )
    return usable([pool], options)[0]


def _first(dataset: Any, *names: str) -> Any:
    return next(getattr(dataset, name) for name in names if hasattr(dataset, name))


def _images(data: Any) -> Tensor:
    """(N, H, W, 3), (N, 3, H, W) or gray (N, H, W) to (N, 3, H, W) uint8."""
    images = torch.as_tensor(data)
    if images.ndim == 3:
        images = images[:, None].expand(-1, 3, -1, -1)
    elif images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous()


def _classes(dataset: Any) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or [str(digit) for digit in range(10)]  # SVHN has no names
    return tuple(name if isinstance(name, str) else name[0] for name in names)  # Imagenette has several for one
