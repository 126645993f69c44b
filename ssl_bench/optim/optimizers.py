"""Optimisers, parameter groups and what changes at each step: the one place where an `Optim` becomes behaviour.

`base_lr` is per 256 images and is multiplied by the images of a step here and nowhere else.
"""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from ssl_bench.config.options import Optim
from ssl_bench.optim.larc import LARC
from ssl_bench.optim.schedules import (
    cosine,
    warmup_cosine,
    warmup_cosine_dino,
    warmup_cosine_simmim,
    warmup_steps_simmim,
)


def parameter_groups(model: nn.Module, no_weight_decay: Collection[str] = ()) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those with weight decay, and biases and norms, which have none.

    Those are the tensors of fewer than two dimensions, and whatever is named so (DINO, MAE, iBOT, CAE), and the names
    in ``no_weight_decay``. LARS scales the first group's steps alone.
    """
    assert set(no_weight_decay) <= {name for name, _ in model.named_parameters()}, (
        f"no such parameters: {no_weight_decay}"
    )
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim < 2 or name.endswith(".bias") or name in no_weight_decay
            (plain if bare else decayed).append(parameter)
    return [{"params": decayed, "decay": True}, {"params": plain, "decay": False, "weight_decay": 0.0}]


def single_group(model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in one group with weight decay, biases and norms among them (SimSiam, MoCo v3, SwAV)."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "decay": True}]


def build_optimizer(
    model: nn.Module,
    optim: Optim,
    no_weight_decay: Collection[str] = (),
    groups: list[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser of a recipe over a model's trainable parameters; rates are set per step by `StepSchedule`.

    Args:
        model: Whose parameters.
        optim: The recipe.
        no_weight_decay: Names of parameters without weight decay, besides biases and norms.
        groups: Other groups than `parameter_groups` makes: `decay` says whether they have weight decay, `lr_scale`
            multiplies their rate, and with `constant_lr` it stays at its peak; those of a `part` are clipped together.
    """
    groups = [g for g in (parameter_groups(model, no_weight_decay) if groups is None else groups) if g["params"]]
    shared: dict[str, Any] = {"lr": 0.0, "weight_decay": optim.weight_decay}
    if optim.name == "adamw":
        fused = all(p.is_floating_point() for g in groups for p in g["params"])
        adamw = torch.optim.AdamW(groups, betas=optim.betas, fused=fused, **shared)
        if optim.clip is not None:
            # Otherwise 16-mixed leaves unscaling to the fused step, and what is clipped before it are scaled gradients.
            adamw._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return adamw
    if optim.name == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum, foreach=True, **shared)
    if optim.name == "larc":
        return LARC(groups, momentum=optim.momentum, **shared)
    return LARS(groups, momentum=optim.momentum, rate_in_momentum=optim.name == "lars_tf", **shared)


@final
class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step on each tensor is scaled by trust * |w| / |g + wd w|.

    Groups with ``decay=False`` (biases, norms) get neither weight decay nor that scale.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: Of the update buffer.
        weight_decay: Added to the gradient before its norm is taken.
        trust: The factor, 0.001 in all papers.
        rate_in_momentum: The learning rate enters the buffer (SimCLR's code: v = m v + lr s g; w -= v) rather than
            the step (BYOL, MAE, MoCo v3: v = m v + s g; w -= lr v). They part ways whenever the rate changes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        rate_in_momentum: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "decay": True}
        super().__init__(params, {**defaults, "rate_in_momentum": rate_in_momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            alone = [p for p in params if group["decay"] and p.device.type == "cpu"]
            for p in alone:
                self._update_alone(p, group)
            if params and not alone:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """All at once: few launches, and no wait for the device."""
        updates: list[Tensor] = [cast(Tensor, p.grad) for p in params]
        if group["decay"]:
            updates = list(torch._foreach_add(updates, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(updates, trust_ratios(params, updates, group["trust"]))
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=group["lr"] if group["rate_in_momentum"] else 1.0)
        torch._foreach_add_(params, buffers, alpha=-1.0 if group["rate_in_momentum"] else -group["lr"])

    def _update_alone(self, p: Tensor, group: dict[str, Any]) -> None:
        """The same of one tensor on a processor: it stays in the cache, and its ratio is a number at hand."""
        lr, inside = group["lr"], group["rate_in_momentum"]
        update = cast(Tensor, p.grad).add(p, alpha=group["weight_decay"])
        weights, gradients = (float(torch.linalg.vector_norm(tensor)) for tensor in (p, update))
        ratio = group["trust"] * weights / gradients if weights > 0 and gradients > 0 else 1.0
        buffer = self._buffer(p).mul_(group["momentum"]).add_(update, alpha=ratio * lr if inside else ratio)
        p.sub_(buffer, alpha=1.0 if inside else lr)

    def _buffer(self, p: Tensor) -> Tensor:
        """The momentum of a parameter."""
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = self.state[p]["momentum_buffer"]
        return buffer


def trust_ratios(params: list[Tensor], updates: list[Tensor], trust: float) -> list[Tensor]:
    """trust * |w| / |g| of each tensor, 1 where either norm is 0; no synchronisation with the device."""
    weights, gradients = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
    defined = (weights > 0) & (gradients > 0)
    return list(torch.where(defined, trust * weights / gradients.where(defined, 1.0), 1.0).unbind())


@final
class StepSchedule:
    """Learning rate and weight decay of each optimiser step.

    Args:
        optim: The recipe.
        images_per_step: Images of one update, over all devices and accumulated batches.
        total_steps: Updates of the whole run.
        steps_per_epoch: Updates per epoch, for the warm-up.
    """

    def __init__(self, optim: Optim, images_per_step: int, total_steps: int, steps_per_epoch: float) -> None:
        self.optim, self.total, self.images_per_step = optim, total_steps, images_per_step
        self.warmup = min(round(optim.warmup_epochs * steps_per_epoch), total_steps)
        factor = {"linear": images_per_step / 256, "sqrt": math.sqrt(images_per_step), "none": 1.0}[optim.scaling]
        self.peak, self.floor, self.start = (lr * factor for lr in (optim.base_lr, optim.min_lr, optim.warmup_lr))
        self.milestones = [round(epoch * steps_per_epoch) for epoch in optim.milestones]
        self.steps_per_epoch = steps_per_epoch
        self.ahead = int(optim.schedule == "cosine_ahead")

    def lr(self, step: int) -> float:
        """Learning rate of an update."""
        if self.optim.schedule == "steps_simmim":
            return warmup_steps_simmim(step, self.warmup, self.peak, self.milestones, self.start)
        if self.optim.schedule == "cosine_epoch" and step >= self.warmup:
            begun = math.floor(step / self.steps_per_epoch) * self.steps_per_epoch  # the epoch's first step
            step = max(self.warmup, math.floor(begun))
        curves = {
            "cosine": warmup_cosine,
            "cosine_epoch": warmup_cosine,
            "cosine_ahead": warmup_cosine,
            "cosine_dino": warmup_cosine_dino,
            "cosine_simmim": warmup_cosine_simmim,
        }
        return curves[self.optim.schedule](
            step + self.ahead, self.total, self.warmup, self.peak, self.floor, self.start
        )

    def weight_decay(self, step: int) -> float:
        """Weight decay of an update."""
        end = self.optim.weight_decay_end
        return (
            self.optim.weight_decay
            if end is None
            else cosine(step + self.ahead, self.total, self.optim.weight_decay, end)
        )

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set both on all groups; ``lr_scale`` multiplies a group's rate, ``constant_lr`` keeps it at its peak."""
        for group in optimizer.param_groups:
            rate = self.peak if group.get("constant_lr", False) else self.lr(step)
            group["lr"] = rate * group.get("lr_scale", 1.0)
            if group["decay"]:
                group["weight_decay"] = self.weight_decay(step)


def clip_gradients(parameters: list[Tensor], clip: float | None, per: str) -> None:
    """Scale gradients down to a norm of ``clip``, of all together or of each tensor, with no wait for the device.

    Factor clip / (norm + 1e-6), at most 1, as torch's `clip_grad_norm_` and DINO's `clip_gradients` have it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if clip is None or not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    norms = norms if per == "tensor" else torch.linalg.vector_norm(norms).expand(len(gradients))
    torch._foreach_mul_(gradients, list((clip / (norms + 1e-6)).clamp(max=1.0).unbind()))
