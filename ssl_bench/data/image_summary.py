"""A first look at images that are not opened yet: how large they are, and how many. Torch-free, a moment's work."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.config.constraints import local_path
from ssl_bench.config.options import DataOptions
from ssl_bench.config.recipes import SMALL, Images
from ssl_bench.data.catalogue import entry_of, names
from ssl_bench.data.files.arrays import channel_axis, find_arrays
from ssl_bench.data.files.columnar import count_rows, first_rows, read_schema
from ssl_bench.data.files.image_column import embeds, image_column, paths
from ssl_bench.data.files.shards import TABLES, find_shards
from ssl_bench.data.files.tars import images_in, read_member
from ssl_bench.errors import UserError, near
from ssl_bench.records.run_folder import OWN

LOOKED_AT = 48  # images whose size is read
COUNTED = 200_000  # files after which counting stops
SUFFIXES = re.compile(r"\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|ppm|pgm|pbm|jp2|avif|heic)$", re.IGNORECASE)


def image_summary(data: Mapping[str, Any]) -> Images:
    """What the images of a `fit` command are, as far as a recipe depends on it; unknown where they are not there yet.

    Args:
        data: `name` and `root`, as they were given.
    """
    name = str(data["name"])
    entry = entry_of(name)
    if entry is not None and entry.images is not None:
        return Images(name, entry.image_size, entry.images)
    if entry is None or data.get("root") is None:
        return Images()
    try:
        root = Path(local_path(str(data["root"])))
    except ValueError:  # a web address, which the parser refuses
        return Images()
    if not root.exists() and name != "hf":
        return Images()
    if name in ("parquet", *TABLES):
        count, sizes = _of_tables(DataOptions(name=name, root=str(data["root"])))
    elif name == "webdataset":
        count, sizes = _of_tars(DataOptions(name=name, root=str(root)))
    elif name == "array":
        count, sizes = _of_arrays(DataOptions(name=name, root=str(root), channels=_channels(data)))
    elif name == "folder" and root.is_dir():
        train = root / "train"
        count, sizes = _of_folder(train if train.is_dir() else root)
    else:
        return Images()
    if not sizes or max(max(size) for size in sizes) > SMALL:
        return Images("", None, count)
    sides = sorted(min(size) for size in sizes)
    return Images("", sides[len(sides) // 2], count, one_size=len(set(sizes)) == 1)


def check_place(data: Mapping[str, Any]) -> None:
    """Refuse images that are not where they are said to be, before anything heavy is loaded.

    Args:
        data: Options of the images.

    Raises:
        UserError: The set is unknown, or there is nothing at `root`.
    """
    if entry_of(data["name"]) is None:
        raise UserError(f"no data set {data['name']!r}{near(data['name'], names())}: see `ssl-bench list data`")
    if data["name"] in OWN and data["name"] != "hf" and data.get("root") and not Path(data["root"]).exists():
        raise UserError(f"no folder {data['root']}: --data.root says where the images are")


def _of_folder(folder: Path) -> tuple[int, list[tuple[int, int]]]:
    """Number of the images below a folder, and the sizes of some."""
    files: list[str] = []
    for file in _files(folder):
        files.append(file)
        if len(files) >= COUNTED:
            break
    return len(files), _sizes(files[:: max(1, len(files) // LOOKED_AT)])


def _files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "@", "$")))
        yield from (os.path.join(place, name) for name in sorted(files) if SUFFIXES.search(name))


def _of_tables(options: DataOptions) -> tuple[int | None, list[tuple[int, int]]]:
    """The same of tables: of the training files, by the first of them."""
    try:
        base, shards = find_shards(options)
        count = sum(count_rows(file) for file in shards["train"])
        first = shards["train"][0]
        name = image_column(read_schema(first), first)
        column = first_rows(first, name, LOOKED_AT)
        if not embeds(column):
            return count, _sizes(paths(first, column, name))
    except UserError:
        return None, []  # what opens them says what is wrong
    values = column.to_pylist()
    encoded = [value.get("bytes") if isinstance(value, dict) else value for value in values]
    return count, _sizes([io.BytesIO(data) for data in encoded if data])


def _of_tars(options: DataOptions) -> tuple[int | None, list[tuple[int, int]]]:
    """The same of tars, all of which are taken to hold as many as the first."""
    try:
        tars = find_shards(options)[1]["train"]
        images = list(images_in(tars[0]))
    except UserError:
        return None, []
    looked_at = images[:: max(1, len(images) // LOOKED_AT)]
    return len(images) * len(tars), _sizes([io.BytesIO(read_member(tars[0], each)) for each in looked_at])


def _of_arrays(options: DataOptions) -> tuple[int | None, list[tuple[int, int]]]:
    """The same of arrays."""
    try:
        images = find_arrays(options)["train"].images
        axis = channel_axis(images.shape, options.channels, images.place)
    except UserError:
        return None, []
    height, width = (side for at, side in enumerate(images.shape) if at > 0 and at != axis)
    return images.shape[0], [(width, height)]


def _channels(data: Mapping[str, Any]) -> int | None:
    text = str(data.get("channels"))
    return int(text) if text.isdecimal() else None


def _sizes(files: Sequence[Any]) -> list[tuple[int, int]]:
    """Width and height of those that are images, from the first bytes of each."""
    from PIL import Image

    sizes = []
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.append(image.size)
        except Exception:  # broken ones are named when they are opened
            continue
    return sizes
