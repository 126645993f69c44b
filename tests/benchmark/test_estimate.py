"""How long a grid takes: from steps that were measured, and from what evaluations took before."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_bench.benchmark import calibration
from ssl_bench.benchmark.calibration import seconds
from ssl_bench.benchmark.estimate import estimated
from ssl_bench.benchmark.job import Job
from ssl_bench.benchmark.plan import plan
from ssl_bench.errors import UserError
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import EvaluationCost, Result, write_result
from ssl_bench.records.run import DataRecord, RunInfo, write_run

Config = Callable[..., dict[str, Any]]


def fits(tmp_path: Path, config: dict[str, Any], seeds: range) -> list[Job]:
    return [
        Job(
            f"{config['method']['name']}  digits  seed {seed}", ("fit",), str(seed), tmp_path / str(seed), None, "", own
        )
        for seed in seeds
        for own in [{**config, "seed": seed}]
    ]


def evaluation() -> Job:
    return Job("evaluate", ("evaluate", "pixels"), "evaluate")


def test_kinds_of_run_are_measured_once_and_evaluations_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "ssl_bench.benchmark.estimate._calibrated",
        lambda configs, slots: (asked.append(len(configs)), [{"seconds": 600.0}, {"error": "no run x"}])[1],
    )
    mae, simclr = ({"method": {"name": name}} for name in ("mae", "simclr"))
    run = tmp_path / "runs" / "before"
    data = DataRecord("digits", {"sha256": "0"})
    write_run(run, RunInfo("finished", "baseline", "pixels", data))
    record = Result("knn", 1, {}, "", None, None, 1, data, cost=EvaluationCost(seconds=60.0))
    write_result(run, record, Predictions(["a"], [0], {}))
    jobs = [*fits(tmp_path, mae, range(3)), *fits(tmp_path, simclr, range(1))]
    lines = estimated(jobs, {evaluation(): ["knn", "linear"], evaluation(): []}, tmp_path / "runs", 2)
    assert asked == [2]
    assert "  3 x mae  digits: 10 min each" in lines and "  1 x simclr  digits: unknown: no run x" in lines
    assert "  1 evaluations, each as here before: knn 60 s" in lines
    assert any("not counted" in line and line.endswith("linear") for line in lines)
    assert lines[-1] == "  together: at least 16 min"  # (3 x 10 + 1) / 2, rounded to even


def test_no_faster_than_its_longest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_bench.benchmark.estimate._calibrated", lambda configs, slots: [{"seconds": 6000.0}])
    lines = estimated(fits(tmp_path, {"method": {"name": "mae"}}, range(2)), {}, tmp_path, 8)
    assert lines[-1] == "  together: 1.7 h"


def test_seconds_grow_with_the_epochs(tiny_config: Config) -> None:
    short, long = (seconds(tiny_config(f"--trainer.max_epochs={epochs}")) for epochs in (1, 1000))
    few = seconds(tiny_config("--trainer.max_epochs=1000", "--trainer.max_steps=3"))
    assert long > 20 * short and few < long / 20


def test_followers_that_differ_in_their_seed_are_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def calibrated(configs: list[Any], slots: int) -> list[dict[str, Any]]:
        asked.extend(configs)
        return [{"seconds": 60.0}] * len(configs)

    monkeypatch.setattr("ssl_bench.benchmark.estimate._calibrated", calibrated)
    tuned = {"name": "simclrv2-finetune", "data": {"label_fraction": 0.5}}
    distilled = {"name": "simclrv2-distill", "method": {"teacher": "$previous"}}
    tree = {
        "methods": [{"name": "simclrv2", "then": [{**tuned, "then": [distilled]}]}],
        "data": ["digits"],
        "backbones": ["resnet_micro", "resnet_nano"],
        "seeds": [0, 1, 2],
    }
    jobs = plan(tree, tmp_path)
    lines = estimated(jobs, {}, tmp_path, 1)
    assert len(jobs) > 18 and len(asked) == 6 and sum("  3 x simclrv2" in line for line in lines) == 6
    ready = next(job for job in jobs if job.config and job.config["seed"] == 2)
    assert ready.folder is not None
    write_run(ready.folder, RunInfo("finished", "pretrained", "simclrv2", DataRecord("digits")))
    asked.clear()
    estimated(jobs, {}, tmp_path, 1)
    assert str(ready.folder) in [config.get("init") for config in asked]  # the one that has its run before


def test_a_kind_that_cannot_be_measured_costs_no_other(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(config: dict[str, Any]) -> float:
        if config["seed"] == 1:
            raise UserError("no run x")
        if config["seed"] == 2:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 1 GiB")
        return seconds(config)

    monkeypatch.setattr("ssl_bench.benchmark.calibration.seconds", of)
    configs = [tiny_config(f"--seed={seed}", "--trainer.max_epochs=1") for seed in range(4)]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(configs)))
    calibration.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert found[0]["seconds"] > 0 and found[3]["seconds"] > 0
    assert found[1:3] == [
        {"error": "no run x"},
        {"error": "RuntimeError: CUDA out of memory. Tried to allocate 1 GiB"},
    ]


@pytest.mark.integration
def test_a_process_that_ends_costs_one_kind_and_its_last_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import json, os, sys
for config in json.load(sys.stdin):
    if config["method"]["name"] == "mae":
        print("warning\\nterminated: no memory", file=sys.stderr, flush=True)
        os._exit(9)
    print(json.dumps({"seconds": 60.0}), flush=True)
"""
    run = subprocess.run
    monkeypatch.setattr(
        "ssl_bench.benchmark.estimate.subprocess.run",
        lambda argv, **given: run([sys.executable, "-c", program], **given),
    )
    names = ("mae", "simclr", "byol")
    jobs = [job for name in names for job in fits(tmp_path, {"method": {"name": name}}, range(1))]
    lines = estimated(jobs, {}, tmp_path, 1)
    assert "  1 x mae  digits: unknown: its process ended with 9: terminated: no memory" in lines
    assert "  1 x simclr  digits: 60 s each" in lines and "  1 x byol  digits: 60 s each" in lines
    assert lines[-1] == "  together: at least 2 min"
