"""How long a grid takes: from steps that were measured, and from what evaluations took before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_bench.benchmark_plan import Job
from ssl_bench.calibration import seconds
from ssl_bench.estimate import estimated
from ssl_bench.results import DataRecord, EvaluationCost, Predictions, Result, RunInfo, write_result, write_run

Config = Callable[..., dict[str, Any]]


def fits(tmp_path: Path, config: dict[str, Any], seeds: range) -> list[Job]:
    return [
        Job(
            f"{config['method']['name']}  digits  seed {seed}", ("fit",), str(seed), tmp_path / str(seed), None, "", own
        )
        for seed in seeds
        for own in [{**config, "seed": seed}]
    ]


def evaluation(protocols: str) -> Job:
    return Job("evaluate", ("evaluate", "pixels", f"--protocols={protocols}"), "evaluate")


def test_kinds_of_run_are_measured_once_and_evaluations_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "ssl_bench.estimate._calibrated",
        lambda configs, slots: (asked.append(len(configs)), [{"seconds": 600.0}, {"error": "no run x"}])[1],
    )
    mae, simclr = ({"method": {"name": name}} for name in ("mae", "simclr"))
    run = tmp_path / "runs" / "before"
    data = DataRecord("digits", {"sha256": "0"})
    write_run(run, RunInfo("finished", "baseline", "pixels", data))
    record = Result("knn", 1, {}, "", None, None, 1, data, cost=EvaluationCost(seconds=60.0))
    write_result(run, record, Predictions(["a"], [0], {}))
    jobs = [*fits(tmp_path, mae, range(3)), *fits(tmp_path, simclr, range(1)), evaluation("knn,linear")]
    lines = estimated(jobs, tmp_path / "runs", 2)
    assert asked == [2]
    assert "  3 x mae  digits: 10 min each" in lines and "  1 x simclr  digits: unknown: no run x" in lines
    assert "  1 evaluations, each as here before: knn 60 s" in lines
    assert any("not counted" in line and line.endswith("linear") for line in lines)
    assert lines[-1] == "  together: at least 16 min"  # (3 x 10 + 1) / 2, rounded to even


def test_no_faster_than_its_longest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_bench.estimate._calibrated", lambda configs, slots: [{"seconds": 6000.0}])
    lines = estimated(fits(tmp_path, {"method": {"name": "mae"}}, range(2)), tmp_path, 8)
    assert lines[-1] == "  together: 1.7 h"


def test_seconds_grow_with_the_epochs(tiny_config: Config) -> None:
    short, long = (seconds(tiny_config(f"--trainer.max_epochs={epochs}")) for epochs in (1, 1000))
    few = seconds(tiny_config("--trainer.max_epochs=1000", "--trainer.max_steps=3"))
    assert long > 20 * short and few < long / 20
