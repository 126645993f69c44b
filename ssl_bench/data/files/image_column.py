"""The column of a table that holds images, or names their files. Torch-free."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.data.files.columnar import IMAGES, holds_images, read_columns, read_schema
from ssl_bench.data.files.listing import ImageFile, listed
from ssl_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

CONTENTS = ("image", "img")
PATHS = ("file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "image", "img", "name")


def image_column(schema: "pa.Schema", file: Path) -> str:
    """Its name.

    Args:
        schema: Of the file.
        file: The table; paths in it begin at its folder.

    Raises:
        UserError: There is none that can be told.
    """
    import pyarrow as pa

    images = [field.name for field in schema if holds_images(field.type)]
    found = next((name for name in CONTENTS if name in images), images[0] if len(images) == 1 else None)
    if not images:
        texts = [each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_large_string(each.type)]
        order = [*(name for name in PATHS if name in texts), *texts]
        found = next((name for name in order if _names_images(file, name)), None)
    if found is None:
        raise UserError(
            f"{file} has no image column: a struct with bytes named {' or '.join(CONTENTS)}, or paths of images named "
            f"{PATHS[0]}; its columns are {', '.join(schema.names)}"
        )
    return found


def embeds(column: "pa.ChunkedArray") -> bool:
    """Whether a column holds images, not only their paths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type):
        return holds_images(column.type)
    return bool(
        "path" not in _fields(column)
        or pc.struct_field(column, "bytes").null_count < len(column)
        or pc.struct_field(column, "path").null_count
    )


def own_names(column: "pa.ChunkedArray") -> list[str | None]:
    """What a column of contents calls each image."""
    import pyarrow.compute as pc

    has_names = "path" in _fields(column)
    return pc.struct_field(column, "path").to_pylist() if has_names else [None] * len(column)


def paths(file: Path, column: "pa.ChunkedArray", name: str) -> list[str]:
    """Where the images are that a column of paths names.

    Raises:
        UserError: A row names none.
    """
    import pyarrow.compute as pc

    column = pc.struct_field(column, "path") if _fields(column) else column
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{file}: row {row} of column {name!r} names no image: fill it in, or remove the row")
    return [os.path.normpath(file.parent / str(path)) for path in column.to_pylist()]


def named_files(base: Path, found: Iterable[str]) -> list[ImageFile]:
    """Files by their paths, called by what follows the table's folder, or the folder that all are in."""
    every = list(found)
    below = all(Path(path).is_relative_to(base) for path in every)
    start = base if below or not every else os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in every])
    return listed((Path(os.path.relpath(path, start)).as_posix(), path) for path in every)


def images_named_in(base: Path, files: Iterable[Path]) -> list[ImageFile]:
    """The images that tables name, each once; none where the tables hold their images themselves."""
    every: dict[str, None] = {}
    for file in files:
        name = image_column(read_schema(file), file)
        column = read_columns(file, [name])[name]
        if not embeds(column):
            every |= dict.fromkeys(paths(file, column, name))
    return named_files(base, every)


def _fields(column: "pa.ChunkedArray") -> list[str]:
    import pyarrow as pa

    return [field.name for field in column.type] if pa.types.is_struct(column.type) else []


def _names_images(file: Path, column: str) -> bool:
    """Whether the first text of a column is an image's path."""
    first = read_columns(file, [column])[column].slice(0, 1).to_pylist()
    text = str(first[0] or "") if first else ""
    return bool(text) and (Path(text).suffix.lower() in IMAGES or (file.parent / text).is_file())
