"""Steps of an official training loop, repeated by a Trainer with our optimiser, schedules and hooks."""

from collections.abc import Mapping
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_files import assert_close
from small import GivenViews, trainer
from torch import Tensor

from ssl_bench.config.options import BackboneOptions
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.method import Method


class OfficialSteps(pl.Callback):
    """Puts an official state in place when a given step begins, and notes what this step and those after it do.

    Args:
        start: The state, under our names.
        first: Optimiser steps before it.
        steps: How many follow.
    """

    def __init__(self, start: Mapping[str, Tensor], first: int, steps: int) -> None:
        self.start, self.first, self.last = start, first, first + steps
        self.losses: list[Tensor] = []
        self.rates: list[list[float]] = []
        self.with_gradient: list[set[str]] = []  # at the update itself
        self.gradients: dict[str, Tensor] = {}  # of the first step, before anything clips them
        self.after: dict[str, Tensor] = {}
        self.optimizer_state: dict[str, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.first:
            own = module.state_dict()
            assert self.start.keys() <= own.keys(), sorted(self.start.keys() - own.keys())
            with torch.no_grad():
                for name, value in self.start.items():
                    own[name].copy_(value)
            trainer.optimizers[0].state.clear()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == self.first:
            named = module.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.first < trainer.global_step <= self.last:
            optimizer = trainer.optimizers[0]
            self.losses.append(outputs["loss"].detach())
            self.rates.append([group["lr"] for group in optimizer.param_groups])
            self.with_gradient.append({n for n, p in module.named_parameters() if p.grad is not None})
            self.gradients = {name: g for name, g in self.gradients.items() if name in self.with_gradient[0]}
        if trainer.global_step == self.last:
            self.after = {name: value.clone() for name, value in module.state_dict().items()}
            named = {id(p): name for name, p in module.named_parameters()}
            state = trainer.optimizers[0].state
            self.optimizer_state = {
                named[id(p)]: {k: v.clone() for k, v in values.items()} for p, values in state.items()
            }


def take_steps(
    method: Method, images: list[list[Tensor]], start: Mapping[str, Tensor], first: int, steps: int, epochs: int
) -> OfficialSteps:
    """Train for ``epochs``, each as many steps as there are batches of ``images``, in float64.

    Step ``first`` begins in the official state and is given the first batch of ``images``; before it, anything happens.
    """
    turned = [images[(step - first) % len(images)] for step in range(len(images))]
    noted = OfficialSteps(start, first, steps)
    trainer(max_epochs=epochs, callbacks=[noted], precision="64-true").fit(method, datamodule=GivenViews(turned))
    assert len(noted.losses) == steps
    return noted


def official_views(tensors: Mapping[str, Tensor], names: str = "view") -> list[list[Tensor]]:
    """Views or crops of each stored step: `in.step0.view1`, `in.step0.view2`, `in.step1.view1`, ..."""
    keys = sorted(name.removeprefix("in.step") for name in tensors if name.startswith("in.step"))
    steps = sorted({key.partition(".")[0] for key in keys}, key=int)
    return [[tensors[f"in.step{key}"] for key in keys if key.startswith(f"{step}.{names}")] for step in steps]


def resnet(config: Mapping[str, Any]) -> Backbone:
    """The narrow ResNet of a golden case, with an ImageNet stem."""
    name = "resnet50" if config["block"] == "bottleneck" else "resnet18"
    args = {"layers": config["layers"], "channels": config["channels"]}
    return Backbone(BackboneOptions(name, img_size=config["img"], small_stem=False, timm_args=args))


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Official tensors under our names; the first prefix that fits is replaced."""
    return {our_name(name, names): value for name, value in tensors.items()}


def our_name(official: str, names: Mapping[str, str]) -> str:
    """Ours for an official name."""
    theirs = next(prefix for prefix in names if official.startswith(prefix))
    return names[theirs] + official.removeprefix(theirs)


def check_losses(record: Mapping[str, Any], found: list[Tensor]) -> None:
    """Compare the losses of all steps."""
    assert torch.stack(found).tolist() == pytest.approx(record["step_losses_float64"], rel=1e-6)


def check_state(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Mapping[str, str], found: Mapping[str, Tensor]
) -> int:
    """Compare sums in float64 and, where it is stored, `after.*` in float32; returns how many tensors were compared."""
    compared = 0
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    for name, sums in record["after_checks_float64"].items():
        value = found[our_name(name, names)].double()
        for kind, actual in (("sum", value.sum()), ("abs", value.abs().sum()), ("sq", value.square().sum())):
            scale = sums["abs"] if kind == "sum" else sums[kind]
            assert actual.item() == pytest.approx(sums[kind], rel=0, abs=1e-6 * scale + 1e-12), (name, kind)
        if f"after.{name}" in tensors:
            assert_close(value, tensors[f"after.{name}"], noise.get(f"after.{name}", 0.0))
        compared += 1
    return compared


def check_gradients(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Mapping[str, str], found: Mapping[str, Tensor]
) -> None:
    """Compare norms of all gradients in float64, and `grad.*` in float32; None on record: no gradient."""
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    for name, norm in record["grad_norms_float64"].items():
        ours = our_name(name, names)
        if norm is None:
            assert ours not in found, name
            continue
        assert torch.linalg.vector_norm(found[ours]).item() == pytest.approx(norm, rel=1e-6, abs=1e-12), name
        if f"grad.{name}" in tensors:
            assert_close(found[ours], tensors[f"grad.{name}"], noise.get(f"grad.{name}", 0.0))
