"""Parquet files in Hugging Face's image layout: a column of {bytes, path}, and one of labels where there are any."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.digests import read_whole
from ssl_bench.data.files.shards import digests_of_shards, find_shards
from ssl_bench.data.in_memory import usable
from ssl_bench.data.masks import IGNORE, EncodedMasks
from ssl_bench.data.packed import ArrowBytes
from ssl_bench.data.pool import EncodedPool, Source
from ssl_bench.data.sources.parquet_labels import Labels, Value, classes_of, joined, label_column, numbered, read_labels
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError

IMAGES = ("image", "img")
MASKS = ("mask", "annotation", "segmentation_mask", "semantic_mask", "segmentation", "label", "labels")


@dataclass(frozen=True)
class Table:
    """The needed columns of a split's shards.

    Args:
        ids: N names.
        encoded: N contents of image files.
        digests: N hashes, each of its file and its place in it.
        whole: Whether the files were read whole for them.
        labels: As the files have them; None where they have no such column.
    """

    ids: list[str]
    encoded: ArrowBytes
    digests: list[str]
    whole: bool
    labels: Labels | None


def load(options: DataOptions) -> Source:
    """The images of the parquet files under `root`, or of the one file that `root` is.

    Raises:
        UserError: No such files, shards missing, or columns that are not images and labels.
    """
    base, shards = find_shards(options)
    _fits_memory([file for files in shards.values() for file in files])
    schema = _schema(shards["train"][0])
    image = _image_column(schema, shards["train"][0])
    mask = mask_column(schema, image, options.label_column)
    if mask is not None:
        return _with_masks(options, base, shards, mask)
    label = label_column(shards["train"], schema, image, options.label_column)
    train = _read("train", base, shards["train"], label)
    test = _read("test", base, shards["test"], label) if "test" in shards else None
    test_is = "the test files"
    if "validation" in shards and not _labelled(test):  # the test's labels are withheld
        test, test_is = _read("validation", base, shards["validation"], label), "the validation files"
    if not _labelled(train):
        (pool,) = usable([_pool(train, ())], options)
        remedy = "its parquet files have no column of labels that can be told; --data.label_column names it"
        return Source(train=pool, test=None, classes=None, remedy=remedy)
    assert train.labels is not None
    codes = classes_of(train.labels)
    classes = tuple(map(str, codes))
    if test is not None and _labelled(test):
        pool, tests = usable([_pool(train, codes), _pool(test, codes)], options)
        return Source(train=pool, test=tests, classes=classes, test_is=test_is)
    (pool,) = usable([_pool(train, codes)], options)
    assert pool.labels is not None
    root = Path(options.root or "").expanduser()
    if root.is_dir() or np.bincount(pool.labels).min() < 2:
        return Source(train=pool, test=None, classes=classes, remedy=f"add labelled test-*.parquet to {root}")
    first, second = split_off_test(pool)
    return Source(train=first, test=second, classes=classes, test_is=FIFTH)


def mask_column(schema: pa.Schema, image: str, asked: str | None) -> str | None:
    """The column whose images are masks: the one that is asked for, or one of a usual name; None without one."""
    names = [asked] if asked is not None else MASKS
    return next((n for n in names if n in schema.names and n != image and _holds_images(schema.field(n).type)), None)


def _with_masks(options: DataOptions, base: Path, shards: dict[str, list[Path]], column: str) -> Source:
    """Images with a class for each pixel; the validation files are the test's where there are no test files."""
    parts = {"train": shards["train"]}
    other = next((name for name in ("test", "validation") if name in shards), None)
    if other is not None:
        parts["test"] = shards[other]
    pools, classes = [], 0
    for part, files in parts.items():
        table = _read(part, base, files, None)
        chunks = []
        for file in files:
            if column not in _schema(file).names:
                raise UserError(f"{file} has no column {column!r}, which other files have")
            chunks += _contents(file, pq.read_table(file, columns=[column])[column], column)[0].chunks
        masks = EncodedMasks(encoded=ArrowBytes(chunks), names=table.ids)
        for row in range(len(masks)) if part == "train" else ():
            values = masks.mask(row)
            known = values[values != IGNORE]
            classes = max(classes, 1 + (int(known.max()) if len(known) else -1))
        pools.append(replace(_pool(table, ()), masks=masks))
    train, *tests = usable(pools, options)
    names = tuple(map(str, range(classes)))
    if tests:
        return Source(train=train, test=tests[0], classes=names, test_is=f"the {other} files")
    train, test = split_off_test(train)
    return Source(train=train, test=test, classes=names, test_is=FIFTH)


def _labelled(table: Table | None) -> bool:
    return table is not None and table.labels is not None and table.labels.values is not None


def _fits_memory(files: list[Path]) -> None:
    """Encoded images stay in memory: refuse what would not fit, before the machine starts to swap."""
    need = sum(file.stat().st_size for file in files)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else need * 2
    if need > 0.6 * have:
        gib = 1 << 30
        raise UserError(
            f"{need / gib:.0f} GiB of parquet do not fit {have / gib:.0f} GiB of memory: unpack them, use --data folder"
        )


def _read(split: str, base: Path, files: list[Path], label: str | None) -> Table:
    """A split's images and labels, each file by its own schema."""
    chunks: list[pa.Array] = []
    paths: list[str | None] = []
    labels: list[Labels] = []
    known, hashes = digests_of_shards(base, split, files)
    digests = []
    for file, digest in zip(files, hashes, strict=True):
        schema = _schema(file)
        image = _image_column(schema, file)
        wanted = [image, *([label] if label in schema.names else [])]
        if label is not None and label not in schema.names and labels:
            raise UserError(f"{file} has no column {label!r}, which other files of its split have")
        try:
            table = pq.read_table(file, columns=[name for name in wanted if name])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from None
        encoded, own = _contents(file, table[image], image)
        digests += [f"{digest}-{row}" for row in range(table.num_rows)]
        chunks += encoded.chunks
        paths += own
        if label in schema.names:
            labels.append(read_labels(file, schema, table[label], str(label)))
    images = ArrowBytes(chunks)
    if not len(images):
        raise UserError(f"no images in {files[0]}")
    names = [path for path in paths if path is not None]
    if len(set(names)) < len(images):
        names = [f"{split}/{row:06d}" for row in range(len(images))]
    return Table(names, images, digests, read_whole(known), joined(files, labels) if labels else None)


def _contents(file: Path, column: pa.ChunkedArray, name: str) -> tuple[pa.ChunkedArray, list[str | None]]:
    """The bytes of a column of images, and their paths where it tells them."""
    fields = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
    encoded = pc.struct_field(column, "bytes") if fields else column
    if encoded.null_count:
        row = pc.index(pc.is_null(encoded), True).as_py()
        raise UserError(f"{file}: row {row} of column {name!r} has no bytes; embed the images")
    paths = pc.struct_field(column, "path").to_pylist() if "path" in fields else [None] * len(column)
    return encoded, paths


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is no readable parquet file: {str(error).splitlines()[0]}")


def _image_column(schema: pa.Schema, file: Path) -> str:
    images = [field.name for field in schema if _holds_images(field.type)]
    image = next((name for name in IMAGES if name in images), images[0] if len(images) == 1 else None)
    if image is None:
        raise UserError(
            f"{file} has no image column: a struct with bytes named {' or '.join(IMAGES)}; "
            f"its columns are {', '.join(schema.names)}"
        )
    return image


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _pool(table: Table, classes: tuple[Value, ...]) -> EncodedPool:
    """The table's images; labels are positions among the classes, None without them."""
    labels = numbered(table.labels, classes, table.ids) if classes and table.labels else None
    return EncodedPool(labels=labels, ids=table.ids, encoded=table.encoded, digests=table.digests, whole=table.whole)
