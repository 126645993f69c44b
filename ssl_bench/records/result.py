"""`results/<protocol>.json`: what a protocol found on one run. Torch-free.

Unknown keys are ignored when reading: a record outlives its version.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ssl_bench.errors import UserError
from ssl_bench.records.decoding import Measured, read_record
from ssl_bench.records.files import write_json
from ssl_bench.records.predictions import Predictions, write_predictions
from ssl_bench.records.run import DataRecord, RunInfo, read_run

Interval: TypeAlias = tuple[float, float]


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
        primary: The variant whose number is the protocol's; empty where there are diagnostics alone.
        value: Accuracy of the primary variant, in [0, 1]; None where there are diagnostics alone.
        interval: Its 95 % interval.
        n_test: Test images.
        data: The images evaluated on.
        splits: train, validation, test.
        variants: All variants, the primary included.
        selected: What was chosen, and where.
        curve: Named series over the fit.
        diagnostics: Name -> a number that describes the features and is never ranked.
        features: Types of features used.
        geometry: How an image became the backbone's input.
        metric: What the value is; in every metric more is better.
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
    curve: dict[str, list[Measured]] = field(default_factory=dict)
    diagnostics: dict[str, Measured] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    geometry: dict[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    branch: str = ""
    backbone: str = ""
    cost: EvaluationCost = EvaluationCost()
    software: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.value is None) != (self.interval is None):
            raise ValueError(f"accuracy {self.value} with interval {self.interval}")
        if self.value is not None and self.n_test < 1:
            raise ValueError(f"accuracy {self.value} on {self.n_test} test images")
        own = [] if self.value is None or self.interval is None else [Score(self.value, self.interval)]
        for score in [*own, *self.variants.values()]:
            for interval in (score.interval, score.over_classes or score.interval):
                if not 0 <= interval[0] <= score.value <= interval[1] <= 1:
                    raise ValueError(f"accuracy {score.value} with interval {interval} is not in order within [0, 1]")


def write_result(folder: Path, result: Result, predictions: Predictions) -> Path:
    """Write predictions, then the record, and give its path: where there is a record, there are its predictions."""
    stem = recorded_stem(folder, read_run(folder), result)
    write_predictions(folder / "predictions" / f"{stem}.parquet", result.primary, predictions)
    path = folder / "results" / f"{stem}.json"
    write_json(path, dataclasses.asdict(result))
    return path


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
    return read_record(Result, path)
