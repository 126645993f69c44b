"""`ssl-bench fit` in two processes, by each launcher: they share one run, write it once, and end together."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import FIT, PROC, SECONDS, TORCHRUN, children, read_until, running, started
from safetensors.torch import load_file
from tiny import TINY

from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.records.run import read_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
]
SHARED = [flag for flag in TINY if not flag.startswith(("--method.", "--probe.every", "--trainer.limit"))]
PATCHES = ["--backbone.img_size=16"]  # four by four
SIZES = {
    "mae": ["--method.decoder_dim=16", "--method.decoder_depth=1", "--method.decoder_heads=2"],
    "simmim": PATCHES,
    "cae": [*PATCHES, "--method.tokenizer=pixels", "--method.decoder_depth=1", "--method.regressor_depth=1"],
    "simclr": ["--method.projection_dim=16"],
    "simclrv2": ["--method.projection_dim=16"],
    "byol": ["--method.hidden_dim=16"],
    "dino": ["--method.prototypes=32", "--method.hidden_dim=16", "--method.bottleneck_dim=8", "--method.local_views=0"],
    "ibot": [
        *(*PATCHES, "--method.prototypes=32", "--method.hidden_dim=16"),
        *("--method.bottleneck_dim=8", "--method.local_views=0"),
    ],
}
FAST = ("mae", "byol")  # with batch norms and without
TWO = "--trainer.devices=2"


def flags_of(method: str, runs: Path, *more: str) -> list[str]:
    return [f"--method={method}", *SHARED, *SIZES[method], f"--runs={runs}", *more]


def finished(process: "subprocess.Popen[str]") -> Path:
    """The folder of a run that ended well, which is named once."""
    out, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    (folder,) = out.split()
    assert read_run(Path(folder)).status == "finished"
    return Path(folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (load_file(folder / "backbone.safetensors") for folder in (a, b))
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


@pytest.mark.parametrize(
    "method", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
)
def test_every_method_trains_and_is_probed_on_two_devices(method: str, tmp_path: Path) -> None:
    """Ten joint batches of 1,287 images an epoch, a probe at the start and each epoch."""
    process = started(flags_of(method, tmp_path, TWO, "--trainer.log_every_n_steps=1", "--probe.every_n_epochs=1"))
    folder = finished(process)
    assert list(tmp_path.iterdir()) == [folder]
    info = read_run(folder)
    assert (info.steps, info.epochs, info.images_seen) == (30, 3, 30 * 128)
    assert [int(row["step"]) for row in rows(folder)] == list(range(31))
    assert sum(bool(row["knn"] and row["linear"] and row["feature_rank"]) for row in rows(folder)) == 4
    assert sum(bool(row["loss_epoch"]) for row in rows(folder)) == 3
    assert all(weight.isfinite().all() for weight in load_backbone(folder)[0].state_dict().values())
    assert not list(folder.rglob("*.tmp"))


def test_a_signal_stops_all_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    more = (TWO, "--data.batch_size=8", "--trainer.max_epochs=2", "--probe.every_n_epochs=0")
    process = started(flags_of("byol", tmp_path / "runs", *more))
    said = read_until(process, "images per step")
    assert "16 images per step (8 x 2 devices)" in said
    ranks = children(process.pid)
    assert len(ranks) == 2
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (143, ""), said
    assert said.splitlines() == ["ssl-bench: ended by SIGTERM; the same command continues where this one stopped"]
    assert not any(map(running, ranks))
    (folder,) = (tmp_path / "runs").iterdir()
    info = read_run(folder)
    assert info.status == "interrupted" and 0 < info.steps < 160 and info.steps % 80
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == info.steps
    assert finished(started(flags_of("byol", tmp_path / "runs", *more))) == folder
    whole = finished(started(flags_of("byol", tmp_path / "whole", *more)))
    assert same_weights(folder, whole) and rows(folder) == rows(whole)
    assert read_run(folder).images_seen == read_run(whole).images_seen == 160 * 16


@pytest.mark.parametrize(
    "victim", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(None, marks=pytest.mark.slow)]
)
@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc")
def test_no_process_outlives_another_that_was_killed(victim: int | None, tmp_path: Path) -> None:
    """Either of the two, or the one that started them."""
    process = started(flags_of("byol", tmp_path, TWO, "--trainer.max_epochs=1000"))
    said = read_until(process, "images per step")
    ranks = children(process.pid)
    os.kill(process.pid if victim is None else ranks[victim], signal.SIGKILL)
    out, said = process.communicate(timeout=SECONDS)
    assert "Traceback" not in said
    deadline = time.monotonic() + SECONDS
    while any(map(running, ranks)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if victim is not None:
        assert (process.returncode, out) == (1, "")
        errors = [line for line in said.splitlines() if line.startswith("ssl-bench")]
        assert errors == [f"ssl-bench: error: process {victim} of 2 was ended by SIGKILL; the same command continues"]


def test_torchruns_processes_share_one_run(tmp_path: Path) -> None:
    folder = finished(started(flags_of("mae", tmp_path, "--trainer.max_epochs=1"), TORCHRUN))
    info = read_run(folder)
    assert (info.steps, info.images_seen) == (10, 1280)


def slurm(rank: int, job: int = 4711, **more: str) -> dict[str, str]:
    """What srun tells a task."""
    told = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    return told | {"SLURM_JOB_ID": str(job), "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"} | more


@pytest.mark.slow
def test_sruns_tasks_share_one_run_and_its_requeue_goes_on(tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    more = ("--data.batch_size=8", "--trainer.max_epochs=2", "--probe.every_n_epochs=0", "--trainer.requeue=true")
    job = os.getpid() % 9000  # a port of its own follows from it
    argv = flags_of("byol", tmp_path / "runs", *more)
    tasks = [started(argv, FIT, **slurm(rank, job, PATH=path)) for rank in range(2)]
    read_until(tasks[0], "images per step")
    time.sleep(0.3)
    for task in tasks:  # as SLURM does, to all tasks
        task.send_signal(signal.SIGUSR1)
    ends = [task.communicate(timeout=SECONDS) for task in tasks]
    assert [task.returncode for task in tasks] == [143, 143], ends
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    (folder,) = (tmp_path / "runs").iterdir()
    assert 0 < read_run(folder).steps < 160
    tasks = [started(argv, FIT, **slurm(rank, job)) for rank in range(2)]
    assert tasks[1].communicate(timeout=SECONDS)[0] == ""
    assert finished(tasks[0]) == folder
    whole = finished(started(flags_of("byol", tmp_path / "whole", *more, TWO)))
    assert same_weights(folder, whole)


@pytest.mark.slow
def test_another_number_of_processes_is_refused_and_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    argv = flags_of("mae", tmp_path, "--trainer.max_epochs=2", "--probe.every_n_epochs=0", "--data.batch_size=8")
    process = started(argv, TORCHRUN)
    read_until(process, "images per step")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    (folder,) = tmp_path.iterdir()
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    alone = started(argv)
    _, said = alone.communicate(timeout=SECONDS)
    assert alone.returncode == 2
    assert "was trained on 2 devices and here are 1" in said.splitlines()[-1]
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
