"""Which images a function of the Python API is given. Torch-free."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeAlias

from ssl_bench.data.catalogue import entry_of
from ssl_bench.data.files.location import data_at

Data: TypeAlias = str | PathLike[str] | Mapping[str, Any]


def data_options(data: Data | None) -> dict[str, Any]:
    """Options of images from the name of a set, the path of someone's own, or such options.

    What a path is, is found out by what lies there; `hf:ORG/NAME` is a data set of the Hugging Face hub.

    Raises:
        UserError: No set has that name and nothing is at that path, or nothing that holds images.
    """
    if data is None:
        return {}
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, str) and entry_of(data) is not None:
        return {"name": data}
    name, root = data_at(str(data))
    return {"name": name, "root": root}
