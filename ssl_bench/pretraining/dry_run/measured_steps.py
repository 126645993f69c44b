"""A few steps of a run, for what they take: nothing is written, and the run is not taken further."""

import time
from statistics import median
from typing import Any, final

import pytorch_lightning as pl
import torch

from ssl_bench.config.options import TrainerOptions
from ssl_bench.data.module import DataModule
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.acceleration import compile_blocks, effective_precision

FIRST = 4  # steps that warm up


@final
class StepClock(pl.Callback):
    """When each batch ended; after so many of them, training does.

    Args:
        batches: To be measured.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.times: list[float] = []
        self.began = 0.0
        self.world_size = 1

    @property
    def seconds_each(self) -> float:
        """Of a batch, once warm; with that of the start, where there was one alone."""
        steps = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        return median(steps[FIRST:] or steps or [self.times[0] - self.began])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.world_size = time.perf_counter(), trainer.world_size

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        trainer.should_stop = len(self.times) >= self.batches


def take_steps(
    options: TrainerOptions, method: Method, module: DataModule, batches: int, *callbacks: pl.Callback
) -> StepClock:
    """Train for a few batches as a run with these options would.

    Args:
        options: Of the run's trainer.
        method: Is changed by it.
        module: Its images and views.
        batches: After which to stop.
        callbacks: What else to look at.
    """
    clock = StepClock(batches)
    trainer = pl.Trainer(
        max_epochs=options.max_epochs,
        max_steps=options.max_steps,
        accelerator=options.accelerator,
        devices=options.devices,
        precision=effective_precision(options.precision, options.accelerator),  # type: ignore[arg-type]
        accumulate_grad_batches=options.accumulate_grad_batches,
        limit_train_batches=options.limit_train_batches,
        callbacks=[clock, *callbacks],
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    if options.compile:
        compile_blocks(method)
    trainer.fit(method, datamodule=module)
    return clock
