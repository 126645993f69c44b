"""Data sets of the Hugging Face hub, through `datasets`: what it has fetched lies in its cache as Arrow files."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.config.options import DataOptions
from ssl_bench.errors import UserError


def hub_shards(options: DataOptions, splits: Mapping[str, Sequence[str]]) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of the cache, and split -> its files; fetched where they are not there yet.

    Args:
        options: `root` is the data set's name, ORG/NAME or ORG/NAME/CONFIG; or a folder that `datasets` can load.
        splits: Split -> what it may be called.

    Raises:
        UserError: There is no such data set, or it cannot be fetched.
    """
    name, config = repository(options.root)
    opened = _opened(name, config)
    found: dict[str, list[Path]] = {}
    for split, names in splits.items():
        part = next((opened[known] for known in names if known in opened), None)
        if part is not None and part.cache_files:
            found[split] = [Path(file["filename"]) for file in part.cache_files]
    if "train" not in found:
        raise UserError(f"--data hf:{options.root} has no split train (its splits: {', '.join(map(str, opened))})")
    return found["train"][0].parent, found


def repository(root: str | None) -> tuple[str, str | None]:
    """Name and configuration of a data set.

    Raises:
        UserError: It is no such name.
    """
    text = (root or "").strip("/") if not Path(root or "").expanduser().is_absolute() else str(root).rstrip("/")
    if not text:
        raise UserError("--data hf: needs a name: hf:ORG/NAME, or hf:ORG/NAME/CONFIG")
    place = Path(text).expanduser()
    if place.is_dir():
        return str(place), None
    if place.parent != Path() and place.parent.is_dir():
        return str(place.parent), place.name
    parts = text.split("/")
    if len(parts) > 3 or not all(parts):
        raise UserError(f"--data hf:{text}: hf:ORG/NAME, or hf:ORG/NAME/CONFIG")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _opened(name: str, config: str | None) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError:
        raise UserError("--data hf: needs the package datasets: pip install 'ssl-bench[data]'") from None
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            found: Mapping[str, Any] = datasets.load_dataset(name, config)
    except Exception as error:  # of datasets, the hub, requests or the disk
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--data hf:{name}{f'/{config}' if config else ''}: {why}") from None
    return found
