"""Where TinyImageNet and ImageNet-100 keep their images, as they are unpacked. Torch-free.

- TinyImageNet: `train/CLASS/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`. Its test images have no
  labels, so those of `val` are the test images, as papers have it.
- ImageNet-100: 100 class folders in `train/` and `val/`; or in `train.X1/` to `train.X4/` and `val.X/`, as on Kaggle;
  or all of ImageNet with a file `imagenet100.txt` beside `train/` that names the classes, one a line. Papers use
  several choices of classes: a run is identified by those that are there.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.listing import is_system
from ssl_bench.errors import UserError

TINY_FOLDER, TINY_CLASSES = "tiny-imagenet-200", 200
LIST, CLASSES = "imagenet100.txt", 100

Labelled = list[tuple[str, str]]  # path of each image and the name of its class


def tiny_imagenet(options: DataOptions) -> tuple[Path, Labelled, Labelled]:
    """The folder, the training images and the test images.

    Raises:
        UserError: They are not there, or not all of their classes.
    """
    root = _root(options, "the unpacked tiny-imagenet-200.zip")
    root = root / TINY_FOLDER if (root / TINY_FOLDER).is_dir() else root
    annotations = root / "val" / "val_annotations.txt"
    try:
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
        tests = [(str(root / "val" / "images" / name), label) for name, label in rows]
    except (OSError, ValueError):
        raise UserError(f"no {annotations}, or a damaged one: --data.root is the unpacked {TINY_FOLDER}.zip") from None
    classes = _folders(root / "train")
    _all_there(root, classes, TINY_CLASSES)
    train = [(path, name) for name in classes for path in _files(root / "train" / name / "images")]
    return root, train, tests


def imagenet100(options: DataOptions) -> tuple[Path, Labelled, Labelled]:
    """The same of ImageNet-100.

    Raises:
        UserError: They are not there, or not 100 classes.
    """
    root = _root(options, "the folder of train/ and val/")
    classes = imagenet100_classes(root)
    parts: list[Labelled] = []
    for start in ("train", "val"):
        tops = _tops(root, start)
        found = [(path, name) for name in classes for top in tops for path in _files(top / name)]
        lacking = sorted(set(classes) - {name for _, name in found})
        if lacking:
            raise UserError(f"{root}: class {lacking[0]} has no images in {start}/ (and {len(lacking) - 1} more)")
        parts.append(found)
    train, tests = parts
    return root, train, tests


def imagenet100_classes(root: Path) -> list[str]:
    """The 100 classes, in their order.

    Raises:
        UserError: There are more or fewer.
    """
    listed = root / LIST
    if listed.is_file():
        classes = sorted(dict.fromkeys(line.split()[0] for line in listed.read_text().splitlines() if line.strip()))
    else:
        classes = sorted({name for top in _tops(root, "train") for name in _folders(top)})
    _all_there(root, classes, CLASSES, f", or a file {LIST} that names them among all of ImageNet's")
    return classes


def _root(options: DataOptions, what: str) -> Path:
    if options.root is None:
        raise UserError(f"--data {options.name} needs --data.root: {what}")
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root}: --data.root is {what}")
    return root


def _tops(root: Path, start: str) -> list[Path]:
    """`train`, or `train.X1` and the like."""
    found = [root / start] if (root / start).is_dir() else sorted(root.glob(f"{start}.X*"))
    if not found:
        raise UserError(f"{root} has no {start}/ (or {start}.X*): --data.root is the folder that holds it")
    return found


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_system(entry.name))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): --data.root is the folder above it") from None


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_file() and not is_system(entry.name))


def _all_there(root: Path, classes: Sequence[str], count: int, otherwise: str = "") -> None:
    if len(classes) != count:
        raise UserError(f"{root} has {len(classes)} classes, not {count}: unpack all of it{otherwise}")
