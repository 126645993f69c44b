"""Which files hold which split of a set that lies in columns or in tars. Torch-free."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.digests import digests_of
from ssl_bench.data.files.hub import hub_shards
from ssl_bench.data.files.listing import ImageFile, is_system, listed
from ssl_bench.errors import UserError

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "val")}
WANTED = {
    "parquet": "a parquet file, or the folder of train-*.parquet",
    "arrow": "the folder that save_to_disk wrote",
    "table": "a table of paths and labels, or the folder of metadata.csv",
    "webdataset": "a tar, or the folder of train-*.tar",
}
TABLES = ("arrow", "table", "hf")  # sets whose images may lie beside the files that name them
SUFFIXES = (".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".tar")  # of files that hold many images, or name them
Shards: TypeAlias = dict[str, list[Path]]  # split -> its files, in order


def find_shards(options: DataOptions) -> tuple[Path, Shards]:
    """The folder that file names begin at, and split -> its files, in order.

    Raises:
        UserError: No such files, or shards are missing.
    """
    if options.name == "hf":
        return hub_shards(options, SPLITS)
    if options.root is None:
        raise UserError(f"--data {options.name} needs --data.root: {WANTED[options.name]}")
    root = Path(options.root).expanduser()
    if root.is_file():
        return root.parent, {"train": [root]}
    if not root.is_dir():
        raise UserError(f"no file or folder {root}: --data.root says where the {options.name} files are")
    finders: dict[str, Callable[[Path], tuple[Path, Shards]]] = {
        "parquet": _parquet,
        "arrow": _saved_to_disk,
        "table": _tables,
        "webdataset": _tars,
    }
    return finders[options.name](root)


def _parquet(root: Path) -> tuple[Path, Shards]:
    for folder in (root, root / "data"):
        files = [file for file in sorted(folder.glob("*.parquet")) if not is_system(file.name)]
        found = _by_split(files, lambda file: re.split(r"[-.]", file.name)[:1])
        if files and not found:  # 0000.parquet
            found = {"train": files}
        for each in found.values():
            _complete(each)
        if "train" in found:
            return folder, found
    raise UserError(f"no train-*.parquet in {root} or {root / 'data'}: --data.root is their folder, or a single file")


def _tars(root: Path) -> tuple[Path, Shards]:
    files = [file for file in sorted(root.glob("*.tar")) if not is_system(file.name)]
    found = _by_split(files, lambda file: re.split(r"[-_.]", file.name)) or {"train": files}
    if not found.get("train"):
        raise UserError(f"no train-*.tar in {root}: --data.root is the folder of the tars, or a single one")
    return root, found


def _tables(root: Path) -> tuple[Path, Shards]:
    """`metadata.csv` in the folder or in each split's, or `train.csv` and `test.csv`; or the only table there is."""
    for suffix in (".csv", ".jsonl", ".parquet"):
        if (root / f"metadata{suffix}").is_file():
            return root, {"train": [root / f"metadata{suffix}"]}
        parts = sorted(root.glob(f"*/metadata{suffix}"))
        found = _by_split(parts, lambda file: [file.parent.name])
        if "train" in found:
            return root, found
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        files = [file for file in sorted(root.glob(f"*{suffix}")) if not is_system(file.name)]
        found = _by_split(files, lambda file: re.split(r"[-_.]", file.name))
        if "train" in found or len(files) == 1:
            return root, found if "train" in found else {"train": files}
    raise UserError(f"no metadata.csv in {root} or {root / 'train'}: --data.root is its folder, or a single table")


def _saved_to_disk(root: Path) -> tuple[Path, Shards]:
    """What `datasets` wrote: a folder for each split, or one alone."""
    if (root / "dataset_dict.json").exists():
        parts = [folder for folder in sorted(root.iterdir()) if (folder / "state.json").is_file()]
        found = {split: _saved_files(folders[0]) for split, folders in _by_split(parts, lambda f: [f.name]).items()}
        if "train" not in found:
            there = ", ".join(folder.name for folder in parts) or "none"
            raise UserError(f"{root} has no split train (its splits: {there}): --data.root may be that of one of them")
        return root, found
    if (root / "state.json").is_file():
        return root, {"train": _saved_files(root)}
    files = sorted(root.glob("*.arrow"))
    if not files:
        raise UserError(f"{root} holds no dataset_dict.json, state.json or *.arrow: it is not what save_to_disk wrote")
    return root, _by_split(files, lambda file: re.split(r"[-_.]", file.name)) or {"train": files}


def _saved_files(folder: Path) -> list[Path]:
    state = folder / "state.json"
    try:
        files = [folder / Path(entry["filename"]).name for entry in json.loads(state.read_text())["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{state} is damaged: save_to_disk once more") from None
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, which {state} names: copy it there, or save_to_disk once more")
    if not files:
        raise UserError(f"{state} names no files: the split is empty")
    return files


def _by_split(files: list[Path], words: Callable[[Path], list[str]]) -> Shards:
    """Files whose words say of which split they are."""
    found: Shards = {}
    for file in files:
        own = {split for word in words(file) for split, names in SPLITS.items() if word in names}
        if own:
            found.setdefault(min(own, key=list(SPLITS).index), []).append(file)
    return found


def digests_of_shards(base: Path, split: str, files: list[Path]) -> tuple[list[ImageFile], list[str]]:
    """A split's files as they are on the disk, and the hash of each one's content."""
    names = [file.relative_to(base).as_posix() if file.is_relative_to(base) else file.name for file in files]
    known = listed(zip(names, map(str, files), strict=True))
    return known, digests_of(base, known, f"{split}/{files[0].name}")


def _complete(files: list[Path]) -> None:
    """Refuse `train-00000-of-00005.parquet` without its four siblings."""
    counts = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.name))}
    if counts and counts != {len(files)}:
        raise UserError(f"{len(files)} of {max(counts)} shards like {files[0]}: fetch the rest, or rename the files")
