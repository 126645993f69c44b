"""A configuration becomes a run folder, whatever happens on the way."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import ROOT
from safetensors.torch import load_file
from tiny import TINY

from ssl_bench.config.fit_config import dump, parse_fit
from ssl_bench.errors import UserError
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.pretraining.building import build
from ssl_bench.pretraining.nan_guard import DivergenceError
from ssl_bench.pretraining.run_record import training_flops
from ssl_bench.pretraining.training import fit
from ssl_bench.records.run import read_run, write_run
from ssl_bench.records.run_folder import run_folder

Config = Callable[..., dict[str, Any]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "backbone.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_record_is_complete(tiny_run: Path, tiny_config: Config) -> None:
    assert yaml.safe_load((tiny_run / "config.yaml").read_text()) == tiny_config()
    info = read_run(tiny_run)
    assert (info.status, info.kind, info.method, info.seed) == ("finished", "pretrained", "mae", 0)
    assert (info.steps, info.epochs, info.images_seen) == (12, 3, 12 * 64)
    assert info.data.fingerprint["sha256"]
    assert info.cost.flops == pytest.approx(training_flops(build(tiny_config())[1]) * 12 * 64)
    assert info.cost.seconds > 0 and info.cost.peak_memory_bytes > 1e6
    environment = json.loads((tiny_run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["precision"] == "32-true"
    losses = [float(row["loss_epoch"]) for row in rows(tiny_run) if row.get("loss_epoch")]
    assert len(losses) == 3 and losses[2] < losses[0]
    assert any(row["knn"] and row["linear"] and row["feature_rank"] for row in rows(tiny_run))
    assert not list(tiny_run.rglob("*.tmp"))


def test_the_checkpoint_needs_no_pickle(tiny_run: Path) -> None:
    checkpoint = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["ssl_bench"]["config"]["method"]["name"] == "mae"
    backbone, mean, _ = load_backbone(tiny_run)
    assert len(mean) == 3
    assert same(
        {f"backbone.model.{k}": v for k, v in backbone.model.state_dict().items()},
        {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("backbone.")},
    )


def test_the_same_command_again_is_done(tiny_run: Path, tiny_config: Config) -> None:
    before = (tiny_run / "backbone.safetensors").stat().st_mtime_ns
    again = fit(tiny_config(), tiny_run.parent)
    assert again.already_done and again.folder == tiny_run
    assert (tiny_run / "backbone.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("gone", ["backbone.safetensors", "backbone.json"])
def test_weights_that_are_gone_are_written_again_from_the_checkpoint(
    gone: str, tiny_run: Path, tiny_config: Config
) -> None:
    before, log, record = weights(tiny_run), rows(tiny_run), read_run(tiny_run)
    (tiny_run / gone).unlink()
    assert not fit(tiny_config(), tiny_run.parent).already_done
    assert same(weights(tiny_run), before) and rows(tiny_run) == log
    again = read_run(tiny_run)
    assert (again.status, again.steps, again.epochs, again.images_seen, again.created) == (
        *("finished", record.steps, record.epochs, record.images_seen),
        record.created,
    )
    load_backbone(tiny_run)


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_seed_repeats_and_another_does_not(precision: str, tiny_config: Config, tmp_path: Path) -> None:
    flag = f"--trainer.precision={precision}"
    first, second = (weights(fit(tiny_config(flag), tmp_path / runs).folder) for runs in ("a", "b"))
    other = weights(fit(tiny_config(flag, "--seed=1"), tmp_path / "a").folder)
    assert same(first, second)
    assert not same(first, other)


def start(config: dict[str, Any], runs: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """`fit` in a process of its own."""
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    command = [sys.executable, "-m", "ssl_bench", "fit", "-c", str(file), "--runs", str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


def wait_for_step(folder: Path, epochs: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many epochs are in the checkpoint and the next is on its way."""
    last = folder / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    seen, count = 0, 0
    while count < epochs:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        now = last.stat().st_mtime_ns if last.exists() else 0
        count, seen = count + (now != seen), now
        time.sleep(0.002)
    time.sleep(0.03)


# Long enough an epoch that a kill lands inside one, enough of them that it comes in time on a busy machine.
LONG = ("--trainer.max_epochs=16", "--trainer.limit_train_batches=20", "--probe.every_n_epochs=0")


@pytest.mark.integration
def test_killed_in_an_epoch_and_resumed_gives_the_same_bits(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(*LONG, "--backbone.drop_path=0.2")
    folder = run_folder(tmp_path / "killed", config)
    process = start(config, tmp_path / "killed", tmp_path)
    wait_for_step(folder, 2, process)
    process.kill()
    process.communicate()
    assert read_run(folder).status == "running"
    epoch = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    assert epoch < 15, "the run was over before the kill"
    assert fit(config, tmp_path / "killed").folder == folder
    whole = fit(config, tmp_path / "whole").folder
    assert same(weights(folder), weights(whole))
    assert rows(folder) == rows(whole)
    assert read_run(folder).images_seen == read_run(whole).images_seen
    assert read_run(folder).status == "finished"


@pytest.mark.integration
def test_ctrl_c_says_how_to_go_on(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(*LONG)
    folder = run_folder(tmp_path, config)
    process = start(config, tmp_path, tmp_path)
    wait_for_step(folder, 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"continues where this one stopped" in err
    assert b"Traceback" not in err
    assert out == b""
    assert read_run(folder).status == "interrupted"
    assert fit(config, tmp_path).folder == folder
    assert read_run(folder).status == "finished"


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_bench.methods.mae import MAE

    healthy = MAE.loss

    def loss(self: MAE, views: list[torch.Tensor], **drawn: Any) -> torch.Tensor:
        value = healthy(self, views, **drawn)
        return value * float("nan") if self._trainer is not None and self.trainer.global_step == 6 else value

    monkeypatch.setattr(MAE, "loss", loss)
    config = tiny_config()
    with pytest.raises(DivergenceError, match=r"step 7 \(epoch 1\); the checkpoint of epoch 0 is kept"):
        fit(config, tmp_path)
    folder = run_folder(tmp_path, config)
    info = read_run(folder)
    assert info.status == "failed" and info.error is not None and "not a number" in info.error
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


@pytest.mark.integration
def test_a_collapse_is_announced(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ssl_bench.methods.mae import MAE

    def loss(self: MAE, views: list[torch.Tensor], **drawn: Any) -> torch.Tensor:
        norm = self.backbone.model.norm  # what it scales to nothing and moves to 1 is one feature for all images
        return norm.weight.square().mean() + (norm.bias - 1).square().mean() + 0 * self.backbone(views[0]).sum()

    monkeypatch.setattr(MAE, "loss", loss)
    fit(tiny_config("--optim.base_lr=1", "--trainer.max_epochs=40", "--probe.every_n_epochs=1"), tmp_path)
    assert "the features have collapsed" in capfd.readouterr().err


def test_max_steps_ends_a_run_within_an_epoch(tiny_config: Config, tmp_path: Path) -> None:
    info = read_run(fit(tiny_config("--trainer.max_steps=5"), tmp_path).folder)
    assert (info.steps, info.images_seen, info.epochs) == (5, 5 * 64, 1.25)


def test_accumulated_batches_are_one_step(tiny_config: Config, tmp_path: Path) -> None:
    info = read_run(fit(tiny_config("--trainer.accumulate_grad_batches=2"), tmp_path).folder)
    assert (info.steps, info.images_seen) == (6, 12 * 64)


def test_unlabelled_images_can_be_pretrained_on(tiny_config: Config, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    flags = ("--data=folder", f"--data.root={photos}", "--data.batch_size=16", "--data.num_workers=0")
    folder = fit(tiny_config(*flags, "--trainer.max_epochs=1"), tmp_path / "runs").folder
    assert folder.name.startswith("mae-photos-")
    assert all(row.get("feature_rank") is not None and "knn" not in row for row in rows(folder)[:1])


def test_a_run_starts_from_an_earlier_one(tiny_run: Path, tiny_config: Config) -> None:
    started = build(tiny_config(f"--init={tiny_run}"))[1].state_dict()
    last = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert same(started, last)
    assert not same(started, build(tiny_config())[1].state_dict())


def test_a_run_that_starts_from_another_is_another(tiny_run: Path, tiny_config: Config, tmp_path: Path) -> None:
    fresh, continued = tiny_config(), tiny_config(f"--init={tiny_run}")
    assert run_folder(tmp_path, fresh) != run_folder(tmp_path, continued)
    moved = tiny_config(f"--init={tmp_path / 'elsewhere' / tiny_run.name}")
    assert run_folder(tmp_path, moved) == run_folder(tmp_path, continued)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method.decoder_dim=32"], r"mask_token is \(.*\) there, \(.*\) here: give the options in .*config.yaml"),
        (["--method.decoder_depth=2"], r"only the method here has decoder_blocks\.1"),
    ],
)
def test_an_earlier_run_that_does_not_fit_is_refused(
    flags: list[str], message: str, tiny_run: Path, tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build(tiny_config(f"--init={tiny_run}", *flags))
    with pytest.raises(UserError, match="is it the folder of a run"):
        build(tiny_config(f"--init={tmp_path}"))


def test_a_run_of_warm_up_alone_is_pointed_out(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs, said in ((1, True), (2, False)):
        fit(tiny_config(f"--trainer.max_epochs={epochs}", "--trainer.limit_train_batches=1"), tmp_path)
        assert ("--optim.warmup_epochs: 1 of 1 epochs" in capsys.readouterr().err) == said


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many batches make a step: neither is divided by their number."""
    means = []
    for accumulated in (1, 2):
        flags = (f"--trainer.accumulate_grad_batches={accumulated}", "--trainer.log_every_n_steps=1")
        folder = fit(tiny_config(*flags, "--optim.base_lr=0", "--probe.every_n_epochs=0"), tmp_path).folder
        steps = [float(row["loss"]) for row in rows(folder) if row.get("loss")]
        epochs = [float(row["loss_epoch"]) for row in rows(folder) if row.get("loss_epoch")]
        assert (len(steps), len(epochs)) == (12 // accumulated, 3)
        each = len(steps) // 3
        for epoch, mean in enumerate(epochs):
            assert mean == pytest.approx(sum(steps[epoch * each : (epoch + 1) * each]) / each, rel=1e-6)
        means.append(epochs)
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    said = capsys.readouterr().err
    assert "64 images per step, peak rate 0, 12 steps\n" in said
    assert "128 images per step (64 x 2), peak rate 0, 6 steps\n" in said


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("byol", ["--data.batch_size=1"], "BYOL needs 2 images in a batch .batch norm .*: change --data.batch_size"),
        ("simclr", ["--data.batch_size=1"], "SimCLR needs 2 images in a batch .its loss compares images.*batch_size"),
        ("simmim", ["--data.batch_size=1"], None),
    ],
)
def test_a_batch_that_is_too_small_for_a_method_is_refused(
    method: str, flags: list[str], message: str | None, tmp_path: Path
) -> None:
    shared = [flag for flag in TINY if not flag.startswith(("--method.", "--data.batch"))]
    argv = [f"--method={method}", *shared, *flags, "--trainer.max_steps=2", "--probe.every_n_epochs=0"]
    config = parse_fit([*argv, "--backbone.img_size=16"], {}).config
    if message is None:
        fit(config, tmp_path)
        return
    with pytest.raises(UserError, match=message):
        fit(config, tmp_path)


def test_another_number_of_devices_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    folder = fit(config, tmp_path).folder
    info = read_run(folder)
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save(content | {"ssl_bench": content["ssl_bench"] | {"world_size": 2}}, last)
    write_run(folder, dataclasses.replace(info, status="interrupted"))
    with pytest.raises(UserError, match="was trained on 2 devices and here are 1"):
        fit(config, tmp_path)
    assert torch.load(last, weights_only=True)["global_step"] == 12


def test_a_way_of_sharing_weights_that_would_clip_and_save_them_in_parts_is_refused(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tiny_config("--trainer.strategy=fsdp")
    assert "--trainer.strategy" in capsys.readouterr().err
    config = tiny_config()  # of a configuration that no command line has checked
    config["trainer"]["strategy"] = "fsdp"
    with pytest.raises(UserError, match="--trainer.strategy fsdp: auto, ddp or ddp_find"):
        fit(config, tmp_path)
