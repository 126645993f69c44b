"""Stops a run whose loss is no longer a number, without waiting for the device at every step."""

from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor


class DivergenceError(Exception):
    """The loss became NaN or infinite: the message says at which step and what remains."""


@final
class StopAtNaN(pl.Callback):
    """Remembers on the device the first step whose loss was not finite; asks every 20 steps and before a checkpoint."""

    def __init__(self) -> None:
        self.first: Tensor | None = None  # step, or -1

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"].detach()
        if self.first is None:
            self.first = torch.full((), -1, device=loss.device)
        step = torch.full_like(self.first, trainer.global_step)
        self.first = torch.where((self.first < 0) & ~torch.isfinite(loss), step, self.first)
        if batch_idx % 20 == 19 or loss.device.type == "cpu":
            self._check(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)  # before it is written

    def _check(self, trainer: pl.Trainer) -> None:
        if self.first is not None and (step := int(self.first)) >= 0:
            epoch = trainer.current_epoch
            kept = (
                f"the checkpoint of epoch {epoch - 1} is kept" if epoch else "there is no checkpoint of a whole epoch"
            )
            raise DivergenceError(
                f"the loss is not a number at step {step} (epoch {epoch}); {kept}. "
                "Try a lower --optim.base_lr, a longer --optim.warmup_epochs or --trainer.precision 32-true"
            )
