"""Which images a function of the Python API is given. Torch-free."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.errors import UserError, near

Data: TypeAlias = str | PathLike[str] | Mapping[str, Any]


def data_options(data: Data | None) -> dict[str, Any]:
    """Options of images from the name of a set, the path of someone's own, or such options.

    A path is a folder of images, or, where parquet files lie in it or it is one, shards in Hugging Face's layout.

    Raises:
        UserError: No set has that name and nothing is at that path.
    """
    if data is None:
        return {}
    if isinstance(data, Mapping):
        return dict(data)
    text = str(data)
    if isinstance(data, str) and text in CATALOGUE:
        return {"name": text}
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"no data set and no folder {text!r}{near(text, CATALOGUE)} (ssl_bench.list_datasets())")
    parquet = path.suffix == ".parquet" or any(next(p.glob("*.parquet"), None) for p in (path, path / "data"))
    return {"name": "parquet" if parquet else "folder", "root": str(path)}
