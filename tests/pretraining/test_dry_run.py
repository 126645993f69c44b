"""What a run is said to take, against what it takes: counted by torch's memory tracker, and by the trainer itself."""

import json
import math
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from small import build, labels_of, views_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ssl_bench.cli.main import main
from ssl_bench.config import registry
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.options import DryRunOptions, TrainerOptions
from ssl_bench.errors import UserError
from ssl_bench.optim.optimizers import build_optimizer
from ssl_bench.pretraining.building import build as built
from ssl_bench.pretraining.dry_run.activation_memory import ActivationMemory, fitted, kept_bytes, mean_bytes
from ssl_bench.pretraining.dry_run.estimate import GIB, LEFT_FREE, _length, dry_run
from ssl_bench.pretraining.dry_run.measured_steps import take_steps
from ssl_bench.pretraining.method import Method

SMALL = ("--data=digits", "--data.batch_size=64", "--trainer.accelerator=cpu", "--trainer.precision=32-true")


def config_of(method: str, *flags: str) -> dict[str, Any]:
    return parse_fit([f"--method={method}", *flags], {}).config


def test_bytes_of_each_tensor_that_is_kept_once() -> None:
    first, second = nn.Linear(6, 10), nn.Linear(10, 4)
    x = torch.rand(5, 6)

    def loss() -> Tensor:
        hidden = first(x).relu()  # kept: x, and relu's output, which the second layer keeps as well
        return second(hidden).square().sum()  # square keeps its input

    held = [*first.parameters(), *second.parameters()]
    assert sorted(kept_bytes(loss, held, [])) == sorted([4 * 5 * 6, 4 * 5 * 10, 4 * 5 * 4])
    assert sum(kept_bytes(loss, held, [x])) == 4 * 5 * (6 + 10 + 4)  # a view that is kept counts once
    assert sum(kept_bytes(loss, held, [x, torch.rand(5, 3)])) == 4 * 5 * (6 + 10 + 4 + 3)


def test_what_grows_with_images_and_with_their_pairs() -> None:
    def sizes(b: int) -> list[int]:
        return [1000, 40 * b, 8 * (2 * b) * (2 * b - 1), 12 * b + 12]

    memory = fitted(sizes(4), sizes(8), (4, 8))
    for images in (1, 64, 1000):
        assert memory.of(images) == pytest.approx(sum(sizes(images)), rel=0.005, abs=110)
    assert memory.per_pair == pytest.approx(32)
    drawn_anew = fitted([100, 40], [130, 80], (4, 8))  # the first, hidden by chance, is of images all the same
    assert drawn_anew == ActivationMemory(0.0, 130 / 8 + 10.0, 0.0)
    others = fitted([10, 10], [10, 10, 20], (4, 8))  # other tensors: their sums are compared
    assert others == ActivationMemory(0.0, 5.0, 0.0)


@pytest.mark.parametrize("memory", [ActivationMemory(100.0, 7.0, 0.0), ActivationMemory(100.0, 7.0, 0.5)])
def test_the_largest_batch_fits_and_the_next_does_not(memory: ActivationMemory) -> None:
    for free in (150.0, 1e4, 1e9):
        most = memory.most_images(free)
        assert memory.of(most) <= free < memory.of(most + 1)
    assert memory.most_images(90.0) == memory.most_images(106.0) == 0


def kept_by(method: Method, images: int, draws: int = 4) -> list[float]:
    views = views_of(method, images)
    labels = {"labels": labels_of(images)} if method.needs_labels else {}
    torch.manual_seed(0)
    held = [*method.parameters(), *method.buffers()]
    return mean_bytes([kept_bytes(lambda: method.loss(views, **labels), held, views) for _ in range(draws)])


BACKBONES = {
    "ResNet": "resnet_nano",
    "ViT": "vit_pico_patch4_32",
    "BEiT": "beit_pico_patch4_32",
    "Swin": "swin_pico_patch2_32",
}
WITHOUT_A_TEACHER_RUN = [name for name in registry.names("methods") if name != "simclrv2-distill"]


@pytest.mark.parametrize("name", WITHOUT_A_TEACHER_RUN)
def test_eight_images_tell_what_forty_eight_keep(name: str) -> None:
    few, many, asked = (kept_by(build(name, backbone_of(name)), images) for images in (4, 8, 48))
    said = fitted(few, many, (4, 8)).of(48)
    if name == "ijepa":  # all images of a batch show as many patches as the one that shows fewest, so large ones fewer
        assert sum(asked) <= said < 1.5 * sum(asked)
    else:
        assert said == pytest.approx(sum(asked), rel=0.05)


def backbone_of(name: str) -> str:
    found = registry.find("methods", name)
    known = (BACKBONES[family] for family in method_facts(found).families if family in BACKBONES)
    return next(known, "tokenizer")


@pytest.mark.parametrize(("name", "backbone"), [("simclr", "resnet_nano"), ("mae", "vit_pico_patch4_32")])
@pytest.mark.integration
def test_the_sum_is_the_peak_that_torch_records(name: str, backbone: str) -> None:
    """Weights, gradients, optimiser and what is kept, against the most bytes alive in a step that has all of them."""
    method = build(name, backbone)
    optimizer = build_optimizer(method, replace(method.optim, name="adamw"))
    said = fitted(kept_by(method, 4), kept_by(method, 8), (4, 8)).of(64)
    views = views_of(method, 64)

    def step() -> None:  # in Lightning's order: gradients of the step before are there while the loss is computed
        loss = method.loss(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    alive = list(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert len(alive) > 100
    assert said == pytest.approx(max(alive) + sum(view.nbytes for view in views), rel=0.1)


@pytest.mark.integration
def test_parameters_state_and_length_are_those_of_the_run() -> None:
    config = config_of(
        "mae", "--backbone=vit_pico_patch4_32", "--backbone.patch_size=2", *SMALL, "--trainer.max_epochs=3"
    )
    run = dry_run(config, DryRunOptions(memory=2.0, rate=100.0))
    _, method, module = built(config)
    clock = take_steps(TrainerOptions(**config["trainer"]), method, module, 1)
    assert len(clock.times) == 1
    trained = [p for p in method.parameters() if p.requires_grad]
    assert run.parameters.trained == sum(p.numel() for p in trained)
    assert run.parameters.following == sum(p.numel() for p in method.parameters()) - run.parameters.trained
    assert run.parameters.backbone == sum(p.numel() for p in method.backbone.parameters())
    assert run.memory.gradients == 4 * run.parameters.trained and run.memory.exchanged == 0
    assert run.memory.optimizer == 8 * run.parameters.trained + 4 * len(trained)  # AdamW: two moments, and its steps
    assert (run.length.steps, run.length.steps_per_epoch) == (method.total_steps, method.steps.per_epoch)
    assert run.length.step_images == method.steps.images
    assert run.hours == pytest.approx(run.length.images_seen / 100 / 3600) and run.measured_batch is None
    most = run.memory.largest_batch
    whole = run.memory.weights + run.memory.gradients + run.memory.optimizer
    assert (
        whole + run.memory.activations.of(most)
        <= 2 * GIB * (1 - LEFT_FREE)
        < 1.01 * (whole + run.memory.activations.of(most + 1))
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 100},
        {"limit_train_batches": 0.5},
        {"limit_train_batches": 7, "accumulate_grad_batches": 2, "max_steps": 9},
    ],
    ids=str,
)
@pytest.mark.integration
def test_steps_are_those_that_a_trainer_counts(given: dict[str, Any]) -> None:
    """And images those that its loader gives: 1287 digits in batches of 64 are 20 batches."""
    flags = [f"--trainer.{name}={value}" for name, value in given.items()]
    config = config_of("simclr", "--backbone=resnet_micro", *SMALL, "--trainer.max_epochs=3", *flags)
    options = TrainerOptions(**config["trainer"])
    data, method, module = built(config)
    length = _length(len(data.pretrain), 64, 1, options)
    seen = take_steps(options, method, module, 10**6)
    assert length.steps == method.trainer.global_step == method.total_steps
    assert length.step_images == method.steps.images and length.images_seen == 64 * len(seen.times)


def test_devices_share_the_images() -> None:
    options = TrainerOptions(max_epochs=10)
    one, eight = (_length(10_000, 100, devices, options) for devices in (1, 8))
    assert (one.step_images, one.steps) == (100, 1000) and (eight.step_images, eight.steps) == (800, 120)
    assert eight.images_seen == 96_000  # 400 of each epoch fill no joint batch


@pytest.mark.integration
def test_a_rate_is_measured_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["fit", "--method=simclr", "--backbone=resnet_micro", *SMALL, "--trainer.max_epochs=2"]
    assert main([*argv, "--trainer.max_steps=1", "--dry-run", "--dry-run.format=json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["length"]["steps"], said["length"]["images_seen"]) == (1, 64)
    assert 8 <= said["measured_batch"] <= 64 and 0 < said["images_per_second"] < 1e6
    assert said["hours"] == pytest.approx(said["length"]["images_seen"] / said["images_per_second"] / 3600)
    assert said["flops"] == said["flops_per_image"] * said["length"]["images_seen"] > 0
    assert math.isfinite(said["memory"]["batch"]) and not list(tmp_path.iterdir())
    assert main([*argv, "--dry-run.memory=0.001", "--dry-run.rate=50"]) == 0  # without --dry-run, it is meant
    text = capsys.readouterr().out
    assert "not even one image in 1.0 MiB" in text and "50 images/s, as given" in text
    assert "40 of 64 images, 20 in an epoch" in text and not list(tmp_path.iterdir())


def test_it_is_started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--trainer.devices and --trainer.num_nodes say more"):
        dry_run(config_of("simclr", *SMALL), DryRunOptions())
