"""Commands are killed at any time, within writes too, and disks fail: started again, they end as undisturbed."""

import csv
import errno
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from campaign import SEED, Outcomes, grouped, sample
from safetensors.torch import load_file
from tiny import TINY
from trials import Trial, Trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

KILLS, FAILURES = 40, 40  # of each command
MAE = [*TINY, "--trainer.log_every_n_steps=1", "--trainer.checkpoint_minutes=1e-9", "--backbone.drop_path=0.2"]
FIT = ["fit", "--method=mae", *MAE, "--runs=runs"]
EVALUATE = ["evaluate", "RUN", "--protocols=ridge,knn,diagnostics"]
BENCHMARK = ["benchmark", "-c", "grid.yaml", "--runs=runs"]
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES)
COMMANDS = ("fit", "evaluate", "benchmark")


@dataclass(frozen=True)
class Place:
    """A command, and where it begins.

    Args:
        command: Its name.
        argv: Its arguments.
        start: The folder as it is before; it is copied.
        undisturbed: What it does there.
        whole: What it leaves.
    """

    command: str
    argv: list[str]
    start: Path
    undisturbed: Trial
    whole: str


@pytest.fixture(scope="module", params=COMMANDS)
def place(request: pytest.FixtureRequest, trials: Trials, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where trials of a command begin."""
    folder, command = tmp_path_factory.mktemp(request.param), request.param
    start, end = folder / "start", folder / "end"
    start.mkdir()
    (start / "grid.yaml").write_text(json.dumps(grid()))
    argv = {"fit": FIT, "evaluate": EVALUATE, "benchmark": BENCHMARK}[command]
    if command == "evaluate":
        run = trials(FIT, start, seconds=300).out.strip()
        argv = [run if word == "RUN" else word for word in argv]
    shutil.copytree(start, end)
    undisturbed = trials(argv, end, seconds=600)
    assert undisturbed.code == 0 and undisturbed.changes > 5, undisturbed.err
    return Place(command, argv, start, undisturbed, left_by(end))


def grid() -> dict[str, Any]:
    """The run of `fit` as a benchmark file."""
    groups = grouped(MAE)
    method = {"name": "mae", "method": groups["method"]}
    fit = {name: groups[name] for name in ("trainer", "optim", "probe")}
    own = {"methods": [method], "data": [groups["data"]], "backbones": [groups["backbone"]], "fit": fit}
    return own | {"evaluate": {"protocols": ["ridge", "knn"]}, "baselines": ["pixels"]}


def left_by(place: Path) -> str:
    """All that counts of run folders: weights, rows of the log, states and results."""
    found: list[object] = []
    for folder in sorted(path.parent for path in (place / "runs").rglob("run.json")):
        record = json.loads((folder / "run.json").read_text())
        found.append([str(folder.relative_to(place)), *(record[name] for name in ("status", "steps", "images_seen"))])
        if (folder / "backbone.safetensors").exists():
            found.append(sorted((name, str(t.double().sum())) for name, t in load_file(folder / W).items()))
        if (folder / "metrics.csv").exists():
            with open(folder / "metrics.csv", newline="") as file:
                found.append(list(csv.DictReader(file)))
        for path in sorted(folder.glob("results/*.json")):
            result = json.loads(path.read_text())
            found.append([path.name, *(result[name] for name in ("value", "interval", "diagnostics"))])
    return repr(found)


W = "backbone.safetensors"


def test_killed_at_any_time(place: Place, trials: Trials, outcomes: Outcomes, tmp_path: Path) -> None:
    """Half of them at a moment, half just before a change of the file system."""
    draw = random.Random(SEED)
    moments: list[dict[str, Any]] = [{"kill": draw.uniform(0, place.undisturbed.seconds)} for _ in range(KILLS // 2)]
    moments += [{"at": draw.randint(1, place.undisturbed.changes)} for _ in range(KILLS // 2)]
    for moment in sample(moments):
        disturbed(place, moment, tmp_path / "work", trials, outcomes)
    outcomes.check()


def test_a_disk_that_fails(place: Place, trials: Trials, outcomes: Outcomes, tmp_path: Path) -> None:
    """At a change of the file system, and at all later ones."""
    draw = random.Random(SEED)
    changes = place.undisturbed.changes
    for moment in sample([{"at": draw.randint(1, changes), "error": draw.choice(ERRORS)} for _ in range(FAILURES)]):
        disturbed(place, moment, tmp_path / "work", trials, outcomes)
    outcomes.check()


def disturbed(place: Place, moment: dict[str, Any], work: Path, trials: Trials, outcomes: Outcomes) -> None:
    """One trial, and the same command again where nothing is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(place.start, work)
    first = trials(place.argv, work, seconds=600, **moment)
    fault = None if first.code == -9 else first.fault()
    again = trials([*place.argv, *(["--retry-failed"] if place.command == "benchmark" else [])], work, seconds=600)
    if again.code:
        fault = fault or f"started again: {again.fault() or again.said}"
    elif left_by(work) != place.whole:
        fault = fault or "lost: another end than undisturbed"
    elif rest := [path.name for path in work.rglob("*.tmp")]:
        fault = fault or f"left behind: {rest}"
    what = f"{place.command} {moment}, exit code {first.code}"
    outcomes.note("ended before" if first.code == 0 else "went on", what, fault)
