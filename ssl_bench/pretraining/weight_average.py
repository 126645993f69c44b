"""An exponential moving average of the backbone's weights over the steps, saved beside it as the branch `ema`.

It is watched, not used: training goes on with the weights themselves, whatever teachers a method has besides.
"""

import copy
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch

from ssl_bench.models.backbone import Backbone
from ssl_bench.models.weights_files import write_weights
from ssl_bench.pretraining.method import Method

BRANCH = "ema"


@final
class WeightAverage(pl.Callback):
    """After each optimiser step, average = decay x average + (1 - decay) x weights; buffers are those of the last step.

    Args:
        decay: Of a step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Backbone | None = None
        self._saved: dict[str, torch.Tensor] | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        self.average = copy.deepcopy(module.backbone).requires_grad_(False)
        if self._saved is not None:
            self.average.load_state_dict(self._saved)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        own: list[torch.Tensor] = [*self.average.parameters()]
        theirs: list[torch.Tensor] = [*module.backbone.parameters()]
        torch._foreach_lerp_(own, theirs, 1 - self.decay)
        for buffer, other in zip(self.average.buffers(), module.backbone.buffers(), strict=True):
            buffer.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        return {"average": {} if self.average is None else dict(self.average.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict["average"] or None

    def save(self, folder: Path) -> None:
        """Write the averaged backbone beside the run's own."""
        assert self.average is not None, "training begins with it"
        write_weights(folder / f"backbone-{BRANCH}.safetensors", self.average.model.state_dict())
