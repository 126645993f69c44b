"""What the contract does at each optimiser step, seen through a Trainer."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.options import BackboneOptions, DataOptions, Optim
from ssl_bench.data.batch import Batch
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.schedules import warmup_cosine
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method


class Follow(Method):
    """Predict what a teacher says."""

    def __init__(self, optim: Optim) -> None:
        torch.manual_seed(0)
        super().__init__(Backbone(BackboneOptions("vit_pico_patch4_32", depth=1)), optim)
        self.head = nn.Linear(48, 4)
        self.teacher = EMATeacher(self.head, 0.5)
        self.at_updates: list[tuple[int, float]] = []

    def views(self) -> Views:
        return [View(32)]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        features = self.backbone(views[0])
        target = self.teacher(features) + 1.0
        return (self.head(features) - target).square().mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.at_updates.append((self.trainer.global_step, optimizer.param_groups[0]["lr"]))


class Images(pl.LightningDataModule):
    """Batches of noise."""

    def __init__(self, batches: int, batch_size: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.batches = [Batch([torch.rand(batch_size, 3, 32, 32)], torch.arange(batch_size)) for _ in range(batches)]
        self.options = DataOptions(batch_size=batch_size)

    def train_dataloader(self) -> "Images":
        return self

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Batch:
        return self.batches[i]


def fit(method: Method, batches: int, **given: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    trainer = pl.Trainer(**quiet | given)
    trainer.fit(method, datamodule=Images(batches))
    return trainer


def test_each_step_has_its_rate() -> None:
    """Two epochs of 7 batches, two to a step, make 4 steps an epoch; the first is warm-up."""
    method = Follow(Optim("sgd", base_lr=0.64, warmup_epochs=1, weight_decay=0.1, weight_decay_end=0.2))
    trainer = fit(method, 7, max_epochs=2, accumulate_grad_batches=2)
    assert trainer.global_step == method.total_steps == 8
    peak = 0.64 * (2 * 2) / 256  # images of a batch, batches of a step
    assert method.at_updates == [(step, pytest.approx(warmup_cosine(step, 8, 4, peak))) for step in range(8)]
    assert [g["weight_decay"] for g in trainer.optimizers[0].param_groups] == [pytest.approx(0.2, abs=0.01), 0.0]
    assert method.progress == 1.0


@pytest.mark.parametrize("limits", [{"max_epochs": -1, "max_steps": 6}, {"max_epochs": 100, "max_steps": 6}])
def test_warmup_counts_epochs_of_the_data_when_steps_end_the_run(limits: dict[str, int]) -> None:
    method = Follow(Optim("sgd", base_lr=1.0, scaling="none", warmup_epochs=1))
    fit(method, 3, **limits)
    assert method.at_updates == [(step, pytest.approx(warmup_cosine(step, 6, 3, 1.0))) for step in range(6)]


def test_teacher_follows_after_each_step_with_that_steps_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rate is 0.1: once a step, towards weights that have moved already, from 0.5 to 1 in a cosine."""
    method = Follow(Optim("sgd", base_lr=0.1, scaling="none", warmup_epochs=0, momentum=0.0, weight_decay=0.0))
    seen: list[tuple[int, int]] = []
    update = EMATeacher.update

    def recorded(teacher: EMATeacher, step: int, total: int) -> None:
        assert teacher.module.training
        weight, student = teacher.module.weight.clone(), method.head.weight
        assert step > 0 or not torch.equal(weight, student), "the student has not moved yet"
        update(teacher, step, total)
        momentum = 1 - 0.5 * (1 + torch.tensor(torch.pi * step / total).cos().item()) / 2
        torch.testing.assert_close(teacher.module.weight, momentum * weight + (1 - momentum) * student)
        seen.append((step, total))

    monkeypatch.setattr(EMATeacher, "update", recorded)
    fit(method, 4, max_epochs=2, accumulate_grad_batches=2)
    assert seen == [(step, 4) for step in range(4)]


def test_loss_is_logged() -> None:
    method = Follow(Optim())
    trainer = fit(method, 1, max_epochs=1)
    assert trainer.callback_metrics["loss"].isfinite()


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("per", ["model", "tensor"])
@pytest.mark.parametrize("scale", [None, 2.0**10], ids=["32-true", "16-mixed"])
def test_gradients_are_clipped_as_they_are_not_as_they_are_scaled(
    name: Any, per: Any, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the large gradients shrink to the clip; those that float16 was scaled for keep their size."""
    method = Follow(Optim(name, clip=0.05, clip_per=per, warmup_epochs=0))
    norms: dict[str, list[Tensor]] = {"before": [], "after": []}
    clip = method.configure_gradient_clipping

    def recorded(optimizer: torch.optim.Optimizer, *given: Any, **more: Any) -> None:
        gradients = [p for group in optimizer.param_groups for p in group["params"]]
        norms["before"].append(torch.stack([p.grad.norm() for p in gradients]))
        clip(optimizer, *given, **more)
        norms["after"].append(torch.stack([p.grad.norm() for p in gradients]))

    monkeypatch.setattr(method, "configure_gradient_clipping", recorded)
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))] if scale else None
    fit(method, 2, max_epochs=1, plugins=plugins)
    for before, after in zip(norms["before"], norms["after"], strict=True):
        whole = before.norm().expand_as(before) if per == "model" else before
        expected = before * (0.05 / (whole + 1e-6)).clamp(max=1.0)
        torch.testing.assert_close(after, expected)
        assert whole.max() > 0.05, "nothing to clip"
        assert before.max() < 100, "still scaled"


def test_the_rate_is_scaled_by_images_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 5 batches an epoch no more than 5 can make a step, whose loss is their mean."""
    rates, moved = [], []
    for accumulated, limit in ((5, None), (1000, None), (5, 5), (8, 0.5)):
        method = Follow(Optim("sgd", base_lr=0.64, warmup_epochs=0, weight_decay=0.0, momentum=0.0))
        before = method.head.weight.detach().clone()
        batches = 10 if limit == 0.5 else 5 if limit is None else 7
        fit(method, batches, max_epochs=1, accumulate_grad_batches=accumulated, limit_train_batches=limit)
        rates.append(method.at_updates[0][1])
        moved.append(method.head.weight.detach() - before)
    assert rates == [pytest.approx(0.64 * 5 * 2 / 256)] * 4
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0])
    said = capsys.readouterr().err
    assert "--trainer.accumulate_grad_batches 1000: an epoch has 5 batches, which make one step" in said
