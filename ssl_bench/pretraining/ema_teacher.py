"""A teacher: a copy of the student that follows it as an exponential moving average.

Composed into a method (BYOL's target, DINO's and iBOT's teacher); the training loop updates it after each step.
"""

import copy
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.optim.schedules import cosine


@final
class EMATeacher(nn.Module):
    """Moving average of a student's parameters, matched by name.

    It starts as an exact copy. Buffers are not averaged (BYOL, DINO): batch norm keeps statistics of its own. It has no
    gradient, no stochastic depth and, like its student, is in training mode while pretraining runs.

    Args:
        student: The module that is followed.
        momentum: m at the start of training; theta' = m theta' + (1 - m) theta.
        final_momentum: m at its end; a cosine leads there.
        linear: The momentum goes from the one to the other in a line (I-JEPA).
        moved_by_loss: The method's loss calls `update`, between the student's forward and the teacher's (MoCo v3), so
            that the training loop need not.

    Raises:
        UserError: The momentum is none.
    """

    def __init__(
        self,
        student: nn.Module,
        momentum: float,
        final_momentum: float = 1.0,
        linear: bool = False,
        moved_by_loss: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"--method.momentum {momentum} must lie between 0 and 1")
        self.momentum, self.final_momentum, self.linear = momentum, final_momentum, linear
        self.moved_by_loss = moved_by_loss
        self.module = copy.deepcopy(student).requires_grad_(False)
        part: Any  # timm's drop path among them
        for part in self.module.modules():
            if hasattr(part, "drop_prob"):
                part.drop_prob = 0.0  # a teacher sees its whole network, in training mode too (DINO, iBOT)
        followed = dict(student.named_parameters())
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = [
            (own, followed[name]) for name, own in self.module.named_parameters()
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged network's output, without gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def momentum_at(self, step: int, total: int) -> float:
        """The momentum of an optimiser step."""
        if self.linear:
            return self.momentum + (self.final_momentum - self.momentum) * step / total
        return cosine(step, total, self.momentum, self.final_momentum)

    @torch.no_grad()
    def update(self, step: int, total: int) -> None:
        """One step towards the student, with the momentum of this optimiser step."""
        momentum = self.momentum_at(step, total)
        own: list[Tensor] = [pair[0] for pair in self.pairs]
        student: list[Tensor] = [pair[1] for pair in self.pairs]
        torch._foreach_mul_(own, momentum)
        torch._foreach_add_(own, student, alpha=1 - momentum)


def evaluated_backbone(earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights `backbone.*` of an earlier run's default network, out of its state.

    That is the teacher's where DINO and iBOT keep one; BYOL's target and CAE's copy are kept under other names.
    """
    teacher = "teacher.module.backbone."
    prefix = teacher if any(name.startswith(teacher) for name in earlier) else "backbone."
    return {f"backbone.{name.removeprefix(prefix)}": w for name, w in earlier.items() if name.startswith(prefix)}
