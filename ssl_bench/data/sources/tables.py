"""Tables with a row for each image: its content or its path, and a label where there is one.

Parquet shards, what Hugging Face's `save_to_disk` wrote, data sets of its hub, and tables of paths (`metadata.csv`,
CSV, TSV, JSON lines, parquet). A column of images holds contents, {bytes, path}, or paths from the table's folder on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.columnar import holds_images, read_columns, read_schema
from ssl_bench.data.files.digests import digests_of, read_whole
from ssl_bench.data.files.image_column import embeds, image_column, named_files, own_names, paths
from ssl_bench.data.files.listing import written_name
from ssl_bench.data.files.shards import SPLITS, digests_of_shards, find_shards
from ssl_bench.data.in_memory import usable
from ssl_bench.data.masks import IGNORE, EncodedMasks
from ssl_bench.data.packed import ArrowBytes, Paths
from ssl_bench.data.pool import Source
from ssl_bench.data.sources.rows import Rows, pool_of, source_of
from ssl_bench.data.sources.table_labels import Labels, joined, label_column, read_labels
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError

MASKS = ("mask", "annotation", "segmentation_mask", "semantic_mask", "segmentation", "label", "labels")
SPLIT = "split"  # column of a table that says of which split a row is


@dataclass(frozen=True)
class Part:
    """A split's rows.

    Args:
        split: train, test or validation.
        files: Whose rows they are.
        words: What these rows have in the column `split`; None for all rows.
    """

    split: str
    files: list[Path]
    words: tuple[str, ...] | None = None


def load(options: DataOptions) -> Source:
    """The images of the tables under `root`, of the one table that `root` is, or of a data set of the hub.

    Raises:
        UserError: No such files, shards missing, or columns that are not images and labels.
    """
    base, shards = find_shards(options)
    if options.name == "parquet":
        _fits_memory([file for files in shards.values() for file in files])
    schema = read_schema(shards["train"][0])
    image = image_column(schema, shards["train"][0])
    if mask_column(schema, image, options.label_column) is not None:
        return _with_masks(options, base, shards)
    label = label_column(shards["train"], schema, image, options.label_column)
    parts, noun = _parts(shards, schema, label)
    splits = {split: _read(base, part, label) for split, part in parts.items()}
    if options.name == "parquet" and isinstance(splits["train"].encoded, Paths):
        raise UserError(f"{shards['train'][0]} names images and does not hold them: --data table reads such files")
    remedy = "its files have no column of labels that can be told; --data.label_column names it"
    return source_of(options, splits, noun, remedy)


def mask_column(schema: pa.Schema, image: str, asked: str | None) -> str | None:
    """The column whose images are masks: the one that is asked for, or one of a usual name; None without one."""
    names = [asked] if asked is not None else MASKS
    return next((n for n in names if n in schema.names and n != image and holds_images(schema.field(n).type)), None)


def _parts(shards: dict[str, list[Path]], schema: pa.Schema, label: str | None) -> tuple[dict[str, Part], str]:
    """Split -> its rows, by files or by a column `split`; and whether that is "files" or "rows"."""
    files = shards["train"]
    if set(shards) == {"train"} and len(files) == 1 and SPLIT in schema.names and label != SPLIT:
        words = {str(word) for word in pc.unique(read_columns(files[0], [SPLIT])[SPLIT]).to_pylist()}
        named = {s: tuple(w for w in words if w.lower() in names) for s, names in SPLITS.items()}
        if named["train"]:
            return {split: Part(split, files, own) for split, own in named.items() if own}, "rows"
    return {split: Part(split, own) for split, own in shards.items()}, "files"


def _with_masks(options: DataOptions, base: Path, shards: dict[str, list[Path]]) -> Source:
    """Images with a class for each pixel; the validation files are the test's where there are no test files."""
    schema = read_schema(shards["train"][0])
    column = mask_column(schema, image_column(schema, shards["train"][0]), options.label_column)
    assert column is not None, "there is one"
    parts = {"train": shards["train"]}
    other = next((name for name in ("test", "validation") if name in shards), None)
    if other is not None:
        parts["test"] = shards[other]
    pools, classes = [], 0
    for part, files in parts.items():
        table = _read(base, Part(part, files), None)
        chunks = []
        for file in files:
            if column not in read_schema(file).names:
                raise UserError(f"{file} has no column {column!r}, which other files have")
            chunks += _contents(file, read_columns(file, [column])[column], column).chunks
        masks = EncodedMasks(encoded=ArrowBytes(chunks), names=table.ids)
        for row in range(len(masks)) if part == "train" else ():
            values = masks.mask(row)
            known = values[values != IGNORE]
            classes = max(classes, 1 + (int(known.max()) if len(known) else -1))
        pools.append(replace(pool_of(table, ()), masks=masks))
    train, *tests = usable(pools, options)
    names = tuple(map(str, range(classes)))
    if tests:
        return Source(train=train, test=tests[0], classes=names, test_is=f"the {other} files")
    train, test = split_off_test(train)
    return Source(train=train, test=test, classes=names, test_is=FIFTH)


def _fits_memory(files: list[Path]) -> None:
    """Encoded images stay in memory: refuse what would not fit, before the machine starts to swap."""
    need = sum(file.stat().st_size for file in files)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else need * 2
    if need > 0.6 * have:
        gib = 1 << 30
        raise UserError(
            f"{need / gib:.0f} GiB of parquet do not fit {have / gib:.0f} GiB of memory: unpack them, use --data folder"
        )


def _read(base: Path, part: Part, label: str | None) -> Rows:
    """A split's images and labels, each file by its own schema."""
    chunks: list[pa.Array] = []
    names: list[str | None] = []
    places: list[str] = []
    labels: list[Labels] = []
    known, hashes = digests_of_shards(base, part.split, part.files)
    digests = []
    for file, digest in zip(part.files, hashes, strict=True):
        schema = read_schema(file)
        image = image_column(schema, file)
        if label is not None and label not in schema.names and labels:
            raise UserError(f"{file} has no column {label!r}, which other files of its split have")
        wanted = [image, *([label] if label in schema.names else []), *([SPLIT] if part.words else [])]
        table = read_columns(file, [name for name in wanted if name])
        if part.words:
            table = table.filter(pc.is_in(table[SPLIT], pa.array(part.words)))
        if embeds(table[image]):
            digests += [f"{digest}-{row}" for row in range(table.num_rows)]
            chunks += _contents(file, table[image], image).chunks
            names += own_names(table[image])
        else:
            places += paths(file, table[image], image)
        if label in schema.names:
            labels.append(read_labels(file, schema, table[label], str(label)))
    found = joined(part.files, labels) if labels else None
    if places and names:
        raise UserError(f"some of the files beside {part.files[0]} hold images, others their paths: make them alike")
    if places:
        return _of_paths(base, part, places, found)
    if not names:
        raise UserError(f"no images in {part.files[0]}")
    told = [name for name in names if name is not None]
    ids = told if len(set(told)) == len(names) else [f"{part.split}/{row:06d}" for row in range(len(names))]
    return Rows(ids, ArrowBytes(chunks), digests, read_whole(known), found)


def _of_paths(base: Path, part: Part, places: Sequence[str], labels: Labels | None) -> Rows:
    """Images that are named; a path that is there twice counts once.

    Raises:
        UserError: It has two labels.
    """
    values = None if labels is None else labels.values
    first: dict[str, int] = {}
    for row, path in enumerate(places):
        earlier = first.setdefault(path, row)
        if values is not None and values[earlier] != values[row]:
            both = f"{values[earlier]} and {values[row]}"
            raise UserError(
                f"{part.files[0]}: {path} has several labels ({both}), and evaluations score one class for each image: "
                "leave one of its rows, or --data.label_column none"
            )
    if labels is not None and values is not None:
        labels = replace(labels, values=[values[row] for row in first.values()])
    known = named_files(base, first)
    digests = digests_of(base, known, f"{part.split}/{part.files[0].name}/images")
    names = [written_name(file.name) for file in known]
    return Rows(names, Paths.of(file.path for file in known), digests, read_whole(known), labels)


def _contents(file: Path, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The bytes of a column of images."""
    encoded = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    if encoded.null_count:
        row = pc.index(pc.is_null(encoded), True).as_py()
        raise UserError(f"{file}: row {row} of column {name!r} has no bytes; embed the images")
    return encoded
