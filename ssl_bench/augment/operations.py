"""Operations of the user's on views, besides those of a method: by class path, or from installed plug-ins.

An operation is called with (B, C, s, s) float images in [0, 1], on the device where training runs, and a generator on
that device from which all of its randomness comes; it returns images of the same shape. A class is made without
arguments.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ssl_bench.config import registry
from ssl_bench.errors import UserError

Operation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def load_operations(names: Sequence[str]) -> list[Operation]:
    """The operations of these names, in their order.

    Raises:
        UserError: There is none of a name, or it cannot be called.
    """
    found: list[Operation] = []
    for name in names:
        made = registry.load_object(registry.find_plug_in("operations", name))
        made = made() if isinstance(made, type) else made
        if not callable(made):
            raise UserError(f"--operations {name} is no function of images and a generator")
        found.append(made)
    return found


@torch.no_grad()
def apply_operations(
    operations: Sequence[Operation],
    names: Sequence[str],
    view: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """A normalised view after the operations, which see it as pixels.

    Args:
        operations: What is done to it.
        names: Of these, for messages.
        view: (B, C, s, s).
        mean: Of each channel.
        std: Likewise.
        generator: Of all randomness.

    Raises:
        UserError: An operation returns something else than such images.
    """
    centre, spread = (view.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    images = view * spread + centre
    for name, operation in zip(names, operations, strict=True):
        images = operation(images, generator)
        if not isinstance(images, Tensor) or images.shape != view.shape:
            what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"--operations {name} returns {what}, not images of {tuple(view.shape)}")
    return (images - centre) / spread
