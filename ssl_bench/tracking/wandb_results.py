"""What a run folder gives W&B: its configuration, its numbers, its curves and its pictures. Torch-free.

All of it is a function of the folder, so that each part of a run that is logged (a session of training, an evaluation)
says all there is so far, in whatever order the parts are uploaded.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ssl_bench.config.layers import read_yaml
from ssl_bench.config.options import WandbOptions
from ssl_bench.console import say
from ssl_bench.leaderboard.page.figures import published_pictures
from ssl_bench.records.files import is_inside, read_regular
from ssl_bench.records.result import Result
from ssl_bench.records.run import read_run
from ssl_bench.records.run_folder import folder_identity
from ssl_bench.records.store import Run, load_runs
from ssl_bench.tracking.wandb_client import Identity, one_line
from ssl_bench.tracking.wandb_run import WandbRun, wandb_run

COLUMNS = ["protocol", "variant", "primary", "accuracy", "low", "high", "test images", "data", "branch", "seconds"]

MOST_BYTES = 2**27  # of metrics.csv and config.yaml


@contextmanager
def logged(folder: Path, options: WandbOptions) -> Iterator[WandbRun]:
    """The W&B run of a run folder; after the block, all that the folder holds by then is logged.

    Args:
        folder: With its `run.json`.
        options: Whether and where.
    """
    if options.mode == "off":
        yield WandbRun()
        return
    try:
        identity = identity_of(folder)
    except Exception as error:  # config.yaml is damaged, say
        say(f"warning: no W&B for {folder}: {one_line(error)}")
        yield WandbRun()
        return
    with wandb_run(options, identity, folder, lambda run: send(run, folder, options.checkpoints)) as run:
        yield run


def identity_of(folder: Path) -> Identity:
    """A run folder's identity in W&B: the id is its hash."""
    info = read_run(folder)
    options = info.options
    if is_inside(folder / "config.yaml", folder):
        options = read_yaml(folder / "config.yaml")
    # Flat names beside the configuration's own, for grouping and filtering without knowing where an option stands.
    flat = {
        "kind": info.kind,
        "method_name": info.method,
        "data_name": info.data.title,
        "data_sha256": str(info.data.fingerprint.get("sha256", "")),
        "backbone_name": info.backbone.name if info.backbone else "",
        "backbone_params": info.backbone.params if info.backbone else 0,
        "command": " ".join(info.command),
        "ssl_bench": info.version,
    }
    tags = [tag[:64] for tag in (info.method, info.data.title) if tag]
    config = {**options, "seed": info.seed, **flat}
    return Identity(folder_identity(folder), folder.name[:128], info.kind, config, tags)


def send(run: WandbRun, folder: Path, checkpoints: bool = False) -> None:
    """Numbers, tables, curves and pictures of a run folder; weights, if asked for."""
    (read,) = load_runs([folder])
    step = read.info.steps + len(list((folder / "wandb").glob("*run-*")))  # after what trained and what was sent before
    run.media(lambda wandb: tables(wandb, read), step)
    for path in published_pictures(folder):
        run.media(partial(picture, path), step)  # each for itself: one that cannot be read costs no other
    run.summarise(summary(read))  # after the last row, which would set its own numbers
    files = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.json")), folder / "config.yaml"]
    files += [folder / "checkpoints" / "last.ckpt"]
    if checkpoints:
        name = re.sub(r"[^a-zA-Z0-9_.-]+", "_", folder.name)[:128]
        run.artifact(name, "checkpoint", {str(f.relative_to(folder)): f for f in files if is_inside(f, folder)})


def summary(run: Run) -> dict[str, Any]:
    """Numbers of a run: how far it came, what it cost, the last of each metric, each result with its interval."""
    info = run.info
    numbers: dict[str, Any] = {
        **last_metrics(run.folder / "metrics.csv"),
        "status": info.status,
        "epochs": info.epochs,
        "steps": info.steps,
        "images_seen": info.images_seen,
        **{f"cost/{name}": value for name, value in asdict(info.cost).items()},
    }
    for result in run.results:
        stem = run.stems[id(result)]
        if result.value is not None and result.interval is not None:
            low, high = result.interval
            numbers |= {f"{stem}/accuracy": result.value, f"{stem}/low": low, f"{stem}/high": high}
            numbers[f"{stem}/test_images"] = result.n_test
        numbers |= {f"{stem}/{name}": value for name, value in result.diagnostics.items()}
        for name, score in result.variants.items():
            numbers[f"{stem}/variants/{name}"] = score.value
    return {name: value for name, value in numbers.items() if value is not None}


def last_metrics(path: Path) -> dict[str, float]:
    """The last value of each column of metrics.csv."""
    if not path.is_file():
        return {}
    rows = list(csv.DictReader(io.StringIO(read_regular(path, MOST_BYTES).decode("utf-8"), newline="")))
    found: dict[str, float] = {}
    damaged = 0
    for row in rows:
        try:
            found |= {name: float(value) for name, value in row.items() if name != "step" and value}
        except (ValueError, TypeError):  # a row that was cut off, or has more fields than there are columns
            damaged += 1
    if damaged:
        say(f"warning: W&B: {path} has damaged rows, which are left out: {damaged}")
    return found


def picture(path: Path, wandb: Any) -> dict[str, Any]:
    """A picture of `figures/`."""
    return {f"figures/{path.stem}": wandb.Image(str(path), caption=path.stem)}


def tables(wandb: Any, run: Run) -> dict[str, Any]:
    """A table of all results, a chart of each curve."""
    made: dict[str, Any] = {}
    rows = [row for result in run.results for row in _rows(run, result)]
    if rows:
        made["results"] = wandb.Table(columns=COLUMNS, data=rows)
    for result in run.results:
        stem = run.stems[id(result)]
        for name, (xs, ys) in curves(result).items():
            table = wandb.Table(columns=[xs[0], name], data=[list(pair) for pair in zip(xs[1], ys, strict=True)])
            title = f"{stem}: {name}"
            made[f"{stem}/curves/{name}"] = wandb.plot.line(table, xs[0], name, title=title)
    return made


def curves(result: Result) -> dict[str, tuple[tuple[str, list[float]], list[float]]]:
    """Series -> ((name of x, x), y). The first series is what the others of its length are drawn over."""
    series = dict(result.curve)
    if not series:
        return {}
    first = next(iter(series))
    over = series.pop(first)
    found = {name: ((first, over), ys) for name, ys in series.items() if len(ys) == len(over)}
    counted = {name: ys for name, ys in series.items() if name not in found}
    if not series:
        counted = {first: over}
    return found | {name: (("index", [float(i) for i in range(len(ys))]), ys) for name, ys in counted.items()}


def _rows(run: Run, result: Result) -> Iterator[list[Any]]:
    stem = run.stems[id(result)]
    for name, score in result.variants.items():
        yield [
            *(stem, name, name == result.primary, score.value, *score.interval, result.n_test),
            *(result.data.title, result.branch, result.cost.seconds),
        ]
