"""Results of runs as tidy data frames: a row for each number."""

from collections.abc import Iterable
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from ssl_bench.records.predictions import read_predictions
from ssl_bench.records.result import Result, Score
from ssl_bench.records.store import Run as StoredRun
from ssl_bench.records.store import load_readable, say_unread

PathOrPaths: TypeAlias = str | PathLike[str] | Iterable[str | PathLike[str]]


def load_results(runs: PathOrPaths = "runs", *, predictions: bool = False) -> pd.DataFrame:
    """All results of the runs at or below the paths, one row per run, protocol and variant.

    `value` is the accuracy in [0, 1] on the test images, `low` and `high` its 95 % interval for new test images (and
    new draws, where something was drawn), `class_low` and `class_high` the interval for new classes of the same kind
    too. A protocol that gives numbers which are no accuracies has a row for each: `measure` is then `diagnostic`.

    Args:
        runs: Run folders, or folders of them.
        predictions: One row per test image instead, of the primary variant: `image`, `label`, `prediction`, `correct`,
            and `draw` where something was repeated.

    Raises:
        UserError: No run is there, or damaged records alone; damaged ones beside others are named and left out.
    """
    found, unread = load_readable(as_paths(runs))
    say_unread(unread)
    results = [(run, result) for run in found for result in run.results]
    if not predictions:
        return pd.DataFrame([run_facts(*each) | row for each in results for row in result_rows(each[1])])
    parts = [_predictions(*each) for each in results if each[1].variants]
    columns = parts[0] if parts else ()
    return pd.DataFrame({name: list(chain.from_iterable(part[name] for part in parts)) for name in columns})


def as_paths(runs: PathOrPaths) -> list[Path]:
    """One path or several, `~` expanded."""
    several = [runs] if isinstance(runs, str | PathLike) else runs
    return [Path(run).expanduser() for run in several]


def result_rows(result: Result) -> list[dict[str, Any]]:
    """A row for each number of a result, the primary variant first."""
    shared = {"protocol": result.protocol, "version": result.version}
    rest = {"n_test": result.n_test, "chosen": result.selected.chosen, "options": result.options}
    if not result.variants:
        numbers = [(name, float(value)) for name, value in result.diagnostics.items() if value is not None]
        return [shared | _row(name, "diagnostic", False, value) | rest for name, value in numbers]
    ordered = sorted(result.variants.items(), key=lambda item: item[0] != result.primary)
    return [
        shared | _row(name, "accuracy", name == result.primary, score.value, score) | rest for name, score in ordered
    ]


def _row(variant: str, measure: str, primary: bool, value: float, score: Score | None = None) -> dict[str, Any]:
    nothing = (float("nan"),) * 2
    low, high = score.interval if score else nothing
    class_low, class_high = (score.over_classes if score else None) or nothing
    ends = {"low": low, "high": high, "class_low": class_low, "class_high": class_high}
    return {"variant": variant, "primary": primary, "measure": measure, "value": value, **ends}


def _predictions(run: StoredRun, result: Result) -> dict[str, list[Any]]:
    """Column -> its value for each test image, of one repetition after the other."""
    read = read_predictions(run.predictions_of(result))
    drawn: Any = read.variants["prediction"]  # (R, N)
    ids, labels = list(read.ids), [int(label) for label in read.labels]
    columns: dict[str, list[Any]] = {
        "image": ids * len(drawn),
        "label": labels * len(drawn),
        "prediction": [int(predicted) for row in drawn for predicted in row],
        "draw": [draw for draw, row in enumerate(drawn) for _ in row],
    }
    columns["correct"] = [a == b for a, b in zip(columns["label"], columns["prediction"], strict=True)]
    shared = run_facts(run, result) | {"protocol": result.protocol, "variant": result.primary}
    return {name: [value] * len(columns["image"]) for name, value in shared.items()} | columns


def run_facts(run: StoredRun, result: Result) -> dict[str, Any]:
    """What all numbers of a result share."""
    info = run.info
    network = info.backbone
    return {
        "run": str(run.folder),
        "method": info.method,
        "kind": info.kind,
        "backbone": network.name if network else "",
        "branch": result.branch,
        "seed": info.seed,
        "epochs": float("nan") if info.epochs is None else info.epochs,
        "pretrained_on": info.data.title if info.kind == "pretrained" else "",
        "data": result.data.title,
    }
