"""What someone's own images are, by what lies at their path: which set of the catalogue reads them. Torch-free.

`--data photos/` is short for `--data folder --data.root photos/`, and likewise for the other layouts. `--data
hf:ORG/NAME` is a data set of the Hugging Face hub.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_bench.config.constraints import local_path
from ssl_bench.data.catalogue import entry_of, names
from ssl_bench.data.files.columnar import IMAGES, embeds_images
from ssl_bench.errors import UserError, near

HUB = "hf:"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # Hugging Face's imagefolder
TABLES = (".csv", ".tsv", ".jsonl")
ARRAYS = (".npy", ".npz")
ZARR = ("zarr.json", ".zgroup", ".zarray")
SPLIT_FOLDERS = ("train", "test", "val", "validation", "valid")


def located(options: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options in which a path, or a name on the hub, stands no longer in place of a data set's name.

    Args:
        options: `data.name` may be such; names of the catalogue come first.

    Raises:
        UserError: Nothing is at that path, what is there holds no images, or `data.root` names another.
    """
    name = options.get("data.name")
    if not isinstance(name, str) or entry_of(name) is not None or not (name.startswith(HUB) or is_path(name)):
        return dict(options)
    if options.get("data.root") is not None:
        raise UserError(
            f"--data {name} and --data.root {options['data.root']} both say where images are: leave one out"
        )
    kind, root = data_at(name)
    return {**options, "data.name": kind, "data.root": root}


def is_path(text: str) -> bool:
    """Whether this can only be meant as a path: it looks like one, or something is there."""
    return "/" in text or text.startswith(("~", ".")) or bool(Path(text).suffix) or Path(text).exists()


def data_at(text: str) -> tuple[str, str]:
    """The name of the catalogue, and the root, of the images at a path or behind `hf:`.

    Raises:
        UserError: Nothing is there, or nothing that holds images.
    """
    if text.startswith(HUB):
        return "hf", text.removeprefix(HUB)
    try:
        path = Path(local_path(text))
    except ValueError as error:
        raise UserError(f"--data {text} {error}") from None
    if not path.exists():
        raise UserError(f"no data set and no folder {text!r}{near(text, names())} (ssl-bench list data)")
    return (_of_folder(path) if path.is_dir() else _of_file(path)), str(path)


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return "table"
    if suffix == ".parquet":
        return "parquet" if embeds_images(path) else "table"
    if suffix == ".tar":
        return "webdataset"
    if suffix in ARRAYS:
        return "array"
    if suffix == ".arrow":
        return "arrow"
    if suffix in IMAGES:
        raise UserError(f"{path} is one image: --data is the folder that holds the images")
    if re.search(r"\.(zip|tgz|tar\.\w+|gz|7z|rar|zst)$", path.name, re.IGNORECASE):
        raise UserError(f"{path} is compressed: unpack it, and give the folder (a plain .tar may stay as it is)")
    known = ", ".join([*TABLES, ".parquet", ".arrow", ".tar", *ARRAYS])
    raise UserError(f"{path} is no kind of file that holds images ({known}), and no folder of them")


def _of_folder(path: Path) -> str:
    """By the first of these that is there; a folder with nothing of the kind is one of image files."""
    if path.suffix == ".zarr" or any((path / name).exists() for name in ZARR):
        return "array"
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return "arrow"
    places = [path, *(path / name for name in SPLIT_FOLDERS)]
    if any((place / name).exists() for place in places for name in METADATA):
        return "table"
    if shard := next((s for p in (path, path / "data") for s in sorted(p.glob("*.parquet"))), None):
        return "parquet" if embeds_images(shard) else "table"
    if any(path.glob("*.tar")):
        return "webdataset"
    if any(path.glob("*.arrow")):
        return "arrow"
    if any(True for suffix in ARRAYS for _ in path.glob(f"*{suffix}")):
        return "array"
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return "image-masks"
    return "folder"
