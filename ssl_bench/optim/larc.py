"""LARC: SGD whose gradients are first scaled by trust * |w| / (|g| + wd |w|), tensor by tensor."""

from collections.abc import Callable, Iterable
from typing import Any, cast, final

import torch
from torch import Tensor


@final
class LARC(torch.optim.Optimizer):
    """Layer-wise adaptive rates as NVIDIA's apex has them with ``clip=False`` (SwAV).

    g' = a (g + wd w) with a = trust |w| / (|g| + wd |w| + 1e-8), the sum of norms where LARS has the norm of the sum;
    then v = m v + g', w -= lr v. A tensor whose weights or gradients are all 0 has plain SGD instead, without weight
    decay. No tensor is spared, unless its group has ``decay=False``: that is plain SGD throughout.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: Of the update buffer.
        weight_decay: Part of the gradient that is scaled.
        trust: The factor.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "decay": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """All at once: few launches, and no wait for the device."""
        updates: list[Tensor] = [cast(Tensor, p.grad) for p in params]
        if group["decay"]:
            decay = group["weight_decay"]
            weights, gradients = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
            defined = (weights > 0) & (gradients > 0)
            ratios = torch.where(defined, group["trust"] * weights / (gradients + decay * weights + 1e-8), 1.0)
            updates = list(torch._foreach_add(updates, torch._foreach_mul(params, list((defined * decay).unbind()))))
            torch._foreach_mul_(updates, list(ratios.unbind()))
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _buffer(self, p: Tensor) -> Tensor:
        """The momentum of a parameter."""
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = self.state[p]["momentum_buffer"]
        return buffer
