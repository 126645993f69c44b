"""Files of columns: parquet, Arrow (as `save_to_disk` of Hugging Face writes it), CSV, TSV, JSON lines. Torch-free."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def read_schema(file: Path) -> "pa.Schema":
    """Names and types of a file's columns.

    Raises:
        UserError: It cannot be read.
    """
    if file.suffix.lower() != ".parquet":
        return read_columns(file).schema
    import pyarrow.parquet as pq

    with _reading(file):
        return pq.read_schema(file)


def read_columns(file: Path, columns: Sequence[str] | None = None) -> "pa.Table":
    """Columns of a file; all when not given. Those of an Arrow file stay on the disk until they are used.

    Raises:
        UserError: It cannot be read.
    """
    kind = file.suffix.lower()
    with _reading(file):
        if kind == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(file, columns=None if columns is None else list(columns))
        table = _read_arrow(file) if kind == ".arrow" else _read_text(file, kind)
    return table if columns is None else table.select(list(columns))


def count_rows(file: Path) -> int:
    """How many rows a file has.

    Raises:
        UserError: It cannot be read.
    """
    if file.suffix.lower() != ".parquet":
        return int(read_columns(file).num_rows)
    import pyarrow.parquet as pq

    with _reading(file):
        return int(pq.read_metadata(file).num_rows)


def first_rows(file: Path, column: str, most: int) -> "pa.ChunkedArray":
    """The beginning of a column.

    Raises:
        UserError: The file cannot be read.
    """
    if file.suffix.lower() != ".parquet":
        return read_columns(file, [column])[column].slice(0, most)
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(file):
        opened = pq.ParquetFile(file)
        batch = next(opened.iter_batches(batch_size=most, columns=[column]), None)
        kind = opened.schema_arrow.field(column).type
    return pa.chunked_array([batch.column(0)] if batch is not None else [], kind)


def embeds_images(file: Path) -> bool:
    """Whether a parquet file has a column of images, not only of their paths; true of one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = [field.name for field in read_schema(file) if holds_images(field.type)]
        first = next(pq.ParquetFile(file).iter_batches(batch_size=1, columns=columns), None) if columns else None
    except (UserError, pa.ArrowException, OSError):
        return True
    values = first.to_pylist()[0].values() if first is not None and len(first) else ()
    named = [value for value in values if isinstance(value, dict) and value.get("path")]
    return bool(columns) and not any(value["bytes"] is None for value in named)


def holds_images(kind: "pa.DataType") -> bool:
    """Whether a column of this type holds contents of files."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_arrow(file: Path) -> "pa.Table":
    import pyarrow as pa

    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:  # the other of the two formats
        return pa.ipc.open_file(source).read_all()


def _read_text(file: Path, kind: str) -> "pa.Table":
    if kind == ".jsonl":
        from pyarrow import json

        return json.read_json(file)
    from pyarrow import csv

    return csv.read_csv(file, parse_options=csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ","))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What Arrow or the disk says of a file that cannot be read, in one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = file.suffix.lstrip(".").lower()
        raise UserError(f"{file} is no readable {what} file: {str(error).splitlines()[0]}") from None
