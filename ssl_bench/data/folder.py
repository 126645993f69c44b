"""Images in folders.

Three layouts are told apart by what is there:
- `train/`, with `test/` or else `val/` as test images, each holding a folder per class;
- a folder per class: a fixed fifth of each class becomes the test images, if each class has two or more;
- images without class folders, directly in the root or in `train/`: unlabelled, for pretraining only.
"""

import os
from pathlib import Path

import numpy as np

from ssl_bench.config.options import DataOptions
from ssl_bench.data.in_memory import resident_if_small
from ssl_bench.data.pool import EncodedPool, Pool, Source
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
TESTS = ("test", "val")


def load(options: DataOptions) -> Source:
    """The images under `root`.

    Raises:
        UserError: There is no such folder, it is empty, or its layout is none of the three.
    """
    if options.root is None:
        raise UserError("--data folder needs --data.root: the folder that holds the images")
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root}: --data.root says where the images are")
    train = root / "train"
    test = next((root / name for name in TESTS if (root / name).is_dir()), None)
    if not train.is_dir():
        if test is not None:
            raise UserError(f"{root} has {test.name}/ but no train/ folder: put the training images there")
        return _one_folder(root, options.strict)
    classes = _classes(train)
    if classes is None:
        return _unlabelled(root, train, options.strict)
    if test is None:
        remedy = f"add {root / 'test'} (or val) with the same class folders"
        return Source(train=_labelled(root, train, classes, options.strict), test=None, classes=classes, remedy=remedy)
    found = _classes(test)
    if found != classes:
        odd = sorted(set(found or ()) ^ set(classes))
        raise UserError(f"{train} and {test} differ in their class folders, such as {odd[0]!r}: make them the same")
    return Source(
        train=_labelled(root, train, classes, options.strict),
        test=_labelled(root, test, classes, options.strict),
        classes=classes,
        test_is=f"the folder {test.name}",
    )


def _one_folder(root: Path, strict: bool) -> Source:
    classes = _classes(root)
    if classes is None:
        return _unlabelled(root, root, strict)
    pool = _labelled(root, root, classes, strict)
    assert pool.labels is not None
    if np.bincount(pool.labels, minlength=len(classes)).min() < 2:
        few = classes[int(np.bincount(pool.labels, minlength=len(classes)).argmin())]
        remedy = f"class {few!r} has fewer than two images; sort the images into train/ and test/ with the same classes"
        return Source(train=pool, test=None, classes=classes, remedy=remedy)
    train, test = split_off_test(pool)
    return Source(train=train, test=test, classes=classes, test_is=FIFTH)


def _unlabelled(root: Path, folder: Path, strict: bool) -> Source:
    remedy = "sort the images into train/ and test/, each with a folder per class"
    return Source(train=_pool(root, _files(folder), None, strict), test=None, classes=None, remedy=remedy)


def _labelled(root: Path, folder: Path, classes: tuple[str, ...], strict: bool) -> Pool:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _files(folder / name)
        files += found
        labels += [label] * len(found)
    return _pool(root, files, np.array(labels, dtype=np.int64), strict)


def _pool(root: Path, files: list[str], labels: np.ndarray | None, strict: bool) -> Pool:
    ids = [file[len(str(root)) :].replace(os.sep, "/").lstrip("/") for file in files]
    return resident_if_small(EncodedPool(labels=labels, ids=ids, encoded=files), strict)


def _classes(folder: Path) -> tuple[str, ...] | None:
    """Names of the class folders, in order, or None when the images lie in `folder` itself."""
    names, loose = [], False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                names.append(entry.name)
            loose |= _is_image(entry.name)
    if names and loose:
        raise UserError(f"{folder} holds images and folders ({sorted(names)[0]!r}): class folders or images, not both")
    return tuple(sorted(names)) or None


def _files(folder: Path) -> list[str]:
    """Image files at any depth below a folder, in order of their names."""
    found: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in names if _is_image(name)]
    if not found:
        raise UserError(f"no images in {folder}: files ending in {', '.join(SUFFIXES[:5])} ... count as images")
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
