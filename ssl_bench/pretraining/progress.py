"""What a run shows and logs while it lasts: a bar on a terminal, a line per epoch elsewhere, rows for the loggers."""

import sys
import time
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from ssl_bench.console import say
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.online_probe import OnlineProbe
from ssl_bench.runtime.distributed import largest_over_processes, mean_over_processes, rank, values_of_processes
from ssl_bench.runtime.precision import peak_memory


@final
class Progress(pl.Callback):
    """Shows how far a run is, logs its loss, and counts its images and seconds over all its sessions.

    A row's ``loss`` is the mean over the batches and devices of one step; ``loss_epoch`` over those of an epoch.

    Args:
        probe: Its latest numbers are shown too.
        every: Steps between rows.
    """

    def __init__(self, probe: OnlineProbe, every: int) -> None:
        self.probe, self.every = probe, every
        self.images_seen = 0
        self.seconds = 0.0
        self.peak_memory = 0
        self.bar: Any = None
        self._of_step: list[Tensor] = []
        self._losses: Tensor | None = None
        self._batches = 0
        self._since = 0.0
        self._last_line = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        say(_summary(trainer, module))
        if trainer.is_global_zero and sys.stderr.isatty():
            total = int(trainer.estimated_stepping_batches)
            done = trainer.global_step
            self.bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr, dynamic_ncols=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images_seen += len(batch.index) * trainer.world_size
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # by which Lightning has divided it
        self._of_step.append(loss)
        self._losses = loss if self._losses is None else self._losses + loss  # on the device: nothing waits
        self._batches += 1
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches:
            self._end_step(trainer)
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)
            if batch_idx % 20 == 0:
                self.bar.set_postfix_str(f"epoch {trainer.current_epoch} {self._numbers(trainer)}", refresh=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._losses is not None:
            mean = float(mean_over_processes(self._losses)) / self._batches
            for logger in trainer.loggers:
                logger.log_metrics({"loss_epoch": mean, "epoch": trainer.current_epoch}, step=trainer.global_step)
            self._losses, self._batches = None, 0
        self._count_time()
        # An epoch of a tiny run lasts a second: a line each would drown the rest.
        done = trainer.current_epoch + 1 == trainer.max_epochs
        if self.bar is None and trainer.is_global_zero and (done or self._since - self._last_line > 5):
            self._last_line = self._since
            rate = self.images_seen / max(self.seconds, 1e-9)
            total = int(trainer.estimated_stepping_batches)
            left = self.seconds * (total - trainer.global_step) / max(1, trainer.global_step)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            say(f"{epoch}  {self._numbers(trainer)}  {rate:,.0f} images/s  {_clock(left)} left")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.peak_memory = largest_over_processes(peak_memory(module.device), module.device)
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()

    def _end_step(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step - 1  # that was done
        if self.every and (step + 1) % self.every == 0:
            mean = mean_over_processes(
                torch.stack(self._of_step).mean() if len(self._of_step) > 1 else self._of_step[0]
            )
            row = {name: float(value) for name, value in trainer.callback_metrics.items()} | {"loss": float(mean)}
            for logger in trainer.loggers:
                logger.log_metrics({**row, "epoch": trainer.current_epoch}, step=step)
                logger.save()
        self._of_step = []

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def _numbers(self, trainer: pl.Trainer) -> str:
        loss = trainer.callback_metrics.get("loss")
        shown = {} if loss is None else {"loss": float(loss)}
        shown |= {name: self.probe.latest[name] for name in ("knn", "linear") if name in self.probe.latest}
        return "  ".join(f"{name} {value:.3f}" for name, value in shown.items())

    def state_dict(self) -> dict[str, Any]:
        if self._since:
            self._count_time()
        return {
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "losses": None if self._losses is None else values_of_processes(self._losses).cpu(),  # of this epoch so far
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images_seen, self.seconds = state_dict["images_seen"], state_dict["seconds"]
        losses, self._batches = state_dict.get("losses"), state_dict.get("batches", 0)
        self._losses = None if losses is None else losses[rank()]


def _summary(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    """`1,024 images per step (64 x 8 x 2 devices), peak rate 0.008, 780 steps`."""
    assert isinstance(module, Method)
    schedule, accumulated, devices = module.schedule, trainer.accumulate_grad_batches, trainer.world_size
    batch = schedule.images_per_step // (accumulated * devices)
    factors = f"{batch}" + f" x {accumulated}" * (accumulated > 1) + f" x {devices} devices" * (devices > 1)
    made_of = f" ({factors})" if accumulated * devices > 1 else ""
    line = f"{schedule.images_per_step:,} images per step{made_of}, peak rate {schedule.peak:.4g}"
    line += f", {schedule.total:,} steps"
    batches = int(trainer.num_training_batches)
    if batches % accumulated:
        line += f"; the last step of an epoch has {batches % accumulated} of {accumulated} batches"
    return line + (f"; going on from step {trainer.global_step:,}" if trainer.global_step else "")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
