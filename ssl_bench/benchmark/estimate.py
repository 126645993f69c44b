"""How long a benchmark will take: a few steps of each kind of run, and what evaluations took here before. Torch-free.

The steps are taken by a process of their own, `python -m ssl_bench.benchmark.calibration`.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ssl_bench.benchmark.job import Job
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.result import read_result
from ssl_bench.records.run import is_finished
from ssl_bench.records.store import find_runs


def estimated(jobs: Sequence[Job], protocols: Mapping[Job, Sequence[str]], runs: Path, slots: int) -> list[str]:
    """Lines that say how long what is left will take.

    Args:
        jobs: The whole plan.
        protocols: Those without a result, of each evaluation.
        runs: Where run folders live.
        slots: Processes at a time.
    """
    kinds = _kinds(jobs)
    fits = [job for job in jobs if job.config is not None and not job.done]
    same: dict[str, list[Job]] = defaultdict(list)
    for job in fits:
        same[kinds[job]].append(job)
    measured = dict(zip(same, _calibrated([_config(of_kind) for of_kind in same.values()], slots), strict=True))
    known = [found["seconds"] for job in fits if "seconds" in (found := measured[kinds[job]])]
    lines = ["", "estimated, with " + (f"{slots} processes at a time:" if slots > 1 else "one process at a time:")]
    for kind, found in measured.items():
        took = f"{_clock(found['seconds'])} each" if "seconds" in found else f"unknown: {found['error']}"
        lines.append(f"  {len(same[kind])} x {same[kind][0].title.partition('  seed')[0]}: {took}")
    recorded = _recorded(runs)
    left = [name for names in protocols.values() for name in names]
    without = sorted({name for name in left if name not in recorded})
    known += [recorded[name] for name in left if name in recorded]
    if left:
        counted = ", ".join(f"{name} {_clock(recorded[name])}" for name in dict.fromkeys(left) if name in recorded)
        evaluations = sum(bool(names) for names in protocols.values())
        lines.append(f"  {evaluations} evaluations{f', each as here before: {counted}' if counted else ''}")
    if without:
        lines.append(f"  not counted, for no result in {runs} says what it takes: {', '.join(without)}")
    figures = [job for job in jobs if job.behind is not None]
    if figures:
        lines.append(f"  not counted: the pictures of {len(figures)} runs")
    at_least = "at least " if without or figures or len(known) < len(fits) + len(left) else ""
    whole = max([sum(known) / slots, *known]) if known else 0.0
    return [*lines, f"  together: {at_least}{_clock(whole)}"]


def _kinds(jobs: Sequence[Job]) -> dict[Job, str]:
    """What tells how long each run takes: all but its seed, and the kind of the run before in place of its folder."""
    kinds: dict[Job, str] = {}
    folders: dict[Path, str] = {}
    for job in jobs:  # a run comes after the one that it starts from
        if job.config is not None and job.folder is not None:
            what = json.dumps({**job.config, "seed": 0}, sort_keys=True)
            if job.after is not None:
                before = hashlib.sha256(folders[job.after].encode()).hexdigest()
                what = what.replace(json.dumps(str(job.after)), json.dumps(before))
            kinds[job] = folders[job.folder] = what
    return kinds


def _config(jobs: Sequence[Job]) -> Mapping[str, Any]:
    """Of runs of one kind, the configuration of one that can begin, if there is any."""
    ready = [job for job in jobs if job.after is None or is_finished(job.after)]
    return (ready or list(jobs))[0].config or {}


def _calibrated(configs: Sequence[Mapping[str, Any]], slots: int) -> list[dict[str, Any]]:
    """For each configuration the seconds of its run, or an error."""
    if configs:
        say(f"a few steps of each of {len(configs)} kinds of run ...")
    environment = dict(os.environ)
    if slots > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
    lines: list[dict[str, Any]] = []
    while len(lines) < len(configs):
        found = subprocess.run(
            [sys.executable, "-m", "ssl_bench.benchmark.calibration"],
            input=json.dumps(list(configs[len(lines) :])),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        lines += [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
        if len(lines) < len(configs):  # it ended in the next one: killed for its memory, say
            last = (found.stderr.strip().splitlines() or ["it said nothing"])[-1]
            lines.append({"error": f"its process ended with {found.returncode}: {last[:200]}"})
    return lines


def _recorded(runs: Path) -> dict[str, float]:
    """Protocol -> median seconds of its results in a folder of runs."""
    seconds: dict[str, list[float]] = defaultdict(list)
    if runs.is_dir() and any(runs.glob("*/run.json")):
        for folder in find_runs([runs]):
            for path in (folder / "results").glob("[!.]*.json"):
                try:
                    result = read_result(path)
                except UserError:
                    continue  # damaged: tables name it
                seconds[result.protocol].append(result.cost.seconds)
    return {protocol: median(values) for protocol, values in seconds.items()}


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
