"""What DINO and iBOT compare features by: a head of prototypes, the centre of what its teacher says, and their loss.

Shapes: V crops of B images, D features, E bottleneck, K prototypes.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.runtime.distributed import all_reduce_sum, world_size
from ssl_bench.runtime.precision import float32_at_least


@final
class DINOHead(nn.Module):
    """An MLP to a narrow unit vector, compared with K prototypes.

    Args:
        dim: D.
        hidden: Width of the MLP's inner layers.
        bottleneck: E.
        prototypes: K.
        layers: Linear layers of the MLP.
        norm_last_layer: Prototypes keep length 1, so that logits lie in [-1, 1].
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 65536,
        layers: int = 3,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for wide, narrow in zip(widths[:-1], widths[1:], strict=True):
            linear = nn.Linear(wide, narrow)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            parts += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.last_layer = Prototypes(bottleneck, prototypes, norm_last_layer)

    def bottleneck(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., E), of length 1."""
        return F.normalize(self.mlp(features), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K) logits."""
        return self.last_layer(self.bottleneck(features))  # type: ignore[no-any-return]


@final
class Prototypes(nn.Module):
    """A linear layer without bias whose weights' lengths are parameters of their own.

    It starts, and if frozen stays, at length 1; names are those of the official checkpoints.

    Args:
        dim: E.
        count: K.
        frozen_length: No gradient to the lengths.
    """

    def __init__(self, dim: int, count: int, frozen_length: bool = True) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not frozen_length)
        self.weight_v = nn.Parameter(torch.empty(count, dim).uniform_(-(dim**-0.5), dim**-0.5))  # as nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., K)."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


@final
class Centre(nn.Module):
    """Moving average of a teacher's logits, over the rows of all devices.

    Args:
        prototypes: K.
        momentum: Of the average.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, prototypes))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move towards the mean of (..., K) logits, as many on each device, after the loss has used the old centre."""
        mean = logits.flatten(0, -2).mean(0, keepdim=True, dtype=self.center.dtype)  # (1, K)
        self.center.mul_(self.momentum).add_(all_reduce_sum(mean) / world_size(), alpha=1 - self.momentum)


def crop_cross_entropy(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over images and pairs of a crop and another, global one.

    Args:
        student: (V, B, K) logits of all crops, the two global ones first.
        targets: (2, B, K) probabilities, the teacher's answers to the global ones.
        temperature: Of the student's softmax.
    """
    both = targets[0] + targets[1]  # the sum of a local crop's two cross-entropies is that with the sum
    others = [targets[1], targets[0], *[both] * (len(student) - 2)]
    terms = [
        F.cross_entropy(float32_at_least(crop) / temperature, other)
        for crop, other in zip(student, others, strict=True)
    ]
    return torch.stack(terms).sum() / (2 * (len(student) - 1))
