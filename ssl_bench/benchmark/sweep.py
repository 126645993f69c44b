"""Sweeps beyond grids: points drawn at random, or proposed by Optuna, and the best of them by the validation split.

`axes: {random: 20, optim.base_lr: {low: 1.0e-4, high: 1.0e-2, log: true}, backbone.drop_path: [0, 0.1]}`. A point's
score is the last k-NN (or linear) accuracy of the online probe, on the validation split, averaged over the seeds. Test
images play no part: only the selected point is evaluated. Torch-free.

Points follow from the file and the scores alone, so that the same command finds its runs again. Optuna proposes some
points at a time and is told of their scores when all of them are there.
"""

import csv
import io
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.benchmark.job import Job
from ssl_bench.console import say
from ssl_bench.errors import UserError, near
from ssl_bench.records.files import read_regular
from ssl_bench.records.run import is_finished

KEYS = ("random", "optuna", "sampler_seed", "together", "select")
MOST_TRIALS = 10_000
MOST_BYTES = 1 << 30  # of metrics.csv
DIGITS = 4  # of a number that is drawn
STARTUP = 10  # random points before Optuna's first proposal

Point = dict[str, Any]  # option -> value


@dataclass(frozen=True)
class Interval:
    """Numbers to draw from.

    Args:
        low: The smallest.
        high: The largest.
        log: Whether each order of magnitude is as likely as another.
        whole: Whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, part: float) -> float | int:
        """The number at a part, in [0, 1), of the interval."""
        if self.whole and not self.log:
            return int(self.low) + int(part * (int(self.high) - int(self.low) + 1))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + part * (high - low)
        value = min(self.high, max(self.low, float(f"{math.exp(value) if self.log else value:.{DIGITS}g}")))
        return round(value) if self.whole else value


@dataclass(frozen=True)
class Sweep:
    """What a sweep varies.

    Args:
        sampler: How points are drawn.
        trials: How many points.
        space: Option -> interval, or list of values.
        seed: Of the draws.
        together: Points that Optuna proposes at a time.
        select: Which of the probe's numbers is the score.
    """

    sampler: Literal["random", "optuna"]
    trials: int
    space: dict[str, Interval | list[Any]]
    seed: int = 0
    together: int = 4
    select: Literal["knn", "linear"] = "knn"


def is_sweep(tree: Mapping[str, Any]) -> bool:
    """Whether a benchmark file draws points rather than listing them."""
    axes = tree.get("axes")
    return isinstance(axes, Mapping) and any(name in axes for name in ("random", "optuna"))


def read_sweep(axes: Mapping[str, Any]) -> Sweep | None:
    """The sweep that `axes` describe; None for a grid.

    Raises:
        UserError: A key, an interval or a number is wrong.
    """
    samplers = [name for name in ("random", "optuna") if name in axes]
    if not samplers:
        return None
    if len(samplers) > 1:
        raise UserError("axes: random and optuna are two ways to draw points: leave one out")
    numbers = {name: axes.get(name, default) for name, default in (("sampler_seed", 0), ("together", 4))}
    trials = axes[samplers[0]]
    for name, value in ((samplers[0], trials), *numbers.items()):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TRIALS:
            raise UserError(f"axes: {name} {value!r} must be a whole number up to {MOST_TRIALS:,}")
    if trials < 1 or numbers["together"] < 1:
        raise UserError(f"axes: {samplers[0]} and together must be 1 or more")
    select = axes.get("select", "knn")
    if select not in ("knn", "linear"):
        raise UserError(f"axes: select {select!r}{near(str(select), ('knn', 'linear'))} must be knn or linear")
    space = {option: _dimension(option, value) for option, value in axes.items() if option not in KEYS}
    if not space:
        raise UserError(
            f"axes: {samplers[0]} draws nothing: name options, `optim.base_lr: {{low: 1.0e-4, high: 0.01}}`"
        )
    return Sweep(samplers[0], trials, space, numbers["sampler_seed"], numbers["together"], select)  # type: ignore[arg-type]


def _dimension(option: str, value: Any) -> Interval | list[Any]:
    if isinstance(value, list) and value:
        return value
    if not isinstance(value, Mapping) or not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        raise UserError(f"axes: {option} needs a list of values or {{low: ..., high: ...}}, perhaps with log: true")
    low, high, log = value["low"], value["high"], value.get("log", False)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not math.isfinite(low) or not math.isfinite(high) or not low < high or not isinstance(log, bool):
        text = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(low, str) or isinstance(high, str) else ""
        raise UserError(f"axes: {option}: low {low!r} must be a number below high {high!r}{text}")
    if log and low <= 0:
        raise UserError(f"axes: {option}: low {low!r} must be above 0 with log: true")
    return Interval(float(low), float(high), log, isinstance(low, int) and isinstance(high, int))


def jobs_of_sweep(
    sweep: Sweep, seeds: Sequence[Point], chain: Callable[[Point], "list[Job]"]
) -> "tuple[list[Job], list[Job]]":
    """The jobs of a sweep's points, as far as these are known; and of the best one, once all runs are finished.

    Args:
        sweep: What is varied.
        seeds: With which each point is run, as options.
        chain: The jobs of a point with a seed: its run, and what starts from that.
    """
    known: dict[str, list[Job]] = {}

    def jobs_of(point: Point) -> "list[Job]":
        key = json.dumps(point, sort_keys=True)
        if key not in known:
            known[key] = [job for seed in seeds for job in chain({**point, **seed})]
        return known[key]

    def score(point: Point) -> float | None:
        return validation_score([job.folder for job in jobs_of(point) if job.folder], sweep.select)

    points = points_of(sweep, score)
    scores = [score(point) for point in points]
    jobs = [job for point in points for job in jobs_of(point)]
    if len(points) < sweep.trials or None in scores:
        return jobs, []
    best = max(range(len(points)), key=lambda at: scores[at] or 0.0)
    text = ", ".join(f"{option} {value}" for option, value in points[best].items())
    method = jobs_of(points[best])[0].title.partition("  ")[0]
    chosen = f"best of {len(points)} points by {sweep.select} on the validation split"
    say(f"{method}: {chosen}: {text} ({scores[best]:.1%})")
    return jobs, jobs_of(points[best])


def points_of(sweep: Sweep, score: Callable[[Point], float | None]) -> list[Point]:
    """The points that are known by now: all, of random ones; of Optuna's, those up to the first without a score.

    Args:
        sweep: What is varied.
        score: Of a point, None as long as its runs are not finished.
    """
    return _random(sweep) if sweep.sampler == "random" else _proposed(sweep, score)


def _random(sweep: Sweep) -> list[Point]:
    generator = random.Random(sweep.seed)
    points: list[Point] = []
    for _ in range(sweep.trials):
        parts = [generator.random() for _ in sweep.space]
        drawn = zip(sweep.space.items(), parts, strict=True)
        points.append({o: s.at(part) if isinstance(s, Interval) else s[int(part * len(s))] for (o, s), part in drawn})
    return points


def _proposed(sweep: Sweep, score: Callable[[Point], float | None]) -> list[Point]:
    try:
        import optuna
    except ImportError:
        raise UserError("axes: optuna needs the package optuna: pip install 'ssl-bench[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=sweep.seed, n_startup_trials=min(STARTUP, max(1, sweep.trials // 2)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    points: list[Point] = []
    while len(points) < sweep.trials:
        asked = []
        for _ in range(min(sweep.together, sweep.trials - len(points))):
            trial = study.ask()
            point = {option: _suggested(trial, option, space) for option, space in sweep.space.items()}
            asked.append((trial, point, score(point)))
        points += [point for _, point, _ in asked]
        if any(value is None for _, _, value in asked):
            break
        for trial, _, value in asked:
            study.tell(trial, value)
    return points


def _suggested(trial: Any, option: str, space: Interval | list[Any]) -> Any:
    if isinstance(space, list):
        return space[trial.suggest_categorical(option, list(range(len(space))))]
    if space.whole:
        return trial.suggest_int(option, int(space.low), int(space.high), log=space.log)
    found = float(f"{trial.suggest_float(option, space.low, space.high, log=space.log):.{DIGITS}g}")
    return min(space.high, max(space.low, found))


def validation_score(folders: Sequence[Path], select: str) -> float | None:
    """Mean of the last score of finished runs; None as long as one is not finished.

    Raises:
        UserError: A finished run has no such score.
    """
    if not all(is_finished(folder) for folder in folders):
        return None
    return sum(_last(folder, select) for folder in folders) / len(folders)


def _last(folder: Path, select: str) -> float:
    try:
        text = read_regular(folder / "metrics.csv", MOST_BYTES).decode(errors="replace")
        found = [row[select] for row in csv.DictReader(io.StringIO(text, newline="")) if row.get(select)]
        return float(found[-1])
    except (OSError, ValueError, IndexError, csv.Error):
        raise UserError(
            f"{folder} has no {select} of the online probe, by which a sweep selects: it needs labelled images with a "
            "validation part, and --probe.every_n_epochs other than 0"
        ) from None
