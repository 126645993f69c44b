"""Progress on standard error: a bar on a terminal, a line per epoch elsewhere; both with rate and time left."""

import sys
import time
from typing import Any, final

import pytorch_lightning as pl
from torch import Tensor
from tqdm import tqdm

from ssl_bench.console import say
from ssl_bench.pretraining.online_probe import OnlineProbe


@final
class Progress(pl.Callback):
    """Shows how far a run is, and counts its images and seconds over all its sessions.

    Args:
        probe: Its latest numbers are shown too.
    """

    def __init__(self, probe: OnlineProbe) -> None:
        self.probe = probe
        self.images_seen = 0
        self.seconds = 0.0
        self.bar: Any = None
        self._losses: Tensor | None = None
        self._batches = 0
        self._since = 0.0
        self._last_line = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        if trainer.is_global_zero and sys.stderr.isatty():
            total = int(trainer.estimated_stepping_batches)
            done = trainer.global_step
            self.bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr, dynamic_ncols=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images_seen += len(batch.index) * trainer.world_size
        loss = outputs["loss"].detach()
        self._losses = loss if self._losses is None else self._losses + loss  # on the device: nothing waits
        self._batches += 1
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)
            if batch_idx % 20 == 0:
                self.bar.set_postfix_str(f"epoch {trainer.current_epoch} {self._numbers(trainer)}", refresh=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._losses is not None:
            mean = float(self._losses) / self._batches
            for logger in trainer.loggers:
                logger.log_metrics({"loss_epoch": mean, "epoch": trainer.current_epoch}, step=trainer.global_step)
            self._losses, self._batches = None, 0
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        # An epoch of a tiny run lasts a second: a line each would drown the rest.
        done = trainer.current_epoch + 1 == trainer.max_epochs
        if self.bar is None and trainer.is_global_zero and (done or now - self._last_line > 5):
            self._last_line = now
            rate = self.images_seen / max(self.seconds, 1e-9)
            total = int(trainer.estimated_stepping_batches)
            left = self.seconds * (total - trainer.global_step) / max(1, trainer.global_step)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            say(f"{epoch}  {self._numbers(trainer)}  {rate:,.0f} images/s  {_clock(left)} left")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def _numbers(self, trainer: pl.Trainer) -> str:
        loss = trainer.callback_metrics.get("loss")
        shown = {} if loss is None else {"loss": float(loss)}
        shown |= {name: self.probe.latest[name] for name in ("knn", "linear") if name in self.probe.latest}
        return "  ".join(f"{name} {value:.3f}" for name, value in shown.items())

    def state_dict(self) -> dict[str, Any]:
        return {"images_seen": self.images_seen, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images_seen, self.seconds = state_dict["images_seen"], state_dict["seconds"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
