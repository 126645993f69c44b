"""Devices that are not there are refused before anything is built on them."""

from pathlib import Path

import pytest
import torch

from ssl_bench.cli.main import main
from ssl_bench.config.options import TrainerOptions
from ssl_bench.errors import UserError
from ssl_bench.runtime.devices import check_trainer, own_device


@pytest.fixture(params=[0, 2], ids=["no GPU", "two GPUs"])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return int(request.param)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, 0),
        ({"accelerator": "cpu", "devices": 2}, 0),
        ({"accelerator": "gpu"}, 1),
        ({"accelerator": "cuda", "devices": 2}, 1),
        ({"accelerator": "gpu", "devices": "0,1"}, 1),
        ({"accelerator": "gpu", "devices": -1}, 1),
        ({"precision": "16-mixed"}, 1),
        ({"accelerator": "cpu", "precision": "16-true"}, 3),
        ({"accelerator": "cpu", "devices": 999}, 3),
        ({"accelerator": "cpu", "devices": "0,1"}, 3),
        ({"accelerator": "cpu", "devices": -1}, 3),
        ({"accelerator": "gpu", "devices": 3}, 3),
        ({"accelerator": "gpu", "devices": "0,2"}, 3),
        ({"accelerator": "mps"}, 3),
    ],
    ids=str,
)
def test_training(options: dict, needs: int, gpus: int) -> None:
    if gpus >= needs:
        check_trainer(TrainerOptions(**options))
        return
    with pytest.raises(UserError, match=r"--trainer\.\w+ \S+") as error:
        check_trainer(TrainerOptions(**options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "needs"), [("auto", 0), ("cpu", 0), ("cuda", 1), ("cuda:1", 2), ("cuda:2", 3), ("mps", 3)]
)
def test_evaluation(device: str, needs: int, gpus: int) -> None:
    if gpus >= needs:
        own_device(device)
        return
    with pytest.raises(UserError, match=f"--device {device}: "):
        own_device(device)


def test_no_process_is_started_for_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ssl_bench.runtime.launch.run_processes", lambda *_: pytest.fail("processes were started"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ["--trainer.accelerator=gpu", "--trainer.devices=99", f"--runs={tmp_path}"]
    assert main(["fit", "--method=mae", "--data=digits", *flags]) == 2
    assert "--trainer.accelerator gpu" in capsys.readouterr().err
