"""Parquet files in Hugging Face's image layout: a column of {bytes, path}, and one of labels where there are any."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_bench.config.options import DataOptions
from ssl_bench.data.in_memory import resident_if_small
from ssl_bench.data.pool import EncodedPool, Pool, Source
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "val")}


@dataclass(frozen=True)
class Table:
    """The needed columns of a split's shards.

    Args:
        ids: N names.
        encoded: N contents of image files.
        labels: (N,) labels as they stand in the file, or None.
        names: Of the classes, when the file's schema knows them.
    """

    ids: list[str]
    encoded: list[bytes]
    labels: np.ndarray | None
    names: tuple[str, ...] | None


def load(options: DataOptions) -> Source:
    """The images of the parquet files under `root`, or of the one file that `root` is.

    Raises:
        UserError: No such files, shards missing, or columns that are not images and labels.
    """
    if options.root is None:
        raise UserError("--data parquet needs --data.root: a parquet file, or the folder of train-*.parquet")
    root = Path(options.root).expanduser()
    shards = {"train": [root]} if root.is_file() else _shards(root)
    _fits_memory([file for files in shards.values() for file in files])
    train = _read("train", shards["train"])
    test = _read("test", shards["test"]) if "test" in shards else None
    test_is = "the test files"
    if "validation" in shards and (test is None or test.labels is None or (test.labels == -1).all()):
        test, test_is = _read("validation", shards["validation"]), "the validation files"  # test labels are withheld
    if train.labels is None:
        remedy = "its parquet files have no integer column of labels"
        return Source(train=_pool(train, None, options.strict), test=None, classes=None, remedy=remedy)
    if train.names is not None:
        codes, classes = np.arange(len(train.names)), train.names
    else:
        codes = np.unique(train.labels)
        classes = tuple(str(code) for code in codes)
    pool = _pool(train, codes, options.strict)
    if test is not None and test.labels is not None:
        return Source(train=pool, test=_pool(test, codes, options.strict), classes=classes, test_is=test_is)
    assert pool.labels is not None
    if root.is_dir() or np.bincount(pool.labels).min() < 2:
        return Source(train=pool, test=None, classes=classes, remedy=f"add labelled test-*.parquet to {root}")
    first, second = split_off_test(pool)
    return Source(train=first, test=second, classes=classes, test_is=FIFTH)


def _shards(root: Path) -> dict[str, list[Path]]:
    """Split -> its files, from the root or else its folder `data`."""
    if not root.is_dir():
        raise UserError(f"no file or folder {root}: --data.root says where the parquet files are")
    for folder in (root, root / "data"):
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.parquet")):
            start = re.split(r"[-.]", file.name)[0]
            for split, names in SPLITS.items():
                if start in names:
                    found.setdefault(split, []).append(file)
        for files in found.values():
            _complete(files)
        if "train" in found:
            return found
    raise UserError(f"no train-*.parquet in {root} or {root / 'data'}: --data.root is their folder, or a single file")


def _complete(files: list[Path]) -> None:
    """Refuse `train-00000-of-00005.parquet` without its four siblings."""
    counts = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.name))}
    if counts and counts != {len(files)}:
        raise UserError(f"{len(files)} of {max(counts)} shards like {files[0]}: fetch the rest, or rename the files")


def _fits_memory(files: list[Path]) -> None:
    """Encoded images stay in memory: refuse what would not fit, before the machine starts to swap."""
    need = sum(file.stat().st_size for file in files)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else need * 2
    if need > 0.6 * have:
        gib = 1 << 30
        raise UserError(
            f"{need / gib:.0f} GiB of parquet do not fit {have / gib:.0f} GiB of memory: unpack them, use --data folder"
        )


def _read(split: str, files: list[Path]) -> Table:
    parts = []
    for file in files:
        try:
            schema = pq.read_schema(file)
            image, label = _columns(schema, file)
            parts.append(pq.read_table(file, columns=[name for name in (image, label) if name]))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} is no readable parquet file: {str(error).splitlines()[0]}") from None
    table = pa.concat_tables(parts)
    if table.num_rows == 0:
        raise UserError(f"no images in {files[0]}")
    column = table[image]
    fields = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
    encoded = (pc.struct_field(column, "bytes") if fields else column).to_pylist()
    paths = pc.struct_field(column, "path").to_pylist() if "path" in fields else []
    if None in encoded:
        raise UserError(f"{files[0]}: row {encoded.index(None)} of column {image!r} has no bytes; embed the images")
    if not paths or None in paths or len(set(paths)) < len(paths):
        paths = [f"{split}/{row:06d}" for row in range(len(encoded))]
    labels = None
    if label:
        if table[label].null_count:
            raise UserError(f"{files[0]}: column {label!r} has {table[label].null_count} rows without a label")
        labels = table[label].to_numpy().astype(np.int64)
    return Table(paths, encoded, labels, _class_names(schema, label))


def _columns(schema: pa.Schema, file: Path) -> tuple[str, str | None]:
    """Names of the image column and of the label column, if there is one."""
    images = [field.name for field in schema if _holds_images(field.type)]
    image = next((name for name in IMAGES if name in images), images[0] if len(images) == 1 else None)
    if image is None:
        raise UserError(
            f"{file} has no image column: a struct with bytes named {' or '.join(IMAGES)}; "
            f"its columns are {', '.join(schema.names)}"
        )
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    return image, next((name for name in LABELS if name in whole), whole[0] if len(whole) == 1 else None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    metadata: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (metadata.get("info") or {}).get("features") or {}
    names = (features.get(label) or {}).get("names") if label else None
    return tuple(names) if names else None


def _pool(table: Table, codes: np.ndarray | None, strict: bool) -> Pool:
    """The table's images; labels are positions in `codes`."""
    labels = None
    if codes is not None and table.labels is not None:
        labels = np.searchsorted(codes, table.labels).clip(max=len(codes) - 1)
        odd = np.flatnonzero(codes[labels] != table.labels)
        if len(odd):
            raise UserError(f"label {table.labels[odd[0]]} of {table.ids[odd[0]]} is no class of the training images")
    return resident_if_small(EncodedPool(labels=labels, ids=table.ids, encoded=table.encoded), strict)
