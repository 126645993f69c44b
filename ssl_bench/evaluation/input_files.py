"""The files that a result was made from, and what was found in them. Torch-free.

`features/inputs.json` holds, for each network of a run and each data set that it was evaluated on, a digest of their
files and what evaluation found in these: hash and geometry of the network, fingerprint and splits of the images. As
long as the digests are the same, so is what was found, and nothing need be loaded to know it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ssl_bench
from ssl_bench.config.options import DataOptions
from ssl_bench.data.catalogue import CATALOGUE, TORCHVISION, default_root, entry_of
from ssl_bench.data.files.left_out import read_left_out
from ssl_bench.errors import UserError
from ssl_bench.evaluation.targets import Target, images
from ssl_bench.records.decoding import read_record
from ssl_bench.records.files import open_regular, write_json
from ssl_bench.records.result import SplitRecord
from ssl_bench.records.run import DataRecord

MOST = 300_000  # files that are looked at: reading their sizes and times takes a second or two
SOFTWARE = ("torch", "timm", "numpy", "pillow", "scikit-learn")  # what makes networks and images


@dataclass(frozen=True)
class NetworkInput:
    """A network, as a result records it.

    Args:
        files: Digest of its files.
        backbone: Hash of the architecture and the weights.
        geometry: How an image becomes its input.
    """

    files: str
    backbone: str
    geometry: dict[str, Any]


@dataclass(frozen=True)
class ImagesInput:
    """Images, as a result records them, and the networks that were evaluated on them.

    Args:
        files: Digest of their files.
        data: Title and fingerprint.
        splits: train, validation, test.
        networks: Branch -> network.
        refusals: Digest of all that decides it -> why a protocol cannot be run on a network.
    """

    files: str
    data: DataRecord
    splits: dict[str, SplitRecord]
    networks: dict[str, NetworkInput] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """All that a run's results were made from.

    Args:
        images: Digest of the data options -> images.
    """

    images: dict[str, ImagesInput] = field(default_factory=dict)


def digest_of(*parts: Any) -> str:
    """sha256 of plain values and of the software that reads them."""
    software = {name: version(name) for name in SOFTWARE}
    return hashlib.sha256(json.dumps([ssl_bench.__version__, software, *parts], sort_keys=True).encode()).hexdigest()


def network_files(target: Target, branch: str, default_branch: str) -> str | None:
    """Digest of a network's files, or of a baseline's options; None where a file is missing."""
    if target.folder is None:
        given = {name: value for name, value in (target.backbone or {}).items() if value is not None}
        return digest_of(target.baseline, given, target.seed)
    weights = "backbone.safetensors" if branch in (default_branch, "encoder") else f"backbone-{branch}.safetensors"
    files = [target.folder / weights, target.folder / "backbone.json", *sorted(target.folder.glob("classifier*"))]
    try:
        return digest_of([[file.name, _sha256(file)] for file in files])
    except OSError:
        return None


def images_files(options: DataOptions) -> str | None:
    """Digest of names, sizes and times of the files that the images come from; None where that cannot be said."""
    entry = entry_of(options.name)
    if entry is None or (options.name not in CATALOGUE and not options.root):
        return None  # a plug-in alone knows what its images are made from
    if entry.loader == TORCHVISION or options.root:
        root = Path(options.root).expanduser() if options.root else default_root()
        try:
            listed = _listing(root)
        except OSError:
            return None
        return None if listed is None else digest_of(images(options), options.strict, listed)
    return digest_of(images(options), options.strict)


def with_left_out(files: str | None, run_dir: Path) -> str | None:
    """A digest of images' files, less those that a run leaves out because they are broken."""
    return None if files is None else digest_of(files, sorted(read_left_out(run_dir)))


def read_inputs(run_dir: Path) -> Inputs:
    """What is known of a run's inputs; nothing if the file is damaged, which costs time alone."""
    try:
        return read_record(Inputs, _path(run_dir))
    except UserError:
        return Inputs()


def write_inputs(run_dir: Path, data: DataOptions, found: ImagesInput) -> None:
    """Remember what was found, beside what is known of the same images."""
    known = read_inputs(run_dir).images
    before = known.get(images_key(data))
    if before is not None and (before.files, before.data, before.splits) == (found.files, found.data, found.splits):
        networks, refusals = before.networks | found.networks, before.refusals | found.refusals
        found = replace(found, networks=networks, refusals=refusals)
    try:
        write_json(_path(run_dir), asdict(Inputs(known | {images_key(data): found})))
    except OSError:
        return  # a full or read-only disk: the next command loads networks and images to know


def images_key(data: DataOptions) -> str:
    """Which images are asked for, by their options alone."""
    return hashlib.sha256(json.dumps(images(data)).encode()).hexdigest()


def refusal_key(protocol: str, number: int, options: dict[str, Any], files: str) -> str:
    """All that decides, on some images, whether a protocol of this version can be run on a network."""
    return digest_of(protocol, number, json.loads(json.dumps(options)), files)


def _path(run_dir: Path) -> Path:
    return run_dir / "features" / "inputs.json"


def _sha256(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _listing(root: Path) -> str | None:
    """Digest of all files at or below a path; None if there are too many to look at.

    The time of a file's last change of any kind is a part of it, which no program sets.
    """
    digest = hashlib.sha256()
    found = _stats(str(root), "", set()) if root.is_dir() else iter([("", os.stat(root))])
    for count, (name, about) in enumerate(found):
        if count == MOST:
            return None
        size_and_times = f"\0{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\0"
        digest.update(os.fsencode(name) + size_and_times.encode())
    return digest.hexdigest()


def _stats(folder: str, below: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Path within the root and state of each file, in order; links are followed, but each folder is entered once."""
    about = os.stat(folder)
    if (about.st_dev, about.st_ino) in seen:
        return
    seen.add((about.st_dev, about.st_ino))
    with os.scandir(folder) as entries:
        for found in sorted(entries, key=lambda found: found.name):
            name = f"{below}/{found.name}"
            if found.is_dir():
                yield from _stats(found.path, name, seen)
            elif found.is_file():
                yield name, found.stat()
