"""What makes up an optimiser step and an epoch, as the trainer will really run them."""

import math
from dataclasses import dataclass

import pytorch_lightning as pl

from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.pretraining.image_batches import batch_size_of


@dataclass(frozen=True)
class TrainingSteps:
    """What makes up an optimiser step and an epoch.

    Args:
        batch_size: Images of a batch on a device.
        images: Of a step, over all devices and accumulated batches.
        per_epoch: Optimiser steps.
    """

    batch_size: int
    images: int
    per_epoch: int


def training_steps(trainer: pl.Trainer, batch_size: int | None, warmup_epochs: float) -> TrainingSteps:
    """What a trainer's loader, devices and accumulation make of it.

    Args:
        trainer: About to train.
        batch_size: Images of a batch, where the loader does not say.
        warmup_epochs: Of the learning rate; one that never ends is mentioned.

    Raises:
        UserError: An epoch, the training or a batch has no known size.
    """
    trainer.fit_loop.setup_data()  # until then the batches of an epoch are not known
    asked, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if math.isinf(batches):
        raise UserError("the loader has no length: Trainer(limit_train_batches=N) says how many batches are an epoch")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise UserError("schedules need an end: give the Trainer max_epochs or max_steps")
    batches = int(batches)
    if asked > batches > 0:
        trainer.accumulate_grad_batches = batches  # of which the loss is the mean and to which the rate is scaled
        say(f"--trainer.accumulate_grad_batches {asked}: an epoch has {batches} batches, which make one step")
    if 0 < (trainer.max_epochs or 0) <= warmup_epochs and trainer.is_global_zero:
        epochs = f"{warmup_epochs:g} of {trainer.max_epochs} epochs"
        say(f"--optim.warmup_epochs: {epochs}, so the learning rate only rises; a tenth of them is usual")
    size = _batch_size(trainer, batch_size)
    images = size * trainer.world_size * trainer.accumulate_grad_batches
    return TrainingSteps(size, images, math.ceil(batches / trainer.accumulate_grad_batches))


def _batch_size(trainer: pl.Trainer, given: int | None) -> int:
    options = getattr(getattr(trainer, "datamodule", None), "options", None)  # of our data module
    size: int | None = getattr(options, "batch_size", None) or given or batch_size_of(trainer.train_dataloader)
    if size is None:
        name = type(trainer.train_dataloader).__name__
        raise UserError(
            f"{name} does not say how many images a batch has, by which the learning rate is multiplied: "
            "create_method(..., batch_size=N)"
        )
    return size
