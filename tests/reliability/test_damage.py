"""Every file of a run folder is damaged in seven ways: each command says so, or is as right as before."""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaign import SEED, Outcomes, grouped, sample
from PIL import Image
from tiny import TINY
from trials import Trial, Trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

FIT = ["fit", "--method=mae", *[flag for flag in TINY if not flag.startswith("--data")], "--data=folder"]
FIT += ["--data.root=photos", "--data.batch_size=16", "--data.num_workers=0", "--runs=runs"]
FINISHED, STOPPED = [*FIT, "--seed=0"], [*FIT, "--seed=1"]
TEXT = (".json", ".yaml", ".csv")


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def bits(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = draw.randrange(max(1, len(content) - 16))
    for at in range(start, min(start + 16, len(content))):
        content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zeros(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    quarter = len(content) // 4
    path.write_bytes(content[:quarter] + bytes(2 * quarter) + content[3 * quarter :])


def text(path: Path, draw: random.Random) -> None:
    path.write_text("<html><body>502 Bad Gateway</body></html>\n")


def removed(path: Path, draw: random.Random) -> None:
    path.unlink()


def fifo(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[Callable[[Path, random.Random], None]] = [cut, empty, bits, zeros, text, removed, fifo]


def commands(run: str) -> dict[str, list[str]]:
    """Name and arguments of each."""
    return {
        "fit, finished": FINISHED,
        "fit, stopped": STOPPED,
        "fit --init": [*FIT, "--seed=2", f"--init={run}", "--trainer.max_epochs=1"],
        "fit -c": ["fit", "-c", f"{run}/config.yaml", "--runs=runs"],
        "evaluate, recorded": ["evaluate", run, "--protocols=knn,ridge"],
        "evaluate, new": ["evaluate", run, "--protocols=diagnostics"],
        "evaluate, baseline": ["evaluate", f"random:{run}", "--protocols=ridge"],
        "figures": ["figures", run, "--only=masks,attention", "--images=2"],
        "leaderboard": ["leaderboard", "runs", "--format=csv"],
        "leaderboard, page": ["leaderboard", "runs", "--format=html", "--output=page", "--images=embed"],
        "compare": ["compare", "runs"],
        "export": ["export", run, "-o", "exported"],
        "benchmark": ["benchmark", "-c", "grid.yaml", "--runs=runs", "--dry-run", "--no-estimate"],
    }


def grid() -> dict[str, object]:
    """The finished run as an entry of a benchmark file."""
    groups = grouped(FIT[1:])
    method = {"name": groups["method"].pop("name"), "method": groups["method"]}
    fit = {name: groups[name] for name in ("trainer", "optim", "probe")}
    file = {"methods": [method], "data": [groups["data"]], "backbones": [groups["backbone"]], "fit": fit}
    return file | {"evaluate": {"protocols": ["knn", "ridge"]}, "baselines": []}


@pytest.fixture(scope="module")
def pristine(trials: Trials, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with a finished run of photographs, one that was killed, and a benchmark file; the runs' paths."""
    place = tmp_path_factory.mktemp("pristine")
    rng = np.random.default_rng(0)
    for number in range(60):
        path = place / "photos" / ("train" if number < 40 else "test") / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = 60 if number % 2 else 140
        Image.fromarray(rng.integers(level, level + 80, (20, 24, 3), dtype=np.uint8)).save(path)
    (place / "photos" / "train" / "a" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run = trials(FINISHED, place).out.strip()
    trials(["evaluate", run, "--protocols=knn,ridge"], place)
    trials(["figures", run, "--only=masks,attention", "--images=2"], place)
    whole = trials([*STOPPED, "--runs=whole"], place)
    trials(STOPPED, place, at=whole.changes * 2 // 3)
    other = [flag for flag in FIT if not flag.startswith("--method")]
    other = trials([*other, "--method=byol", "--method.hidden_dim=16"], place).out.strip()
    trials(["evaluate", other, "--protocols=ridge"], place)
    (place / "grid.yaml").write_text(json.dumps(grid()))
    return place, run, whole.out.strip().replace("whole", "runs")


def test_damage_is_named_or_harmless(pristine: tuple[Path, str, str], trials: Trials, outcomes: Outcomes) -> None:
    place, run, stopped = pristine
    asked, work = commands(run), place.with_name("work")
    before = {}
    for name, argv in asked.items():
        fresh(place, work)
        before[name] = answer(trials(argv, work, seconds=120), work)
    assert all(before.values()), before
    files = [path.relative_to(place) for folder in (run, stopped) for path in below(place / folder)]
    cases = [(file, damage, name) for file in files for damage in DAMAGES for name in asked]
    for number, (file, damage, name) in enumerate(sample(cases)):
        fresh(place, work)
        damage(work / file, random.Random(SEED + number))
        trial = trials(asked[name], work, seconds=120)
        what = f"{name}: {file} {damage.__name__}"
        if fault := trial.fault():
            outcomes.note("", what, fault)
            continue
        outcome = judged(trial, answer(trial, work) == before[name], work, file)
        outcomes.note(outcome, what, outcome if outcome.startswith(FAULTS) else None)
    outcomes.check()


FAULTS = ("silent", "unclear")


def judged(trial: Trial, same: bool, work: Path, file: Path) -> str:
    """What became of a command that met a damaged file."""
    told = trial.err + trial.out
    named = file.name in told or file.parent.name in told or file.stem in told
    if trial.code:
        return "refused" if named else f"unclear: {trial.said}"
    if same:
        return "as before"
    if named and trial.err:
        return "named"
    if trial.argv[0] == "benchmark":
        return "planned again"
    return "valid text with other content" if still_text(work / file) else "silent"


def still_text(path: Path) -> bool:
    """Whether a record can be read still: nothing tells that a digit in it was another one."""
    if not path.is_file():
        return False
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return isinstance(json.loads(content), dict)
        return path.suffix in TEXT and "\0" not in content
    except (OSError, ValueError):
        return False


def fresh(place: Path, work: Path) -> None:
    """A copy of a folder in the place of the one before."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(place, work)


def below(folder: Path) -> list[Path]:
    """All files of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def answer(trial: Trial, work: Path) -> str:
    """What a command has given, to compare; empty if nothing."""
    if trial.code:
        return ""
    last = work / (trial.out.split() or [""])[-1]
    if trial.argv[0] in ("leaderboard", "compare", "benchmark") and not last.is_file():
        return trial.out
    if "already done" in trial.err:
        return repr((last.name, (last / "backbone.safetensors").exists()))
    protocols = trial.argv[-1].partition("=")[2].split(",")  # others' records are not looked at
    given = {
        "fit": lambda: [last / "backbone.safetensors"],
        "evaluate": lambda: [last / "results" / f"{protocol}.json" for protocol in protocols],
        "figures": lambda: sorted(last.glob("*.png")),
        "export": lambda: sorted(last.glob("*")),
    }.get(trial.argv[0], lambda: [last])()
    return repr([(path.name, content_of(path)) for path in given])


def content_of(path: Path) -> str:
    """A result's value; of any other file, all but times."""
    if not path.is_file():
        return "gone"
    if path.parent.name == "results":
        return repr({key: json.loads(path.read_text())[key] for key in ("value", "interval", "diagnostics")})
    if path.suffix in (".html", ".json", ".md"):
        return re.sub(r"\d{4}-\d\d-\d\d[T ]?[\d:.+]*|\d+(\.\d+)? s\b", "", path.read_text(encoding="utf-8"))
    return hashlib.sha256(path.read_bytes()).hexdigest()
