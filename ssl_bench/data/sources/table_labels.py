"""Labels of tables: which column holds them, and classes joined by their names.

A shard's numbers mean what its own list of names says, so shards and splits whose lists differ in their order or length
are joined by name. Numbers without names are classes of their own.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_bench.console import say
from ssl_bench.data.files.arrays import NONE
from ssl_bench.data.files.columnar import read_columns
from ssl_bench.errors import UserError, near

USUAL = ("label", "labels", "fine_label")
CALLED_LABEL = re.compile(r"label|class|categor|target", re.IGNORECASE)  # what may be meant, too
# Columns that number or describe images; none of them is a class.
NO_LABEL = re.compile(
    r"__.*__|index|idx|.*_?id|width|height|size|w|h|channels|depth|bytes|.*(path|file|filename|file_name|name|url|uri)"
    r"|.*(caption|text|description|prompt|comment)s?|.*(hash|md5|sha\d*|phash)|split|fold|year|date|.*time.*|license",
    re.IGNORECASE,
)
Value: TypeAlias = int | str  # of a label: a number without a name, or a class's name


@dataclass(frozen=True)
class Labels:
    """The labels of a split.

    Args:
        values: N labels, or None where all of the split are withheld.
        names: Classes that the files declare, in their order; empty where they declare none.
    """

    values: list[Value] | None
    names: tuple[str, ...]


def label_column(files: Sequence[Path], schema: pa.Schema, image: str, asked: str | None) -> str | None:
    """The column of labels, or None where there is none.

    Args:
        files: Of the training split.
        schema: Of the first of them.
        image: The image column.
        asked: `--data.label_column`.

    Raises:
        UserError: Several columns may be it, or the one asked for is not there.
    """
    columns = [name for name in schema.names if name != image]
    if asked == NONE:
        return None
    if asked is not None:
        if asked not in columns:
            raise UserError(f"--data.label_column: {files[0]} has no column {asked!r}{near(asked, columns)}")
        return asked
    usual = [name for name in USUAL if name in columns]
    declared = [name for name in columns if _declared(schema, name)]
    candidates = usual or declared or [name for name in columns if _may_be_labels(files, schema, name)]
    if len(candidates) > 1:
        raise UserError(
            f"{files[0]} has several columns that may be the labels ({', '.join(candidates)}): "
            "--data.label_column names one, or says none"
        )
    others = [name for name in columns if name not in candidates and CALLED_LABEL.search(name)]
    if candidates and others:
        say(f"the labels are column {candidates[0]!r}, not {', '.join(others)}: --data.label_column says otherwise")
    return candidates[0] if candidates else None


def read_labels(file: Path, schema: pa.Schema, column: pa.ChunkedArray, name: str) -> Labels:
    """The labels of one file.

    Raises:
        UserError: The column holds no classes, some labels are missing, or a number has no name.
    """
    kind, names = column.type, _declared(schema, name)
    if column.null_count:
        if column.null_count == len(column):
            return Labels(None, names)
        raise UserError(f"{file}: column {name!r} has {column.null_count} rows without a label")
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Labels([str(value) for value in column.to_pylist()], ())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise UserError(
            f"{file}: column {name!r} holds several labels for an image, not a class for each image, which evaluations "
            "score: --data.label_column names a column of classes, or none to pretrain without labels"
        )
    if pa.types.is_floating(kind):
        column = _whole(file, column, name)
    elif not pa.types.is_integer(kind):
        raise UserError(f"{file}: column {name!r} holds {kind}, not a class for each image: --data.label_column")
    numbers = column.cast(pa.int64()).to_numpy()
    withheld = int((numbers == -1).sum())
    if withheld == len(numbers) and withheld:
        return Labels(None, names)
    if withheld:
        raise UserError(f"{file}: {withheld} of {len(numbers)} labels in {name!r} are -1 (withheld): remove those rows")
    if not names:
        return Labels(numbers.tolist(), ())
    odd = numbers[(numbers < 0) | (numbers >= len(names))]
    if len(odd):
        raise UserError(f"{file}: column {name!r} has the label {odd[0]}, and names for 0 to {len(names) - 1}")
    return Labels([names[number] for number in numbers], names)


def joined(files: Sequence[Path], parts: Sequence[Labels]) -> Labels:
    """The labels of all files of a split.

    Raises:
        UserError: Some are withheld, or some files have names and others numbers.
    """
    kept = [part.values for part in parts if part.values is not None]
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    if not kept:
        return Labels(None, names)
    if len(kept) < len(parts):
        odd = next(file for file, part in zip(files, parts, strict=True) if part.values is None)
        raise UserError(f"{odd} withholds its labels, and other files of its split do not: remove it")
    values = [value for part in kept for value in part]
    if len({type(part[0]) for part in kept if part}) > 1:
        first = next(file for file, part in zip(files, kept, strict=True) if part and isinstance(part[0], int))
        raise UserError(f"{first} has numbers for labels, and other files have names: write the names into its schema")
    return Labels(values, names)


def classes_of(train: Labels) -> tuple[Value, ...]:
    """The classes in the order of their numbers: as declared, else sorted."""
    assert train.values is not None
    return train.names or tuple(sorted(set(train.values)))


def numbered(labels: Labels, classes: Sequence[Value], ids: Sequence[str]) -> np.ndarray:
    """(N,) int64 position of each label among the classes.

    Raises:
        UserError: A label is none of them.
    """
    assert labels.values is not None
    number = {value: at for at, value in enumerate(classes)}
    try:
        return np.array([number[value] for value in labels.values], dtype=np.int64)
    except KeyError as error:
        at = labels.values.index(error.args[0])
        raise UserError(f"label {error.args[0]} of {ids[at]} is no class of the training images") from None


def _declared(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """Names of the classes, when the file's metadata tells them (Hugging Face's ClassLabel)."""
    try:
        metadata: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = ((metadata.get("info") or {}).get("features") or {}).get(name) or {}
        return tuple(map(str, feature.get("names") or ()))
    except (ValueError, AttributeError, TypeError):
        return ()


def _may_be_labels(files: Sequence[Path], schema: pa.Schema, name: str) -> bool:
    """Whether a column holds the same few numbers or texts again and again."""
    kind = schema.field(name).type
    plain = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    if NO_LABEL.fullmatch(name) or not (pa.types.is_dictionary(kind) or any(is_kind(kind) for is_kind in plain)):
        return False
    column = read_columns(files[0], [name])[name]
    return len(column) < 2 or len(pc.unique(column)) <= max(1, len(column) // 2)


def _whole(file: Path, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not pc.all(pc.equal(pc.floor(column), column)).as_py():
        raise UserError(f"{file}: column {name!r} holds fractions, not classes: --data.label_column")
    return column
