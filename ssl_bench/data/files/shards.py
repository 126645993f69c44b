"""Which parquet files hold which split. Torch-free."""

import re
from pathlib import Path

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.digests import digests_of
from ssl_bench.data.files.listing import ImageFile, is_system, listed
from ssl_bench.errors import UserError

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "val")}


def find_shards(options: DataOptions) -> tuple[Path, dict[str, list[Path]]]:
    """The folder that file names begin at, and split -> its files, in order.

    Raises:
        UserError: No such files, or shards are missing.
    """
    if options.root is None:
        raise UserError("--data parquet needs --data.root: a parquet file, or the folder of train-*.parquet")
    root = Path(options.root).expanduser()
    if root.is_file():
        return root.parent, {"train": [root]}
    if not root.is_dir():
        raise UserError(f"no file or folder {root}: --data.root says where the parquet files are")
    for folder in (root, root / "data"):
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.parquet")):
            start = re.split(r"[-.]", file.name)[0]
            for split, names in SPLITS.items():
                if start in names and not is_system(file.name):
                    found.setdefault(split, []).append(file)
        for files in found.values():
            _complete(files)
        if "train" in found:
            return folder, found
    raise UserError(f"no train-*.parquet in {root} or {root / 'data'}: --data.root is their folder, or a single file")


def digests_of_shards(base: Path, split: str, files: list[Path]) -> tuple[list[ImageFile], list[str]]:
    """A split's files as they are on the disk, and the hash of each one's content."""
    known = listed((file.name, str(file)) for file in files)
    return known, digests_of(base, known, f"{split}/{files[0].name}")


def _complete(files: list[Path]) -> None:
    """Refuse `train-00000-of-00005.parquet` without its four siblings."""
    counts = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.name))}
    if counts and counts != {len(files)}:
        raise UserError(f"{len(files)} of {max(counts)} shards like {files[0]}: fetch the rest, or rename the files")
