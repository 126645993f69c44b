"""Arrays of images and labels in NumPy's files or a Zarr store, told by their names.

Torch-free; NumPy is loaded when an array is opened, since every command looks up the files of a run.

`images` and `labels`, or `x_train`, `y_train`, `x_test`, `y_test`, or `train_images`, `train_labels`, ...
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.shards import SPLITS
from ssl_bench.errors import UserError, near

if TYPE_CHECKING:
    import numpy as np

LABELS = {"y", "label", "labels", "target", "targets", "class", "classes", "cls"}
IMAGES = {"x", "image", "images", "img", "imgs", "data", "pixels"}
NONE = "none"  # as --data.label_column: there are no labels
MOST_CHANNELS = 512


@dataclass(frozen=True)
class Stored:
    """An array that is not read yet.

    Args:
        name: Its own.
        place: For messages: the file, and its name in there.
        shape: Its shape.
        read: Reads it.
    """

    name: str
    place: str
    shape: tuple[int, ...]
    read: "Callable[[], np.ndarray]"


@dataclass
class Split:
    """The arrays of a split.

    Args:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W).
        labels: Name -> array; at most one of them is used.
    """

    images: Stored
    labels: dict[str, Stored] = field(default_factory=dict)


def array_files(options: DataOptions) -> tuple[Path, list[Path]]:
    """The folder that names begin at, and all files of the arrays.

    Raises:
        UserError: There are none.
    """
    if options.root is None:
        raise UserError("--data array needs --data.root: a .npy, .npz or .zarr, or the folder of such")
    root = Path(options.root).expanduser()
    if root.is_file():
        return root.parent, [root]
    if is_zarr(root):
        return root, sorted(path for path in root.rglob("*") if path.is_file())
    files = sorted(path for path in root.glob("*") if path.suffix.lower() in (".npy", ".npz"))
    if not files:
        raise UserError(f"no .npy, .npz or Zarr store at {root}: --data.root says where the arrays are")
    return root, files


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))


def find_arrays(options: DataOptions) -> dict[str, Split]:
    """Split -> its arrays.

    Raises:
        UserError: There are none, or none of images; a file is damaged.
    """
    base, files = array_files(options)
    stored: list[tuple[str, Stored]] = []
    if is_zarr(base) and base == Path(options.root or "").expanduser():
        stored = [(each.name, each) for each in _of_zarr(base)]
    for file in files if not stored else ():
        stored += [(f"{file.stem}/{each.name}", each) for each in _of_file(file)]
    images: dict[str, list[Stored]] = {}
    labels: dict[str, dict[str, Stored]] = {}
    for full, each in stored:
        words = re.split(r"[-_./\s]+", full.lower())
        split = next((s for s, names in SPLITS.items() if set(names) & set(words)), "train")
        if set(words) & LABELS or (len(each.shape) < 3 and not set(words) & IMAGES):
            labels.setdefault(split, {})[each.name] = each
        elif len(each.shape) in (3, 4):
            images.setdefault(split, []).append(each)
    for split, several in images.items():
        if len(several) > 1:
            names = ", ".join(each.place for each in several)
            raise UserError(f"several arrays may be the images of {split} ({names}): keep one, or name it `images`")
    if "train" not in images:
        there = ", ".join(f"{each.name} {each.shape}" for _, each in stored[:8]) or "nothing"
        raise UserError(f"no array of images, (N, H, W), (N, H, W, C) or (N, C, H, W), at {options.root}: {there}")
    return {split: Split(each[0], labels.get(split, {})) for split, each in images.items()}


def chosen_labels(split: Split, asked: str | None) -> Stored | None:
    """The labels of a split; None without.

    Args:
        split: Its arrays.
        asked: `--data.label_column`: a name as the training images' array of labels has it.

    Raises:
        UserError: There are several, or not the one asked for.
    """
    if asked == NONE or (asked is None and not split.labels):
        return None
    if asked is not None:
        found = split.labels.get(asked) or next((s for n, s in split.labels.items() if _core(n) == _core(asked)), None)
        if found is None:
            raise UserError(f"--data.label_column: no array {asked!r}{near(asked, split.labels)}")
        return found
    if len(split.labels) > 1:
        names = ", ".join(split.labels)
        raise UserError(f"several arrays may be the labels ({names}): --data.label_column names one, or says none")
    return next(iter(split.labels.values()))


def channel_axis(shape: tuple[int, ...], channels: int | None, place: str) -> int | None:
    """Which axis of an array of images its channels are: not a side of a square, else the shorter; None without.

    Args:
        shape: (N, H, W), (N, H, W, C) or (N, C, H, W).
        channels: `--data.channels`, which decides where both may be.
        place: For messages.

    Raises:
        UserError: Neither can be it, or both.
    """
    if len(shape) == 3:
        return None
    first, second, last = shape[1:]
    if channels is not None and channels in (first, last) and first != last:
        return 1 if first == channels else 3
    if first == last:
        raise UserError(f"{place} is {shape}: which axis the channels are cannot be told; store it as (N, C, H, W)")
    axis = 3 if first == second else 1 if second == last or first < last else 3
    if shape[axis] > MOST_CHANNELS:
        raise UserError(f"{place} is {shape}: no axis of it can be the channels")
    return axis


def _core(name: str) -> str:
    """A name without the words for a split."""
    every = {word for words in SPLITS.values() for word in words}
    return "_".join(word for word in re.split(r"[-_./\s]+", name.lower()) if word not in every)


def _of_file(file: Path) -> list[Stored]:
    import numpy as np

    try:
        if file.suffix.lower() == ".npy":
            opened = np.load(file, mmap_mode="c", allow_pickle=False)
            return [Stored(file.stem, str(file), opened.shape, lambda: opened)]
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            shapes = {}
            for name in names:
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    reader: Any = np.lib.format.read_array_header_1_0
                    reader = reader if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shapes[name.removesuffix(".npy")] = reader(member)[0]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no readable array: {str(error).splitlines()[0]}") from None
    return [Stored(name, f"{file}: {name}", shape, _reader(file, name)) for name, shape in shapes.items()]


def _reader(file: Path, name: str) -> "Callable[[], np.ndarray]":
    def read() -> "np.ndarray":
        import numpy as np

        with np.load(file, allow_pickle=False) as opened:
            found: np.ndarray = opened[name]
            return found

    return read


def _of_zarr(root: Path) -> list[Stored]:
    try:
        import zarr
    except ImportError:
        raise UserError(
            f"{root} is a Zarr store, which needs the package zarr: pip install 'ssl-bench[data]'"
        ) from None
    try:
        opened: Any = zarr.open(str(root), mode="r")
        if isinstance(opened, zarr.Array):
            return [Stored("images", str(root), opened.shape, partial(_read_zarr, opened))]
        arrays = [(name, each) for name, each in sorted(opened.members(max_depth=4)) if isinstance(each, zarr.Array)]
    except Exception as error:  # of zarr, its codecs or the disk
        raise UserError(f"{root} is no readable Zarr store: {str(error).splitlines()[0]}") from None
    return [Stored(name, f"{root}: {name}", each.shape, partial(_read_zarr, each)) for name, each in arrays]


def _read_zarr(array: Any) -> "np.ndarray":
    import numpy as np

    return np.asarray(array[:])
