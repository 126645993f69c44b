"""What a run's images are, whatever path leads to them. Torch-free.

The content of someone's own images is a hash of every file's name and bytes; the named sets of the catalogue are known
by their names. So the same folder by another path, a copy of it, or a folder that was moved is the same run's, and a
folder in which an image was replaced is another's.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.data.files.arrays import array_files
from ssl_bench.data.files.digests import digests_of
from ssl_bench.data.files.image_column import images_named_in
from ssl_bench.data.files.imagenet_subsets import imagenet100_classes
from ssl_bench.data.files.layout import read_layout
from ssl_bench.data.files.listing import ImageFile, find_images, is_system, listed, written_name
from ssl_bench.data.files.shards import SUFFIXES, TABLES, digests_of_shards, find_shards
from ssl_bench.errors import UserError
from ssl_bench.records.decoding import read_record
from ssl_bench.records.files import write_json
from ssl_bench.records.run import read_run
from ssl_bench.records.run_folder import OWN, identity, run_folder
from ssl_bench.runtime.collection import uncollected

IMAGES_FILE = "images.json"  # in a run's folder: what its images were when it began


@dataclass(frozen=True)
class Content:
    """Someone's own images.

    Args:
        root: Real path of the folder or file.
        digest: 16 hex digits.
        folders: Folder (or parquet file) below the root -> how many files it holds, and the hash of their content.
    """

    root: str
    digest: str
    folders: dict[str, tuple[int, str]]


@final
@dataclass(frozen=True)
class _Remembered:
    """What a run's folder says of its images.

    Args:
        rest: A hash of all else that makes it this run.
        root: As `Content` has it.
        digest: Likewise.
        folders: Likewise.
    """

    rest: str
    root: str
    digest: str
    folders: dict[str, tuple[int, str]]


@uncollected()
def content_of(options: DataOptions) -> Content | None:
    """The content of someone's own images; None for a set of the catalogue, which its name identifies.

    Raises:
        UserError: There are no such images.
    """
    if options.name == "imagenet100" and options.root:  # of which there are several choices of classes
        root = Path(options.root).expanduser()
        classes = _sha256("\n".join(imagenet100_classes(root))) if root.is_dir() else ""
        return Content(os.path.realpath(root), classes[:16], {"": (100, classes)})
    if options.name not in OWN:
        return _of_plug_in(options) if options.name not in CATALOGUE and options.root else None
    if options.name == "folder":
        layout = read_layout(options)
        rows = list(zip(layout.files, digests_of(layout.root, layout.files), strict=True))
    elif options.name == "array":
        base, files = array_files(options)
        known = listed((path.relative_to(base).as_posix(), str(path)) for path in files)
        rows = list(zip(known, digests_of(base, known, "arrays"), strict=True))
    elif options.name == "image-masks":
        found = find_images(str(Path(options.root or "").expanduser()))
        rows = list(zip(found.files, digests_of(Path(options.root or "").expanduser(), found.files), strict=True))
    else:
        base, shards = find_shards(options)
        parts = (digests_of_shards(base, split, paths) for split, paths in shards.items())
        rows = [row for known, hashes in parts for row in zip(known, hashes, strict=True)]
        if options.name in TABLES:
            named = images_named_in(base, (file for files in shards.values() for file in files))
            rows += zip(named, digests_of(base, named, "images"), strict=True)
    return _content(Path(options.root or "").expanduser(), rows)


def _of_plug_in(options: DataOptions) -> Content | None:
    """All files at the root of a set that a plug-in reads; None where nothing is there."""
    root = Path(options.root or "").expanduser()
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    base = root.parent if root.is_file() else root
    files = listed((path.relative_to(base).as_posix(), str(path)) for path in paths if not is_system(path.name))
    return _content(root, list(zip(files, digests_of(base, files, "plug-in"), strict=True))) if files else None


def _content(root: Path, rows: list[tuple[ImageFile, str]]) -> Content:
    lines: dict[str, list[str]] = {}
    for file, digest in sorted(rows):
        lines.setdefault(_group(file), []).append(f"{file.name}\0{digest}\n")
    groups = {written_name(folder): (len(own), _sha256("".join(own))) for folder, own in lines.items()}
    whole = _sha256(json.dumps(groups, sort_keys=True))
    return Content(os.path.realpath(root), whole[:16], groups)


def folder_of_run(runs: Path, config: dict[str, Any], known: "dict[DataOptions, Content | None] | None" = None) -> Path:
    """The folder of the run of a configuration: where it is already, or where it will be.

    Args:
        runs: Where run folders live.
        config: Of the run.
        known: Contents that were looked at before, for many runs on the same images; this one is added.

    Raises:
        UserError: Its images are not there.
    """
    options, seen = DataOptions(**config["data"]), {} if known is None else known
    if options not in seen:
        seen[options] = content_of(options)
    return find_run_folder(runs, config, seen[options])


def find_run_folder(runs: Path, config: dict[str, Any], content: Content | None) -> Path:
    """The same for images whose content is known."""
    folder = run_folder(runs, config, content.digest if content else None)
    if content is None or (folder / "run.json").exists():
        return folder
    mark = folder.name[-len("-01234567") :]  # the same images were called something else
    others = (found for found in runs.glob(f"*{mark}") if (found / "run.json").exists())
    return min(others, default=folder)


def refuse_changed_images(folder: Path, config: dict[str, Any], content: Content | None) -> None:
    """Refuse to begin a run anew because images of an unfinished one were added, changed or removed.

    Args:
        folder: Where the run of these images will be.
        config: Of the run.
        content: Of its images.

    Raises:
        UserError: There is a checkpoint of the same configuration on other images of the same folder.
    """
    if content is None or (folder / "run.json").exists():
        return
    for known, earlier in _earlier(folder, config):
        if known.root != content.root:
            continue
        if read_run(earlier).status == "finished":
            say(f"{content.root} has changed since {earlier} ({_difference(known, content)}): this is another run")
        elif (earlier / "checkpoints" / "last.ckpt").exists():
            raise UserError(
                f"{content.root} has changed since {earlier} stopped: {_difference(known, content)}; restore the "
                f"images to continue that run, or move its folder away (or name another --runs) to start a new one"
            )


def remember_content(folder: Path, config: dict[str, Any], content: Content | None) -> None:
    """Write down in a run's folder what its images are."""
    if content is not None:
        write_json(folder / IMAGES_FILE, {"rest": _rest(config), **asdict(content)})


def _earlier(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Content, Path]]:
    """Runs beside a folder with the same configuration but for their images."""
    for path in sorted(folder.parent.glob(f"*/{IMAGES_FILE}")):
        try:
            known = read_record(_Remembered, path)
        except UserError:
            continue  # it names no images that can be compared
        if known.rest == _rest(config) and (path.parent / "run.json").exists():
            yield Content(known.root, known.digest, known.folders), path.parent


def _rest(config: dict[str, Any]) -> str:
    return identity(config, "")


def _difference(before: Content, now: Content) -> str:
    """Which folder of images changed first, and how many others did."""
    odd = [f for f in sorted({*before.folders, *now.folders}) if _row(before, f) != _row(now, f)]
    then, since = (_row(content, odd[0])[0] for content in (before, now))
    what = f"it had {then} files, now {since}" if then != since else f"of its {since} files some have other content"
    more = f" (and {len(odd) - 1} more folders)" if len(odd) > 1 else ""
    return f"{odd[0] or 'the folder'}: {what}{more}"


def _row(content: Content, folder: str) -> list[Any]:
    return list(content.folders.get(folder, (0, "")))


def _group(file: ImageFile) -> str:
    return file.name if file.name.endswith(SUFFIXES) else file.name.rpartition("/")[0]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
