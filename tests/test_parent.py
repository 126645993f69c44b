"""What `benchmark` starts ends with it, even where it was killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import TINY

PROC = Path("/proc")
ROOT = Path(__file__).parents[1]


def children(pid: int) -> list[int]:
    found = []
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def running(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc")
def test_no_run_outlives_a_killed_benchmark(tmp_path: Path) -> None:
    flags = dict(flag.removeprefix("--").split("=") for flag in TINY)
    shared = {name: yaml.safe_load(value) for name, value in flags.items() if name.startswith(("trainer", "probe"))}
    shared |= {"optim.warmup_epochs": 1, "trainer.max_epochs": 100_000}
    backbone = {"name": "vit_pico_patch4_32", "img_size": 8, "depth": 1}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({"methods": ["simmim"], "data": ["digits"], "backbones": [backbone], "fit": shared}))
    argv = [sys.executable, "-m", "ssl_bench", "benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    grid = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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
