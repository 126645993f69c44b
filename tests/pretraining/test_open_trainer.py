"""What the Trainer's options do: callbacks, loggers, profiler, checkpointed activations, averaged weights."""

import copy
import csv
import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from ssl_bench.cli.main import main
from ssl_bench.config import class_paths
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import BackboneOptions, TrainerOptions
from ssl_bench.config.trainer_refusals import REFUSED
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.checkpointed_blocks import checkpoint_activations
from ssl_bench.records.run_folder import identity

FIT = ["fit", "--method=simclr", "--data=digits", "--backbone=vit_pico_patch4_32", "--backbone.img_size=8"]
FIT += ["--data.batch_size=32", "--trainer.limit_train_batches=3", "--trainer.max_epochs=2", "--optim.warmup_epochs=0"]
FIT += ["--probe.every_n_epochs=0", "--trainer.log_every_n_steps=1"]

CALLBACK = """
from pathlib import Path
import pytorch_lightning as pl

class Count(pl.Callback):
    def __init__(self):
        self.batches = 0
    def on_train_batch_end(self, *given):
        self.batches += 1
    def on_train_end(self, trainer, module):
        Path("batches").write_text(str(self.batches))

class Needy(pl.Callback):
    def __init__(self, what):
        pass

def plain():
    pass
"""


def fitted(capfd, *more: str) -> Path:
    assert main([*FIT, *more]) == 0
    return Path(capfd.readouterr().out.strip().splitlines()[-1])


def losses(folder: Path) -> list[str]:
    return [row["loss"] for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines()) if row["loss"]]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(class_paths, "_NAMED", set())


def test_every_option_of_lightnings_trainer_is_offered_or_refused_with_a_reason(capfd):
    ours = {field.name for field in fields(TrainerOptions)}
    theirs = set(inspect.signature(pl.Trainer).parameters)
    refused = {name.removeprefix("trainer.") for name in REFUSED}
    assert theirs - ours == refused and not refused & ours
    assert main([*FIT, "--trainer.max_time=00:01:00:00"]) == 2
    assert "--trainer.max_time is no option here: a run that stops early" in capfd.readouterr().err


def test_runs_of_before_keep_their_identity():
    """Hashes of configurations as they were before these options came."""
    known = {
        ("simclr", "digits"): "12382a1b",
        ("mae", "cifar10"): "3db2e944",
        ("dino", "digits-canvas"): "f11adcbf",
    }
    for (method, data), expected in known.items():
        assert identity(parse_fit(["--method", method, "--data", data], {}).config) == expected
    same = parse_fit([*FIT[1:], "--trainer.loggers=csv,tensorboard", "--trainer.profiler=simple"], {}).config
    other = parse_fit([*FIT[1:], "--trainer.ema=0.9"], {}).config
    plain = identity(parse_fit(FIT[1:], {}).config)
    assert identity(same) == plain != identity(other)


@pytest.mark.integration
def test_callbacks(capfd, monkeypatch, tmp_path):
    (tmp_path / "my_callbacks.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(tmp_path)
    fitted(capfd, "--trainer.callbacks=my_callbacks.Count,pytorch_lightning.callbacks.Timer")
    assert Path("batches").read_text() == "6"
    for name, said in (("Needy", "without arguments"), ("plain", "no pytorch_lightning.Callback"), ("Cont", "'Count'")):
        assert main([*FIT, f"--trainer.callbacks=my_callbacks.{name}", "--seed=1"]) == 2
        assert said in capfd.readouterr().err
    Path("x.yaml").write_text("trainer: {callbacks: my_callbacks.Count}\n")
    class_paths._NAMED.clear()
    assert main([*FIT, "-c", "x.yaml", "--seed=2"]) == 2
    assert "name it yourself: --trainer.callbacks my_callbacks.Count" in capfd.readouterr().err
    del sys.modules["my_callbacks"]


@pytest.mark.integration
def test_tensorboard_and_mlflow_have_the_rows_of_the_file(capfd, monkeypatch):
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = fitted(capfd, "--trainer.loggers=csv,tensorboard,mlflow")
    expected = [pytest.approx(float(loss), rel=1e-6) for loss in losses(folder)]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == expected and len(expected) == 6
    client = MlflowClient(f"file:{Path('runs').resolve() / 'mlruns'}")
    name = (folder / "mlflow_run.txt").read_text().strip()
    assert [point.value for point in client.get_metric_history(name, "loss")] == expected
    assert client.get_run(name).data.params["method.name"] == "simclr"
    assert client.get_run(name).info.run_name == folder.name


def test_the_profiler_writes_into_the_run(capfd):
    folder = fitted(capfd, "--trainer.profiler=simple")
    (report,) = folder.glob("*profile*.txt")
    assert "run_training_batch" in report.read_text()


@pytest.mark.integration
def test_averaged_weights_follow_the_formula_and_are_a_branch(capfd):
    folder = fitted(capfd, "--trainer.ema=0.5", "--optim.base_lr=0.01", "--trainer.max_epochs=1")
    from safetensors.torch import load_file

    average, last = load_file(folder / "backbone-ema.safetensors"), load_file(folder / "backbone.safetensors")
    assert average.keys() == last.keys()
    assert any(not torch.equal(average[name], last[name]) for name in last)
    assert main(["evaluate", str(folder), "--protocols=knn", "--device=cpu"]) == 0
    assert len(list((folder / "results").glob("knn*.json"))) == 2
    plain = fitted(capfd, "--optim.base_lr=0.01", "--trainer.max_epochs=1")
    assert losses(plain) == losses(folder)  # nothing of training changes


def test_an_average_of_three_steps_by_hand():
    from types import SimpleNamespace

    import ssl_bench
    from ssl_bench.pretraining.weight_average import WeightAverage

    method = ssl_bench.create_method("simclr", backbone="vit_pico_patch4_32", image_size=32)
    average, trainer = WeightAverage(0.75), SimpleNamespace(global_step=0)
    average.on_train_start(trainer, method)
    expected = [parameter.detach().clone() for parameter in method.backbone.parameters()]
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in method.backbone.parameters():
                parameter.add_(step)
        trainer.global_step = step
        for _ in range(2):  # a second batch of the same step changes nothing
            average.on_train_batch_end(trainer, method, None, None, 0)
        expected = [0.75 * e + 0.25 * p for e, p in zip(expected, method.backbone.parameters(), strict=True)]
    for own, wanted in zip(average.average.parameters(), expected, strict=True):
        assert torch.allclose(own, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_pico_patch4_32", "resnet_nano", "swin_pico_patch2_32", "beit_pico_patch4_32"])
def test_checkpointed_activations_give_the_same_gradients_and_statistics(name):
    torch.manual_seed(0)
    plain = Backbone(BackboneOptions(name, img_size=32, drop_path=0.5 if "vit" in name else 0.0)).train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(torch.nn.ModuleList([saving]))
    images = torch.rand(4, 3, 32, 32)
    kept = []
    for network in (plain, saving):
        stored = 0

        def count(tensor):
            nonlocal stored
            stored += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network(images).square().mean()
        loss.backward()
        kept.append(stored)
    assert kept[1] < kept[0] / 2  # values that wait for the backward
    for own, other in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert own[0] == other[0] and torch.equal(own[1].grad, other[1].grad), own[0]
    for own, other in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(own, other)
    with pytest.raises(UserError, match="test_convnext"):
        checkpoint_activations(torch.nn.ModuleList([Backbone(BackboneOptions("test_convnext", img_size=32))]))


@pytest.mark.integration
def test_a_run_with_checkpointed_activations_is_the_run_without(capfd):
    folder = fitted(capfd)
    saving = fitted(capfd, "--trainer.checkpoint_activations=true", "--runs=others")
    assert losses(folder) == losses(saving) and folder.name == saving.name
    assert json.loads((saving / "run.json").read_text())["status"] == "finished"
