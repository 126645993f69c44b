"""`predictions/<protocol>.parquet`: the predicted class of each test image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.errors import UserError
from ssl_bench.records.files import read_regular, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST_BYTES = 2**30  # of a file of predictions
MOST_VALUES = 10**8  # in it, however well they are compressed


@dataclass(frozen=True)
class Predictions:
    """Classes that each variant gave to the test images.

    Args:
        ids: A name for each image.
        labels: Its class.
        variants: Variant -> a class per image; or of what was repeated, one such list after the other.
    """

    ids: Sequence[str]
    labels: "Sequence[int] | NDArray[Any]"
    variants: "Mapping[str, Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]]"


def read_predictions(path: Path) -> Predictions:
    """Read the predictions of one result: of its primary variant, called `prediction`, as an array (R, N).

    Raises:
        UserError: There are none, or they are damaged.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(pa.BufferReader(read_regular(path, MOST_BYTES)))
        names = [name for name in source.schema_arrow.names if name.partition("#")[0] == "prediction"]
        if source.metadata.num_rows * (len(names) + 2) > MOST_VALUES:
            raise ValueError(f"{source.metadata.num_rows} rows of {len(names)} predictions are too many")
        table = source.read(columns=["id", "label", *names])
        # Arrow's own `to_numpy` imports pandas, which takes longer than all else here.
        labels, *rows = (_integers(table.column(name).combine_chunks(), name) for name in ("label", *names))
        return Predictions(table.column("id").to_pylist(), labels, {"prediction": np.stack(rows)})
    except FileNotFoundError as error:
        raise UserError(f"no predictions in {path}: `ssl-bench evaluate {path.parent.parent}` makes them") from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, BufferError, MemoryError) as error:
        line = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged ({line}): delete it and evaluate its run again") from error


def _integers(column: Any, name: str) -> "NDArray[Any]":
    """A column of classes as an array of 64-bit integers."""
    import numpy as np

    values = np.from_dlpack(column)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} is of type {values.dtype}")
    return values.astype(np.int64, copy=False)


def write_predictions(path: Path, primary: str, predictions: Predictions) -> None:
    """A column per variant, the primary's called `prediction`; per repetition `prediction#0`, `prediction#1` ..."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    assert not primary or primary in predictions.variants, f"no predictions of the primary variant {primary}"
    assert not {"id", "label", "prediction"} & predictions.variants.keys(), "a variant has the name of a column"
    columns = {"id": pa.array(predictions.ids, pa.string()), "label": pa.array(predictions.labels, pa.int64())}
    for variant, labels in sorted(predictions.variants.items(), key=lambda item: item[0] != primary):
        name = "prediction" if variant == primary else variant
        repeated = len(labels) > 0 and np.ndim(labels) == 2
        for number, row in enumerate(labels if repeated else [labels]):
            columns[f"{name}#{number}" if repeated else name] = pa.array(row, pa.int64())
    with replacing(path) as temporary, open(temporary, "wb") as file:  # pyarrow opens no path that is not Unicode
        pyarrow.parquet.write_table(pa.table(columns), file, compression="zstd")
