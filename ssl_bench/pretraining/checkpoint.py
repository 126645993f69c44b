"""What a run leaves for others: the last checkpoint, and the backbone in timm's own terms, or the tokenizer."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from safetensors.torch import save_file

from ssl_bench.data.dataset import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.saved_backbone import write_backbone, write_weights
from ssl_bench.models.weights_files import read_pickled
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.metrics import MetricsFile
from ssl_bench.records.files import replacing, write_json


@final
class SaveLast(Checkpoint):
    """checkpoints/last.ckpt after each epoch, whole or not at all.

    Args:
        folder: The run folder.
        config: Stored with the weights.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.path = folder / "checkpoints" / "last.ckpt"
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.resume(trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        temporary = self.path.with_name(f".last.{os.getpid() if trainer.world_size == 1 else 'all'}.tmp")
        trainer.save_checkpoint(temporary)  # on every rank; rank 0 writes
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
            for logger in trainer.loggers:
                if isinstance(logger, MetricsFile):
                    logger.write()  # what the checkpoint knows, the file knows

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ssl_bench"] = {"config": self.config}


def start_from(method: Method, run: Path) -> None:
    """Begin with the weights of an earlier run (`--init RUN`), which stays as it is.

    Raises:
        UserError: The folder has no such weights, or they do not fit.
    """
    file = run / "checkpoints" / "last.ckpt"
    try:
        earlier = read_pickled(file)["state_dict"]
    except FileNotFoundError:
        raise UserError(f"--init {run}: no {file}; is it the folder of a run that has begun?") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--init {run}: {file.name} is damaged ({type(error).__name__})") from None
    weights = method.starting_weights(earlier)
    own = method.state_dict()
    for name in [*(name for name in own if name not in weights), *(name for name in weights if name not in own)]:
        where = "the method here" if name in own else f"the run {run}"
        raise UserError(f"--init {run}: only {where} has {name}: is it the same method, with the same options?")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} there, {tuple(own[name].shape)} here"
            raise UserError(f"--init {run}: {name} is {shapes}: give the options in {run}/config.yaml")
    described = run / "backbone.json"  # there when the run is finished
    if described.is_file():
        there = any(json.loads(described.read_text(encoding="utf-8"))["pretrained_cfg"]["mean"])
        if there != method.standardize:
            text = f"its network saw images {'less' if there else 'without subtracting'} their mean, this one would not"
            raise UserError(f"--init {run}: {text}: --method.standardize {str(there).lower()}")
    method.load_state_dict(dict(weights))


def save_backbone(folder: Path, method: Method, data: Dataset) -> None:
    """The evaluated backbone of a method, with the data's mean and deviation, and its other branches beside it."""
    write_backbones(folder, method, data.mean, data.std)


def write_backbones(folder: Path, method: Method, mean: Sequence[float], std: Sequence[float]) -> None:
    """A method's evaluated backbone as `write_backbone` has it, and backbone-BRANCH.safetensors of each other."""
    evaluated, *others = method.branches.items()
    for branch, backbone in others:
        write_weights(folder / f"backbone-{branch}.safetensors", backbone)
    write_backbone(folder, evaluated[1], mean, std)


def save_tokenizer(folder: Path, method: Method) -> None:
    """tokenizer.safetensors, and tokenizer.json with the arguments of the `DiscreteVAE` that holds those weights."""
    tokenizer = method.tokenizer
    assert isinstance(tokenizer, DiscreteVAE)
    weights = {name: tensor.contiguous().cpu() for name, tensor in tokenizer.state_dict().items()}
    with replacing(folder / "tokenizer.safetensors") as temporary:
        save_file(weights, temporary)
    write_json(folder / "tokenizer.json", tokenizer.spec)
