"""What `benchmark` starts ends with it, even where it was killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from processes import PROC, children, running
from tiny import TINY

from ssl_bench.benchmark.runner import parse_benchmark
from ssl_bench.cli.main import main
from ssl_bench.records.run import read_run


def grid_of(tmp_path: Path, **fit: object) -> Path:
    """A benchmark file of one small run."""
    flags = dict(flag.removeprefix("--").split("=") for flag in TINY)
    shared = {name: yaml.safe_load(value) for name, value in flags.items() if name.startswith(("trainer", "probe"))}
    backbone = {"name": "vit_pico_patch4_32", "img_size": 8, "patch_size": 2, "depth": 1}
    tree = {"methods": ["simmim"], "data": ["digits"], "backbones": [backbone], "baselines": ["pixels"]}
    tree |= {"fit": shared | {"optim.warmup_epochs": 1} | fit, "evaluate": {"protocols": ["knn"]}}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def started(file: Path, runs: Path) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "ssl_bench", "benchmark", "-c", str(file), "--runs", str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.integration
@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc")
def test_no_run_outlives_a_killed_benchmark(tmp_path: Path) -> None:
    grid = started(grid_of(tmp_path, **{"trainer.max_epochs": 100_000}), tmp_path / "runs")
    deadline = time.monotonic() + 120
    while not (found := children(grid.pid)) or not list(tmp_path.glob("runs/*/checkpoints/last.ckpt")):
        assert grid.poll() is None, grid.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    grid.kill()
    grid.communicate()
    while any(map(running, found)):
        assert time.monotonic() < deadline, "the run goes on alone"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc")
def test_a_killed_grid_started_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    file = grid_of(
        tmp_path, **{"trainer.max_epochs": 20, "trainer.limit_train_batches": 10, "trainer.log_every_n_steps": 1}
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    grid = started(file, killed)
    deadline = time.monotonic() + 120
    while not (found := children(grid.pid)) or not list(killed.glob("*/checkpoints/last.ckpt")):
        assert grid.poll() is None, grid.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    grid.kill()
    grid.communicate()
    while any(map(running, found)):
        assert time.monotonic() < deadline, "the run goes on alone"
        time.sleep(0.05)
    (run,) = (path.parent for path in killed.glob("simmim-*/run.json"))
    assert read_run(run).status != "finished"
    again = started(file, killed)
    for job in parse_benchmark(["-c", str(file), "--runs", str(whole)]).jobs[:2]:
        assert main(list(job.argv)) == 0
    said = again.communicate(timeout=240)[1].decode()
    assert again.returncode == 0, said
    same = whole / run.name
    steps = [int(row.partition(",")[0]) for row in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))
    assert steps == [int(row.partition(",")[0]) for row in (same / "metrics.csv").read_text().splitlines()[1:]]
    assert (run / "backbone.safetensors").read_bytes() == (same / "backbone.safetensors").read_bytes()
    mended, once = (json.loads((folder / "results" / "knn.json").read_text()) for folder in (run, same))
    assert (mended["value"], mended["backbone"]) == (once["value"], once["backbone"])
    assert len(list(killed.glob("*/run.json"))) == 2
