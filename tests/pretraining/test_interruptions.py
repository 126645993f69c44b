"""A run that is stopped, killed or cannot write goes on as if nothing had been: the same weights, the same rows."""

import csv
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from processes import FIT, PROC, SECONDS, children, read_until, running, started, wait_until
from safetensors.torch import load_file
from tiny import TINY

from ssl_bench.config.fit_config import parse_fit
from ssl_bench.errors import Terminated, UserError
from ssl_bench.methods.mae import MAE
from ssl_bench.pretraining.last_checkpoint import SaveLast
from ssl_bench.pretraining.training import fit
from ssl_bench.records.run import read_run
from ssl_bench.records.run_folder import run_folder

pytestmark = pytest.mark.integration

Config = Callable[..., dict[str, Any]]
# 20 batches an epoch, of which two make a step; what is drawn at random within the network is drawn, too.
LONG = (
    *("--trainer.limit_train_batches=20", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2"),
    *("--backbone.drop_path=0.2", "--trainer.log_every_n_steps=1", "--probe.every_n_epochs=1"),
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "backbone.safetensors")


def same_run(a: Path, b: Path) -> bool:
    """Whether two finished runs have the same weights and rows, and say so of themselves."""
    ours, theirs = weights(a), weights(b)
    same_weights = all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    records = [(r.status, r.steps, r.epochs, r.images_seen) for r in (read_run(a), read_run(b))]
    return same_weights and rows(a) == rows(b) and records[0] == records[1] and records[0][0] == "finished"


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def last(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    config = parse_fit(["--method=mae", *TINY, *LONG], {}).config
    return fit(config, tmp_path_factory.mktemp("whole")).folder


@contextmanager
def at_batch(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Something happens while the loss of a batch is computed, counted over all epochs."""
    healthy, seen = MAE.loss, 0

    def loss(self: MAE, views: list[torch.Tensor], **drawn: Any) -> torch.Tensor:
        nonlocal seen
        if self._trainer is not None:
            seen += 1
            if seen == number:
                act()
        return healthy(self, views, **drawn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAE, "loss", loss)
        yield


@pytest.mark.parametrize(
    ("number", "batch", "steps"),
    [(signal.SIGTERM, 7, 4), (signal.SIGINT, 8, 4), (signal.SIGTERM, 20, 10), (signal.SIGTERM, 33, 17)],
)
def test_a_signal_saves_within_the_epoch_and_the_run_goes_on_from_there(
    number: int, batch: int, steps: int, tiny_config: Config, tmp_path: Path, whole: Path
) -> None:
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path / "runs", config)
    kind = KeyboardInterrupt if number == signal.SIGINT else Terminated
    with at_batch(batch, lambda: os.kill(os.getpid(), number)), pytest.raises(kind):
        fit(config, tmp_path / "runs")
    info = read_run(folder)
    assert (info.status, info.steps, info.images_seen) == ("interrupted", steps, steps * 2 * 64)
    assert last(folder)["global_step"] == steps
    assert len(rows(folder)) >= steps, "the log is written before the checkpoint"
    created = info.created
    assert fit(config, tmp_path / "runs").folder == folder
    assert same_run(folder, whole)
    assert read_run(folder).created == created
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_usr1_saves_and_goes_on(tiny_config: Config, tmp_path: Path, whole: Path) -> None:
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path / "runs", config)
    with (
        at_batch(5, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        at_batch(11, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
    ):
        assert fit(config, tmp_path / "runs").folder == folder
    assert same_run(folder, whole)


def test_usr1_queues_the_job_again_when_asked(
    tiny_config: Config, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    config = tiny_config(*LONG, "--trainer.requeue=true")
    folder = run_folder(tmp_path / "runs", config)
    assert folder.name == whole.name, "it is the same run, wherever it is queued"
    with at_batch(5, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Terminated):
        fit(config, tmp_path / "runs")
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert last(folder)["global_step"] == 3
    fit(config, tmp_path / "runs")
    assert same_run(folder, whole)


def test_time_saves_within_the_epoch(
    tiny_config: Config, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = SaveLast._save

    def recorded(callback: SaveLast, trainer: pl.Trainer) -> None:
        saved.append(trainer.global_step)
        save(callback, trainer)

    monkeypatch.setattr(SaveLast, "_save", recorded)
    folder = fit(tiny_config(*LONG, "--trainer.checkpoint_minutes=1e-9"), tmp_path / "runs").folder
    assert saved == list(range(1, 21))
    assert same_run(folder, whole)


@pytest.mark.parametrize("damage", ["cut", "bits", "empty", "text"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, tiny_config: Config, tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path / "runs", config)
    with at_batch(27, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Terminated):
        fit(config, tmp_path / "runs")
    path = folder / "checkpoints" / "last.ckpt"
    spoil(path, damage)
    capfd.readouterr()
    fit(config, tmp_path / "runs")
    said = capfd.readouterr().err
    assert f"{path} is damaged" in said and "going on from previous.ckpt" in said
    assert "going on from step 10" in said
    assert same_run(folder, whole)


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "bits":
        for place in range(len(content) // 3, len(content) // 3 + 16):
            content[place] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "bits": content, "empty": b"", "text": b"hello"}[damage])


def test_where_all_checkpoints_are_damaged_the_way_on_is_said(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path, config)
    with at_batch(27, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Terminated):
        fit(config, tmp_path)
    for path in (folder / "checkpoints").iterdir():
        spoil(path, "cut")
    with pytest.raises(UserError, match=r"last.ckpt is damaged .*: bring it back, or remove .*checkpoints to begin"):
        fit(config, tmp_path)


def test_a_damaged_log_is_said_so_and_costs_its_lines_alone(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path, config)
    with at_batch(27, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Terminated):
        fit(config, tmp_path)
    lines = (folder / "metrics.csv").read_bytes().splitlines(keepends=True)
    lines[3] = b"\xff\x00garbage\n"
    lines[5] = lines[5][:2] + b"x,,,\n"
    (folder / "metrics.csv").write_bytes(b"".join(lines))
    capfd.readouterr()
    fit(config, tmp_path)
    assert "metrics.csv is damaged: 2 of its lines" in capfd.readouterr().err
    steps = [int(row["step"]) for row in rows(folder)]
    assert steps == sorted(set(range(21)) - {2, 4})


def test_a_full_disk_costs_nothing_that_was_there(tiny_config: Config, tmp_path: Path, whole: Path) -> None:
    """A limit on a file's size fails in the same places."""
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path / "runs", config)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        at_batch(31, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))),
        at_batch(35, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                fit(config, tmp_path / "runs")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(folder / "checkpoints" / "last.ckpt")
    assert last(folder)["global_step"] == 10
    assert not list(folder.rglob("*.tmp"))
    info = read_run(folder)
    assert info.status == "failed" and "File too large" in (info.error or "")
    fit(config, tmp_path / "runs")
    assert same_run(folder, whole)


def test_what_a_killed_process_left_is_cleared(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    folder = run_folder(tmp_path, config)
    (folder / "checkpoints").mkdir(parents=True)
    for name in (".last.4711.tmp", f".last.ckpt.elsewhere-{os.getpid()}-0a0b0c0d.tmp"):
        (folder / "checkpoints" / name).write_bytes(b"half")
    fit(config, tmp_path)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # many commands, each of which loads torch
def test_killed_at_any_time_it_ends_as_if_it_had_not_been(tiny_config: Config, tmp_path: Path) -> None:
    flags = [*TINY, *LONG, "--trainer.max_epochs=6", "--trainer.checkpoint_minutes=0.005"]
    whole = fit(tiny_config(*flags), tmp_path / "whole").folder
    folder = tmp_path / "runs" / whole.name
    draw, kills = random.Random(0), 0
    while not (folder / "backbone.safetensors").exists():
        process = started(["--method=mae", *flags, f"--runs={tmp_path}/runs"], FIT)
        read_until(process, "images per step")
        time.sleep(draw.uniform(0, 1.5))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills > 1
    fit(tiny_config(*flags), tmp_path / "runs")
    assert same_run(folder, whole)
    assert not list(folder.rglob("*.tmp"))


def test_a_signal_before_training_ends_the_process_at_once(tmp_path: Path) -> None:
    process = started(["--method=mae", *TINY, f"--runs={tmp_path}"])
    read_until(process, "recipe mae")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143, said
    assert "Traceback" not in said and "the same command continues" in said


@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc")
@pytest.mark.slow  # minutes, and it depends on when signals arrive
def test_a_scheduler_that_signals_the_workers_too_loses_nothing(tmp_path: Path) -> None:
    """As SLURM does: every process of the job gets the signal, those that decode images among them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(200):
        pixels = np.random.default_rng(number).integers(0, 255, (100 + number, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    flags = [flag for flag in TINY if not flag.startswith(("--data", "--trainer.limit"))]
    flags += ["--data=folder", f"--data.root={photos}", "--data.batch_size=2", "--data.num_workers=1"]
    process = started(["--method=mae", *flags, "--probe.every_n_epochs=0", f"--runs={tmp_path}/runs"])
    read_until(process, "images per step")
    wait_until(lambda: children(process.pid), process)
    time.sleep(1.0)  # for the worker to begin
    workers = children(process.pid)
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    (folder,) = (tmp_path / "runs").iterdir()
    assert 0 < last(folder)["global_step"] < 300
    assert not any(map(running, workers))
