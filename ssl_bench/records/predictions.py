"""`predictions/<protocol>.parquet`: the predicted class of each test image, or its part of another number."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.errors import UserError
from ssl_bench.records.files import read_regular, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST_BYTES = 2**30  # of a file of predictions
MOST_VALUES = 10**8  # in it, however well they are compressed
MOST_KNOWN = 16  # sets of test images that are kept
_known_images: "dict[bytes, tuple[Sequence[str], NDArray[Any]]]" = {}


@dataclass(frozen=True)
class Predictions:
    """Classes that each variant gave to the test images.

    Args:
        ids: A name for each image.
        labels: Its class.
        variants: Variant -> a class per image; or of what was repeated, one such list after the other.
        scores: Where the number is no accuracy: variant -> the part of each image, whose mean is the number.
    """

    ids: Sequence[str]
    labels: "Sequence[int] | NDArray[Any]"
    variants: "Mapping[str, Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]]"
    scores: "Mapping[str, NDArray[Any]]" = field(default_factory=dict)

    @property
    def right(self) -> "NDArray[Any]":
        """(R, N) whether each image was classified rightly, or (1, N) its part of what is no accuracy.

        Of the primary variant of predictions that were read.
        """
        import numpy as np

        if self.scores:
            return np.asarray(self.scores["score"])[None]
        return np.asarray(np.asarray(self.variants["prediction"]) == self.labels)


def read_predictions(path: Path) -> Predictions:
    """Read the predictions of one result: of its primary variant, called `prediction`, as an array (R, N).

    Where the number is no accuracy, the parts of its images, called `score`, as an array (N,).

    Raises:
        UserError: There are none, or they are damaged.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    try:
        content = read_regular(path, MOST_BYTES)
        source = pyarrow.parquet.ParquetFile(pa.BufferReader(content))
        schema = source.schema_arrow  # made anew each time it is asked for
        names = [name for name in schema.names if name.partition("#")[0] == "prediction"]
        if source.metadata.num_rows * (len(names) + 2) > MOST_VALUES:
            raise ValueError(f"{source.metadata.num_rows} rows of {len(names)} predictions are too many")
        ids, labels = _images(source, schema, content)
        if not names and "score" in schema.names:
            column = source.read(columns=["score"], use_threads=False).column("score")
            return Predictions(ids, labels, {}, {"score": _floats(column, "score")})
        table = source.read(columns=names, use_threads=False)
        # Arrow's own `to_numpy` imports pandas, which takes longer than all else here.
        rows = [_integers(table.column(name), name) for name in names]
        return Predictions(ids, labels, {"prediction": np.stack(rows)})
    except FileNotFoundError as error:
        raise UserError(f"no predictions in {path}: `ssl-bench evaluate {path.parent.parent}` makes them") from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, BufferError, MemoryError) as error:
        line = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged ({line}): delete it and evaluate its run again") from error


def _images(source: Any, schema: Any, content: bytes) -> "tuple[Sequence[str], NDArray[Any]]":
    """Names and classes of the images.

    Thousands of files are of the same images. Where the bytes of both columns are those of a file that was read before,
    so are their values, and the very same objects are given: they are decoded once, and compared at once.
    """
    key = _digest(source.metadata, schema, content)
    if key is None or key not in _known_images:
        table = source.read(columns=["id", "label"], use_threads=False)
        labels = _integers(table.column("label"), "label")
        labels.flags.writeable = False
        found = tuple(table.column("id").to_pylist()), labels
        if key is None:
            return found
        while len(_known_images) >= MOST_KNOWN:
            _known_images.pop(next(iter(_known_images)))
        _known_images[key] = found
    return _known_images[key]


def _digest(metadata: Any, schema: Any, content: bytes) -> bytes | None:
    """Of the columns of names and classes as they are stored; None where they are in several parts."""
    if metadata.num_row_groups != 1:
        return None
    group = metadata.row_group(0)
    places = {group.column(place).path_in_schema: place for place in range(min(2, group.num_columns))}
    if places.keys() != {"id", "label"}:
        return None
    found = hashlib.sha256()
    for name in ("id", "label"):
        column = group.column(places[name])
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        kind = (column.physical_type, column.compression, column.num_values, column.total_compressed_size)
        found.update(repr((kind, str(schema.field(name).type))).encode())
        found.update(memoryview(content)[start : start + column.total_compressed_size])
    return found.digest()


def _integers(column: Any, name: str) -> "NDArray[Any]":
    """A column of classes as an array of 64-bit integers."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ValueError(f"{name} is of type {column.type}")
    if column.null_count:
        raise ValueError(f"{name} has gaps")
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return np.from_dlpack(whole if column.type == pa.int64() else whole.cast(pa.int64()))


def _floats(column: Any, name: str) -> "NDArray[Any]":
    """A column of finite numbers."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_floating(column.type) or column.null_count:
        raise ValueError(f"{name} is not a number for each image")
    values = np.from_dlpack(column.cast(pa.float64()).combine_chunks())
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite")
    return values


def write_predictions(path: Path, primary: str, predictions: Predictions) -> None:
    """A column per variant, the primary's called `prediction` or `score`; of repetitions `prediction#0` and so on."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    assert not primary or primary in {**predictions.variants, **predictions.scores}, (
        f"no predictions of the primary variant {primary}"
    )
    own = {"id", "label", "prediction", "score"}
    assert not own & {**predictions.variants, **predictions.scores}.keys(), "a variant has the name of a column"
    columns = {"id": pa.array(predictions.ids, pa.string()), "label": pa.array(predictions.labels, pa.int64())}
    for variant, labels in sorted(predictions.variants.items(), key=lambda item: item[0] != primary):
        name = "prediction" if variant == primary else variant
        repeated = len(labels) > 0 and np.ndim(labels) == 2
        for number, row in enumerate(labels if repeated else [labels]):
            columns[f"{name}#{number}" if repeated else name] = pa.array(row, pa.int64())
    for variant, parts in sorted(predictions.scores.items(), key=lambda item: item[0] != primary):
        columns["score" if variant == primary else variant] = pa.array(parts, pa.float64())
    with replacing(path) as temporary, open(temporary, "wb") as file:  # pyarrow opens no path that is not Unicode
        pyarrow.parquet.write_table(pa.table(columns), file, compression="zstd")
