"""WebDataset tars: files whose names are equal up to the first dot are one sample, `0001.jpg` and `0001.cls`, say.

Images stay in the tars, each read where it lies when it is asked for; in what order does not matter.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.arrays import NONE
from ssl_bench.data.files.digests import read_whole
from ssl_bench.data.files.listing import written_name
from ssl_bench.data.files.shards import digests_of_shards, find_shards
from ssl_bench.data.files.tars import Member, images_of, read_member, samples
from ssl_bench.data.packed import Packed
from ssl_bench.data.pool import Source
from ssl_bench.data.sources.rows import Rows, source_of
from ssl_bench.data.sources.table_labels import USUAL, Labels, Value, joined
from ssl_bench.errors import UserError, near

CLASS = "cls"  # the ending of a file with a class's number or name
LOOKED_AT = 100  # samples of the first tar
NO_IMAGE = "a sample without an image"


@final
class TarBytes(Packed[bytes]):
    """Files inside tars.

    Args:
        tars: Paths.
        which: (N,) the tar of each.
        starts: (N,) its first byte in there.
        sizes: (N,) how many bytes.
        rows: Which of them; all when not given.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        which: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> None:
        self.tars, self.which, self.starts, self.sizes = tars, which, starts, sizes
        self.rows = np.arange(len(which)) if rows is None else rows

    def element(self, row: int) -> bytes:
        return read_member(self.tars[self.which[row]], Member(int(self.starts[row]), int(self.sizes[row])))

    def take(self, rows: np.ndarray) -> "TarBytes":
        return TarBytes(self.tars, self.which, self.starts, self.sizes, self.rows[rows])


def load(options: DataOptions) -> Source:
    """The images of the tars under `root`, or of the one that `root` is.

    Raises:
        UserError: No such files, damaged ones, or labels that cannot be told.
    """
    base, shards = find_shards(options)
    label = options.label_column
    if label is None:
        label = _label(shards["train"][0])
    splits = {split: _read(base, split, tars, label) for split, tars in shards.items()}
    remedy = "its samples have no .cls file, and no label in a .json file; --data.label_column names a field of those"
    return source_of(options, splits, "files", remedy)


def _label(tar: Path) -> str:
    """What holds the labels: the ending `cls`, or a field of the JSON; nothing is chosen among several."""
    fields: set[str] = set()
    for _, files in itertools.islice(samples(tar), LOOKED_AT):
        fields |= {CLASS} if CLASS in files else set()
        described = _json(tar, files)
        fields |= {name for name in USUAL if isinstance(described, dict) and name in described}
    if len(fields) > 1:
        several = ", ".join(sorted(fields))
        raise UserError(f"{tar} has several labels for a sample ({several}): --data.label_column names one, or none")
    return next(iter(fields), NONE)


def _read(base: Path, split: str, tars: list[Path], label: str) -> Rows:
    known, hashes = digests_of_shards(base, split, tars)
    ids: list[str] = []
    digests: list[str] = []
    places: list[tuple[int, int, int]] = []
    left_out: dict[str, str] = {}
    labels: list[Labels] = []
    for number, (tar, digest) in enumerate(zip(tars, hashes, strict=True)):
        values: list[Value | None] = []
        for name, files in samples(tar):
            images = images_of(files)
            if not images:
                left_out[written_name(f"{tar.name}/{name}")] = NO_IMAGE
                continue
            if len(images) > 1:
                raise UserError(f"{tar}: sample {name} has several images ({', '.join(images)}): keep one of them")
            image = files[images[0]]
            digests.append(f"{digest}-{len(values)}")
            ids.append(written_name(f"{tar.name}/{name}"))
            places.append((number, image.start, image.size))
            values.append(None if label == NONE else _value(tar, name, files, label))
        if label != NONE:
            labels.append(_labels(tar, values))
    if not ids:
        raise UserError(f"no images in {tars[0]}")
    which, starts, sizes = np.array(places, dtype=np.int64).T
    found = joined(tars, labels) if labels else None
    return Rows(ids, TarBytes(tars, which, starts, sizes), digests, read_whole(known), found, left_out)


def _labels(tar: Path, values: list[Value | None]) -> Labels:
    told = [value for value in values if value is not None]
    if not told or all(value == -1 for value in told):
        return Labels(None, ())
    if len(told) < len(values):
        raise UserError(f"{tar}: {len(values) - len(told)} of {len(values)} samples have no label: remove them")
    if len({type(value) for value in told}) > 1:
        told = [str(value) for value in told]
    return Labels(told, ())


def _value(tar: Path, name: str, files: dict[str, Member], label: str) -> Value | None:
    """A sample's label, by the ending of a file or a field of its JSON."""
    if label in files:
        text = read_member(tar, files[label]).decode(errors="replace").strip()
        return int(text) if text.lstrip("-").isdecimal() else text or None
    described = _json(tar, files)
    if not isinstance(described, dict) or label not in described:
        endings = [*files, *(described if isinstance(described, dict) else ())]
        if label == CLASS or label in USUAL:
            return None
        raise UserError(f"--data.label_column: sample {name} of {tar} has no {label!r}{near(label, endings)}")
    value = described[label]
    if isinstance(value, list | dict):
        raise UserError(
            f"{tar}: {label!r} of sample {name} holds several labels, and evaluations score one class for each image: "
            "--data.label_column names another, or none"
        )
    return value if isinstance(value, int) and not isinstance(value, bool) else None if value is None else str(value)


def _json(tar: Path, files: dict[str, Member]) -> Any:
    if "json" not in files:
        return None
    try:
        return json.loads(read_member(tar, files["json"]))
    except (ValueError, RecursionError):
        raise UserError(f"{tar} holds a .json file that is none: remove it") from None
