"""The record: what a run was (`run.json`), what a protocol found (`results/*.json`), and what it predicted, per image.

Torch-free. Files appear whole or not at all. Unknown keys are ignored when reading: a record outlives its version.
"""

import dataclasses
import functools
import json
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from ssl_bench.errors import UserError
from ssl_bench.records.files import replacing, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interval: TypeAlias = tuple[float, float]
Status: TypeAlias = Literal["running", "finished", "failed", "interrupted"]
Kind: TypeAlias = Literal["pretrained", "baseline", "imported", "tokenizer"]
Record = TypeVar("Record")


@dataclass(frozen=True)
class DataRecord:
    """Which images.

    Args:
        title: Name of the data set, or of the folder.
        fingerprint: Counts, classes and `sha256` of the content.
    """

    title: str
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str]:
        """Title and eight characters of the content's hash."""
        return self.title, str(self.fingerprint.get("sha256", ""))[:8]


@dataclass(frozen=True)
class BackboneRecord:
    """Which architecture.

    Args:
        name: As the user named it.
        args: What overrides the name's own architecture, resolved: no entry is left to a default that may move.
        params: Weights, in units of one.
        gflops_per_image: Of a forward pass over one image, a multiply-add counted as two.
        tokens: That a ViT's blocks see; 0 for a network without.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    params: int = 0
    gflops_per_image: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class RunCost:
    """What pretraining took.

    Args:
        seconds: Wall clock, of all sessions of a resumed run.
        flops: Of all devices.
        peak_memory_bytes: Largest of the devices'.
        device: In words.
    """

    seconds: float = 0.0
    flops: float = 0.0
    peak_memory_bytes: int = 0
    device: str = ""


@dataclass(frozen=True)
class RunInfo:
    """`run.json`: what a run is and how far it came.

    Args:
        status: A run whose process was killed says running.
        kind: Baselines (`random`, `pixels`) were not pretrained and have no budget; a tokenizer has no features.
        method: As the user named it, `random` or `pixels`.
        data: The images it was pretrained on; those it was evaluated on, for a baseline.
        options: Its configuration, nested or dotted: what tells two runs of a method apart in a table.
        backbone: None for raw pixels and tokenizers.
        seed: Of the whole run.
        epochs: Passes over the images so far, a fraction if steps ended it; None when unknown.
        steps: Optimiser steps so far.
        views_per_image: Views of an image per pass, each weighted by its area relative to the largest.
        images_seen: Images drawn so far, however many views each gave.
        cost: Of pretraining.
        created: ISO 8601 with offset.
        finished: Likewise, when it ended.
        command: Arguments that start it again.
        version: Of ssl-bench.
        branch: Which of a method's networks speaks for it; empty where there is one.
        error: Last line of what went wrong.
    """

    status: Status
    kind: Kind
    method: str
    data: DataRecord
    options: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneRecord | None = None
    seed: int = 0
    epochs: float | None = None
    steps: int = 0
    views_per_image: float = 1.0
    images_seen: int = 0
    cost: RunCost = RunCost()
    created: str = ""
    finished: str | None = None
    command: list[str] = field(default_factory=list)
    version: str = ""
    branch: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Score:
    """An accuracy and its intervals.

    Args:
        value: In [0, 1]; of what was repeated, the mean.
        interval: 95 %, for new test images; and for new draws, where what was repeated was drawn at random.
        over_classes: 95 %, for new classes of the same kind too; None where there is one class only.
        repeats: What was repeated: `draws` at random, `conditions` that are all there are, or nothing.
    """

    value: float
    interval: Interval
    over_classes: Interval | None = None
    repeats: Literal["", "draws", "conditions"] = ""


@dataclass(frozen=True)
class SplitRecord:
    """Name and number of images of what was used as train, validation or test."""

    name: str
    count: int


@dataclass(frozen=True)
class Selected:
    """What was chosen, from what, and where.

    Args:
        grid: Option -> the values it was chosen from.
        chosen: Option -> chosen value.
        at_grid_boundary: Whether a chosen value lies at an end of its grid.
        boundary_tied: Whether the value next to that end is as accurate, where that was looked at.
        selected_on: Images it was chosen on: the validation split; the training images, by cross-validation or
            leave-one-out; none when nothing was chosen.
        selected_on_test: Whether those were the reported ones: an oracle's number, never ranked.
    """

    grid: dict[str, list[Any]] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    at_grid_boundary: bool = False
    selected_on: Literal["validation", "train", "none"] = "none"
    selected_on_test: bool = False
    boundary_tied: bool = False


@dataclass(frozen=True)
class EvaluationCost:
    """What an evaluation took: images through the backbone, FLOPs, wall-clock seconds, peak memory."""

    images: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Result:
    """`results/<protocol>.json`: one protocol on one run.

    Args:
        protocol: Its name.
        version: Of the protocol: numbers of different versions are not compared.
        options: Option -> value of its constructor.
        primary: The variant whose number is the protocol's; empty where it only diagnostics.
        value: Accuracy of the primary variant, in [0, 1]; None where it only diagnostics.
        interval: Its 95 % interval.
        n_test: Test images.
        data: The images evaluated on.
        splits: train, validation, test.
        variants: All variants, the primary included.
        selected: What was chosen, and where.
        curve: Named series over the fit.
        diagnostics: Name -> a number that describes the features and is never ranked.
        features: Kinds of features used.
        geometry: How an image became the backbone's input.
        branch: Which network of the method: encoder, online, teacher.
        backbone: Hash of the architecture and the weights.
        cost: Of the evaluation.
        software: Package -> version.
    """

    protocol: str
    version: int
    options: dict[str, Any]
    primary: str
    value: float | None
    interval: Interval | None
    n_test: int
    data: DataRecord
    splits: dict[str, SplitRecord] = field(default_factory=dict)
    variants: dict[str, Score] = field(default_factory=dict)
    selected: Selected = Selected()
    curve: dict[str, list[float]] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    geometry: dict[str, Any] = field(default_factory=dict)
    branch: str = ""
    backbone: str = ""
    cost: EvaluationCost = EvaluationCost()
    software: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.value is None) != (self.interval is None):
            raise ValueError(f"accuracy {self.value} with interval {self.interval}")
        own = [] if self.value is None or self.interval is None else [Score(self.value, self.interval)]
        for score in [*own, *self.variants.values()]:
            for interval in (score.interval, score.over_classes or score.interval):
                if not 0 <= interval[0] <= score.value <= interval[1] <= 1:
                    raise ValueError(f"accuracy {score.value} with interval {interval} is not in order within [0, 1]")


@dataclass(frozen=True)
class Predictions:
    """Classes that each variant gave to the test images.

    Args:
        ids: A name for each image.
        labels: Its class.
        variants: Variant -> a class per image; or of what was repeated, one such list after the other.
    """

    ids: Sequence[str]
    labels: "Sequence[int] | NDArray[Any]"
    variants: "Mapping[str, Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]]"


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    info: RunInfo
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Unread:
    """A record that cannot be read.

    Args:
        folder: Of its run.
        info: Of its run; None where that is what cannot be read.
        reason: Why; files are named as they are within the folder.
    """

    folder: Path
    info: RunInfo | None
    reason: str


def write_run(folder: Path, info: RunInfo) -> None:
    """Write `run.json`."""
    write_json(folder / "run.json", dataclasses.asdict(info))


def read_run(folder: Path) -> RunInfo:
    """Read `run.json`."""
    return _read(RunInfo, folder / "run.json")


def write_result(folder: Path, result: Result, predictions: Predictions) -> Path:
    """Write predictions, then the record, and give its path: where there is a record, there are its predictions."""
    stem = recorded_stem(folder, read_run(folder), result)
    _write_predictions(folder / "predictions" / f"{stem}.parquet", result.primary, predictions)
    path = folder / "results" / f"{stem}.json"
    write_json(path, dataclasses.asdict(result))
    return path


def predictions_path(folder: Path, info: RunInfo, result: Result) -> Path:
    """Where the predictions of a run's result are."""
    return folder / "predictions" / f"{recorded_stem(folder, info, result)}.parquet"


def recorded_stem(folder: Path, info: RunInfo, result: Result) -> str:
    """`result_stem`, with the images' hash (`knn@photos-1a2b3c4d`) where a result of others of that name has it."""
    stem = result_stem(info, result)
    longer = f"{stem}-{result.data.identity[1]}"
    if result.data.identity == info.data.identity:
        return stem  # pretraining's own images alone have no name in it
    if (folder / "results" / f"{longer}.json").is_file():
        return longer
    path = folder / "results" / f"{stem}.json"
    try:
        taken = path.is_file() and read_result(path).data.identity != result.data.identity
    except UserError:
        taken = False  # a damaged one may be written over
    return longer if taken else stem


def read_predictions(path: Path) -> Predictions:
    """Read the predictions of one result: of its primary variant, called `prediction`, as an array (R, N).

    Raises:
        UserError: There are none, or they are damaged.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with open(path, "rb") as file:
            source = pyarrow.parquet.ParquetFile(file)
            names = [name for name in source.schema_arrow.names if name.partition("#")[0] == "prediction"]
            table = source.read(columns=["id", "label", *names])
            # Arrow's own `to_numpy` imports pandas, which takes longer than all else here.
            labels, *rows = (np.from_dlpack(table.column(name).combine_chunks()) for name in ("label", *names))
            return Predictions(table.column("id").to_pylist(), labels, {"prediction": np.stack(rows)})
    except FileNotFoundError as error:
        raise UserError(f"no predictions in {path}: `ssl-bench evaluate {path.parent.parent}` makes them") from error
    except (pa.ArrowException, KeyError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged ({line}): delete it and evaluate its run again") from error


def result_stem(info: RunInfo, result: Result) -> str:
    """`knn`; `knn@cifar100` on data other than pretraining's; `knn.student` of another branch."""
    stem = result.protocol
    if info.branch and result.branch != info.branch:
        stem += f".{result.branch}"
    if result.data.identity != info.data.identity:
        stem += "@" + re.sub(r"[^\w.-]+", "_", result.data.title)
    return stem


def read_result(path: Path) -> Result:
    """Read one `results/*.json`."""
    return _read(Result, path)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run folders at or below the paths, each once, in order of name.

    Raises:
        UserError: A path is not there, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is no folder: name a run folder, or a folder of runs such as the one of --runs")
        below = sorted(_runs_below(path))
        if not below:
            raise UserError(f"no run in {path} (a run folder has a run.json): `ssl-bench fit` makes one")
        found.update((run.resolve(), run) for run in below)
    return list(found.values())


def load_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at or below the paths with their results."""
    return [_load(folder) for folder in find_runs(paths)]


def load_readable(paths: Iterable[Path]) -> tuple[list[Run], list[Unread]]:
    """The runs at or below the paths with those of their results that can be read, and what cannot.

    A run whose only results cannot be read is no run.

    Raises:
        UserError: As `find_runs`; or records are damaged, and without them no result is left.
    """
    runs, unread = [], []
    for folder in find_runs(paths):
        info, results, damaged = None, [], []
        try:
            info = read_run(folder)
        except UserError as error:
            damaged.append(str(error))
        for path in _result_files(folder) if info else ():
            try:
                results.append(read_result(path))
            except UserError as error:
                damaged.append(str(error))
        if info and (results or not damaged):
            runs.append(Run(folder, info, tuple(results)))
        unread += [Unread(folder, info, line.replace(f"{folder}{os.sep}", "")) for line in damaged]
    if unread and not any(run.results for run in runs):
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        raise UserError(f"no result can be read: {unread[0].folder}: {unread[0].reason}{more}")
    return runs, unread


def _load(folder: Path) -> Run:
    return Run(folder, read_run(folder), tuple(map(read_result, _result_files(folder))))


def _result_files(folder: Path) -> list[Path]:
    return sorted((folder / "results").glob("[!.]*.json"))


def _runs_below(folder: Path) -> Iterable[Path]:
    if (folder / "run.json").is_file():
        yield folder
        return
    with os.scandir(folder) as entries:
        below = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    for name in below:
        yield from _runs_below(folder / name)


def _write_predictions(path: Path, primary: str, predictions: Predictions) -> None:
    """A column per variant, the primary's called `prediction`; per repetition `prediction#0`, `prediction#1` ..."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    assert not primary or primary in predictions.variants, f"no predictions of the primary variant {primary}"
    assert not {"id", "label", "prediction"} & predictions.variants.keys(), "a variant has the name of a column"
    columns = {"id": pa.array(predictions.ids, pa.string()), "label": pa.array(predictions.labels, pa.int64())}
    for variant, labels in sorted(predictions.variants.items(), key=lambda item: item[0] != primary):
        name = "prediction" if variant == primary else variant
        repeated = len(labels) > 0 and np.ndim(labels) == 2
        for number, row in enumerate(labels if repeated else [labels]):
            columns[f"{name}#{number}" if repeated else name] = pa.array(row, pa.int64())
    with replacing(path) as temporary, open(temporary, "wb") as file:  # pyarrow opens no path that is not Unicode
        pyarrow.parquet.write_table(pa.table(columns), file, compression="zstd")


def _read(kind: type[Record], path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return kind(**_decode_fields(kind, value, ""))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # of json, of the encoding, of _decode
        raise UserError(f"{path} is damaged ({error}): delete it and run its command again") from error


@functools.cache
def _fields(kind: type) -> list[tuple[str, Any, bool]]:
    hints = get_type_hints(kind)
    missing = dataclasses.MISSING
    return [
        (item.name, hints[item.name], item.default is missing and item.default_factory is missing)
        for item in dataclasses.fields(kind)
    ]


def _decode_fields(kind: type, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.') or 'its content'} is {_shown(value)}")
    known = {}
    for name, hint, required in _fields(kind):
        if name in value:
            known[name] = _decode(hint, value[name], f"{where}{name}")
        elif required:
            raise ValueError(f"{where}{name} is missing")
    return known


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Value of JSON as a type of the records above; ValueError names the key that does not fit."""
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**_decode_fields(kind, value, f"{where}."))
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = [arg for arg in args if arg is not types.NoneType]
        return None if value is None else _decode(kinds[0], value, where)
    if origin is Literal and value in args:
        return value
    if origin is dict and isinstance(value, dict):
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_decode(args[0], item, where) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_decode(arg, item, where) for arg, item in zip(args, value, strict=True))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
