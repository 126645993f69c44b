"""How long a benchmark will take: a few steps of each kind of run, and what evaluations took here before. Torch-free.

The steps are taken by a process of their own, `python -m ssl_bench.calibration`.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ssl_bench.benchmark_plan import Job
from ssl_bench.configuration import say
from ssl_bench.results import find_runs, read_result


def estimated(jobs: Sequence[Job], runs: Path, slots: int) -> list[str]:
    """Lines that say how long what is left will take."""
    left = [job for job in jobs if not job.done]
    fits = [job for job in left if job.folder is not None]
    kinds: dict[str, Mapping[str, Any]] = {_kind(job): job.config for job in fits if job.config is not None}
    measured = dict(zip(kinds, _calibrated(list(kinds.values()), slots), strict=True)) if kinds else {}
    known = [found["seconds"] for job in fits if "seconds" in (found := measured[_kind(job)])]
    lines = ["", "estimated, with " + (f"{slots} processes at a time:" if slots > 1 else "one process at a time:")]
    for kind, found in measured.items():
        same = [job for job in fits if _kind(job) == kind]
        took = f"{_clock(found['seconds'])} each" if "seconds" in found else f"unknown: {found['error']}"
        lines.append(f"  {len(same)} x {same[0].title.partition('  seed')[0]}: {took}")
    recorded = _recorded(runs)
    protocols = _protocols(left)
    without = sorted({name for name in protocols if name not in recorded})
    known += [recorded[name] for name in protocols if name in recorded]
    if protocols:
        counted = ", ".join(f"{name} {_clock(recorded[name])}" for name in dict.fromkeys(protocols) if name in recorded)
        lines.append(f"  {len(left) - len(fits)} evaluations{f', each as here before: {counted}' if counted else ''}")
    if without:
        lines.append(f"  not counted, for no result in {runs} says what it takes: {', '.join(without)}")
    at_least = "at least " if without or len(known) < len(fits) + len(protocols) else ""
    whole = max([sum(known) / slots, *known]) if known else 0.0
    return [*lines, f"  together: {at_least}{_clock(whole)}"]


def _kind(job: Job) -> str:
    """What tells how long a run takes: all but its seed."""
    return json.dumps({**(job.config or {}), "seed": 0}, sort_keys=True)


def _protocols(jobs: Sequence[Job]) -> list[str]:
    """Of all evaluations, one after the other."""
    flags = [
        flag.partition("=")[2] for job in jobs if job.folder is None for flag in job.argv if "--protocols=" in flag
    ]
    return [name for flag in flags for name in flag.split(",")]


def _calibrated(configs: Sequence[Mapping[str, Any]], slots: int) -> list[dict[str, Any]]:
    """For each configuration the seconds of its run, or an error."""
    say(f"a few steps of each of {len(configs)} kinds of run ...")
    environment = dict(os.environ)
    if slots > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
    found = subprocess.run(
        [sys.executable, "-m", "ssl_bench.calibration"],
        input=json.dumps(list(configs)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        check=False,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    return lines + [{"error": "the calibration stopped"}] * (len(configs) - len(lines))


def _recorded(runs: Path) -> dict[str, float]:
    """Protocol -> median seconds of its results in a folder of runs."""
    seconds: dict[str, list[float]] = defaultdict(list)
    if runs.is_dir() and any(runs.glob("*/run.json")):
        for folder in find_runs([runs]):
            for path in (folder / "results").glob("[!.]*.json"):
                result = read_result(path)
                seconds[result.protocol].append(result.cost.seconds)
    return {protocol: median(values) for protocol, values in seconds.items()}


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
