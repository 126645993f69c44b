"""Activation checkpointing: a block's activations are computed again in the backward rather than kept.

Values are those without it: random numbers are drawn again alike, and batch norms take their statistics once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import blocks


def checkpoint_activations(method: nn.Module) -> None:
    """Checkpoint each block of each of a method's networks, in place; weights keep their names.

    Raises:
        UserError: A network's blocks are unknown here.
    """
    for network in (module for module in method.modules() if isinstance(module, Backbone)):
        if network.is_pooled:
            unknown = f"the blocks of {network.options.name} are unknown here"
            raise UserError(f"--trainer.checkpoint_activations is for ViTs, Swins and ResNets: {unknown}")
        for block in blocks(network):
            block.forward = _checkpointed(block, block.forward)


def _checkpointed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_stay(norms)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _statistics_stay(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms use a batch's statistics and leave their running ones as they are."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
