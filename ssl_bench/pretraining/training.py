"""Pretraining: a configuration becomes a run folder.

The folder's record is complete at every moment: config.yaml and environment.json at the start, a checkpoint and
metrics.csv after each epoch and within long ones, backbone and cost at the end. Starting again continues from the last
checkpoint. Of several processes the first alone writes.
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ssl_bench.config.fit_config import dump
from ssl_bench.config.options import DataOptions, TrainerOptions, WandbOptions
from ssl_bench.data.dataset import Dataset
from ssl_bench.data.files.content import Content, folder_of_run, refuse_changed_images, remember_content
from ssl_bench.data.files.left_out import read_left_out
from ssl_bench.data.module import DataModule
from ssl_bench.errors import LostProcess, Terminated
from ssl_bench.models.classifier import save_classifier
from ssl_bench.models.pretrained import Weights
from ssl_bench.pretraining.building import build, require_images
from ssl_bench.pretraining.checkpoint import save_backbone, save_tokenizer
from ssl_bench.pretraining.checkpointed_blocks import checkpoint_activations
from ssl_bench.pretraining.last_checkpoint import remove_previous, usable_checkpoint
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import continued, describe_run, so_far, training_flops
from ssl_bench.pretraining.trainer import make_trainer, prepare_process
from ssl_bench.pretraining.weight_average import WeightAverage
from ssl_bench.records.claim import claimed
from ssl_bench.records.files import clear_temporary, write_json, write_text
from ssl_bench.records.run import DataRecord, RunInfo, Status, is_finished, write_run
from ssl_bench.runtime.acceleration import compile_blocks, effective_precision
from ssl_bench.runtime.devices import check_trainer
from ssl_bench.runtime.distributed import is_lost_process
from ssl_bench.runtime.environment import describe
from ssl_bench.runtime.launch import Launch, adopt_launcher
from ssl_bench.runtime.stopping import Signals, Stopped, Wish
from ssl_bench.tracking.wandb_results import logged
from ssl_bench.tracking.wandb_run import WandbRun


@dataclass(frozen=True)
class Fitted:
    """Where a run is, and whether there was anything left to do.

    Args:
        folder: The run folder.
        already_done: The run had been finished before.
    """

    folder: Path
    already_done: bool


def fit(
    config: dict[str, Any],
    runs: Path,
    command: Sequence[str] = (),
    wandb: WandbOptions = WandbOptions(),
    known: dict[DataOptions, Content | None] | None = None,
    weights: Weights | None = None,
) -> Fitted:
    """Pretrain as the configuration says, continuing an interrupted run of the same configuration.

    Args:
        config: Of the run.
        runs: Where run folders live.
        command: To repeat it, for the records.
        wandb: Whether and how it is logged there.
        known: Contents of images that were looked at just before.
        weights: What `--backbone.weights` names, if it does.

    Raises:
        UserError: The configuration does not fit the data or the network.
        DivergenceError: The loss is no longer a number.
        LostProcess: Another process of the run is gone.
        Taken: Another command trains this run.
        OSError: The folder cannot be written; its last good state is still there.
        KeyboardInterrupt: Ctrl-C; the run continues from where it stopped when started again.
        Terminated: SIGTERM; likewise.
    """
    known = {} if known is None else known
    folder = folder_of_run(runs, config, known)
    if is_finished(folder):
        return Fitted(folder, already_done=True)
    signals = Signals(bool(config["trainer"].get("requeue")))
    launch = adopt_launcher()
    try:
        with signals.handled(), claimed(folder) if launch is None or launch.rank == 0 else nullcontext():
            if is_finished(folder):  # by another command, a moment ago
                return Fitted(folder, already_done=True)
            _fit(config, folder, known[DataOptions(**config["data"])], command, wandb, signals, launch, weights)
    except Stopped as stop:
        raise (KeyboardInterrupt() if stop.wish is Wish.INTERRUPT else Terminated()) from None
    return Fitted(folder, already_done=False)


def _fit(
    config: dict[str, Any],
    folder: Path,
    content: Content | None,
    command: Sequence[str],
    wandb: WandbOptions,
    signals: Signals,
    launch: Launch | None,
    weights: Weights | None,
) -> None:
    assert weights is not None or not config.get("backbone", {}).get("weights"), "the file is not read"
    refuse_changed_images(folder, config, content)
    first = launch is None or launch.rank == 0
    options = TrainerOptions(**config["trainer"])
    check_trainer(options)
    prepare_process(quiet=not first)
    pl.seed_everything(config["seed"], verbose=False)
    data, method, module = build(config, weights)
    module.folder = folder
    if not first:
        trainer = make_trainer(config, folder, data, WandbRun(), launch, signals)
        _train(trainer, method, module, folder, options, None)
        return
    info = continued(describe_run(config, data, method, command), folder)
    flops_per_image = training_flops(method)
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporary(folder)
    write_text(folder / "config.yaml", dump(config))
    remember_content(folder, config, content)
    precision = effective_precision(options.precision, options.accelerator)
    write_json(folder / "environment.json", {**describe(), "precision": precision})
    write_run(folder, info)
    with logged(folder, WandbOptions() if options.fast_dev_run else wandb) as run:
        trainer = make_trainer(config, folder, data, run, launch, signals)
        _train(trainer, method, module, folder, options, _Record(info, flops_per_image))


@dataclass(frozen=True)
class _Record:
    """What the first process keeps up to date in `run.json`.

    Args:
        info: At the start.
        flops_per_image: Of training.
    """

    info: RunInfo
    flops_per_image: float

    def of(self, data: Dataset) -> "_Record":
        """The same of the images that were really seen."""
        return replace(self, info=replace(self.info, data=DataRecord(data.title, data.fingerprint)))

    def write(self, folder: Path, status: Status, trainer: pl.Trainer, error: str | None = None) -> None:
        """How the run ended, or that it is interrupted."""
        write_run(folder, so_far(self.info, status, trainer, self.flops_per_image, error))

    def try_to_write(self, folder: Path, status: Status, trainer: pl.Trainer, error: str | None = None) -> None:
        """The same where the disk may be full."""
        with suppress(OSError):
            self.write(folder, status, trainer, error)


def _train(
    trainer: pl.Trainer,
    method: Method,
    module: DataModule,
    folder: Path,
    options: TrainerOptions,
    record: _Record | None,
) -> None:
    """From the last checkpoint, if there is one, to the end; the record, of the first process, says how it ended."""
    devices = trainer.num_devices * trainer.num_nodes
    try:
        require_images(method, len(module.data.pretrain), module.options, devices, options.sync_batchnorm)
        last = usable_checkpoint(folder)
        if options.checkpoint_activations:
            checkpoint_activations(method)
        if options.compile:
            compile_blocks(method)
        trainer.fit(method, datamodule=module, ckpt_path=str(last) if last else None, weights_only=True)
        if record is not None and not options.fast_dev_run:
            _save(method, module, folder)
            for average in (each for each in trainer.callbacks if isinstance(each, WeightAverage)):  # type: ignore[attr-defined]
                average.save(folder)
            record.of(module.data.without(read_left_out(folder))).write(folder, "finished", trainer)
            remove_previous(folder)
    except Stopped:
        if record is not None:
            record.try_to_write(folder, "interrupted", trainer)
        raise
    except Exception as error:
        lost = devices > 1 and is_lost_process(error)
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        text = f"another process of this run is gone or does not answer ({reason[:100]})" if lost else reason
        if record is not None:
            record.try_to_write(folder, "failed", trainer, text)
        if lost:
            raise LostProcess(f"{text}; the same command continues from the last checkpoint") from None
        raise


def _save(method: Method, module: DataModule, folder: Path) -> None:
    """What a finished run leaves for evaluations, or for other runs."""
    if method.product == "tokenizer":
        save_tokenizer(folder, method)
        return
    save_backbone(folder, method, module.data)
    if (classifier := method.evaluated_classifier) is not None:
        save_classifier(folder, classifier, classifier.names or module.data.classes or ())
