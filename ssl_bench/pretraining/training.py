"""Pretraining: a configuration becomes a run folder.

The folder's record is complete at every moment: config.yaml and environment.json at the start, a checkpoint and
metrics.csv after each epoch, backbone and cost at the end. Starting again continues from the last checkpoint."""

import copy
import hashlib
import inspect
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

import ssl_bench
from ssl_bench.config import registry
from ssl_bench.config.fit_config import dump
from ssl_bench.config.options import BackboneOptions, DataOptions, Optim, ProbeOptions, TrainerOptions, WandbOptions
from ssl_bench.console import say
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.module import DataModule
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import save_classifier
from ssl_bench.models.saved_backbone import describe_backbone
from ssl_bench.pretraining.checkpoint import SaveLast, save_backbone, save_tokenizer, start_from
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.metrics import MetricsFile, WandbMetrics
from ssl_bench.pretraining.nan_guard import DivergenceError, StopAtNaN
from ssl_bench.pretraining.online_probe import OnlineProbe
from ssl_bench.pretraining.progress import Progress
from ssl_bench.records.files import write_json, write_text
from ssl_bench.records.run import DataRecord, RunCost, RunInfo, read_run, write_run
from ssl_bench.records.run_folder import run_folder
from ssl_bench.runtime.acceleration import compile_blocks, effective_precision, keep_freed_memory, write_out_attention
from ssl_bench.runtime.devices import check_trainer
from ssl_bench.runtime.distributed import SyncNorms
from ssl_bench.runtime.environment import describe
from ssl_bench.runtime.precision import peak_memory
from ssl_bench.runtime.seeds import derive
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
    config: dict[str, Any], runs: Path, command: Sequence[str] = (), wandb: WandbOptions = WandbOptions()
) -> Fitted:
    """Pretrain as the configuration says, continuing an interrupted run of the same configuration.

    Raises:
        UserError: The configuration does not fit the data or the network.
        DivergenceError: The loss is no longer a number.
        KeyboardInterrupt: Ctrl-C; the run continues from its last checkpoint when started again.
    """
    folder = run_folder(runs, config)
    if (folder / "run.json").exists() and read_run(folder).status == "finished":
        return Fitted(folder, already_done=True)
    prepare_process()
    trainer_options = TrainerOptions(**config["trainer"])
    check_trainer(trainer_options)
    pl.seed_everything(config["seed"], verbose=False)
    data, method, module = build(config)
    info = _describe_run(config, data, method, command)
    flops_per_image = training_flops(method)
    if 0 < trainer_options.max_epochs <= method.optim.warmup_epochs:
        epochs = f"{method.optim.warmup_epochs:g} of {trainer_options.max_epochs} epochs"
        say(f"--optim.warmup_epochs: {epochs}, so the learning rate only rises; a tenth of them is usual")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump(config))
    precision = effective_precision(trainer_options.precision, trainer_options.accelerator)
    write_json(folder / "environment.json", {**describe(), "precision": precision})
    write_run(folder, info)
    with logged(folder, WandbOptions() if trainer_options.fast_dev_run else wandb) as run:
        _train(_trainer(trainer_options, config, folder, data, run), method, module, info, folder, flops_per_image)
    return Fitted(folder, already_done=False)


def quicken(method: Method, trainer: pl.Trainer, options: TrainerOptions) -> None:
    """Exact savings that depend on where and in which format training runs."""
    if trainer.strategy.root_device.type == "cpu" and "bf16" in str(trainer.precision):
        write_out_attention(method)
    if options.compile:
        compile_blocks(method)


def _train(
    trainer: pl.Trainer, method: Method, module: DataModule, info: RunInfo, folder: Path, flops_per_image: float
) -> None:
    """From the last checkpoint, if there is one, to the end; the record says how it ended."""
    options, data = TrainerOptions(**info.options["trainer"]), module.data
    quicken(method, trainer, options)
    last = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(method, datamodule=module, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except DivergenceError as error:
        write_run(folder, replace(info, status="failed", error=str(error), finished=_now()))
        raise
    except SystemExit as stop:  # Lightning's answer to Ctrl-C
        if trainer.interrupted or stop.code:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has switched it off
            write_run(folder, replace(info, status="interrupted"))
            raise KeyboardInterrupt from None
        raise
    if trainer.is_global_zero and not options.fast_dev_run:
        if method.product == "tokenizer":
            save_tokenizer(folder, method)
        else:
            save_backbone(folder, method, data)
            if (classifier := method.evaluated_classifier) is not None:
                save_classifier(folder, classifier, classifier.names or data.classes or ())
        write_run(folder, _finished(trainer, info, flops_per_image))


@final
class SeedEachBatch(pl.Callback):
    """Masks, drop path and whatever else a step draws depend on (seed, epoch, batch, rank) alone.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank, 1))


def build(config: dict[str, Any]) -> tuple[Dataset, Method, DataModule]:
    """Data, method and data module of a configuration."""
    return build_on(load_dataset(DataOptions(**config["data"])), config)


def build_on(data: Dataset, config: dict[str, Any]) -> tuple[Dataset, Method, DataModule]:
    """The same on data that are open already."""
    data_options = data.options
    given = dict(config["method"])
    found = registry.find("methods", given.pop("name"))
    cls = registry.load(found)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"{found.module}.{found.class_name} is no subclass of ssl_bench.pretraining.method.Method")
    optim = config["optim"]
    as_tuples = {"betas": tuple(optim["betas"]), "milestones": tuple(optim["milestones"])}
    wanted = inspect.signature(cls).parameters
    if "backbone" in wanted:
        size = config["backbone"]["img_size"] or data.image_size
        given["backbone"] = Backbone(BackboneOptions(**{**config["backbone"], "img_size": size}))
    if "image_size" in wanted:
        given["image_size"] = data.image_size
    if "statistics" in wanted:  # what undoes the views' normalisation
        given["statistics"] = data.mean, data.std
    if "classes" in wanted:  # of a stage that learns from labels
        data.require_labels()
        given["classes"] = len(data.classes or ())
    method = cls(optim=Optim(**{**optim, **as_tuples}), **given)
    if config["init"] is not None:
        start_from(method, Path(config["init"]))
    if not method.standardize:
        data = replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if method.needs_labels:
        if data_options.label_fraction is not None:
            say(f"learning from {100 * data_options.label_fraction:g} % of the labels: --data.label_fraction")
        data = _labelled(data, method)
    elif data_options.label_fraction is not None:
        learners = "simclrv2-finetune, or simclrv2-distill with --method.alpha below 1"
        raise UserError(f"--data.label_fraction: {config['method']['name']} here learns from no labels, as {learners}")
    return data, method, DataModule(data, data_options, method.views(), config["seed"], labels=method.needs_labels)


def _labelled(data: Dataset, method: Method) -> Dataset:
    """What a method that learns from labels trains on."""
    data.require_labels()
    names = method.evaluated_classifier.names if method.evaluated_classifier is not None else None
    if names is not None and names != data.classes:
        raise UserError(f"{data.title} has other classes than the network that is to name them: choose its data set")
    return data.labelled(method.unlabelled_too)


def prepare_process() -> None:
    """What makes Lightning quiet and the CPU fast, once per process."""
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; no effect on a CPU
    keep_freed_memory()


def _trainer(options: TrainerOptions, config: dict[str, Any], folder: Path, data: Dataset, run: WandbRun) -> pl.Trainer:
    loggers: list[Any] = [MetricsFile(folder / "metrics.csv"), WandbMetrics(run)]
    probe = OnlineProbe(data, ProbeOptions(**config["probe"]))
    callbacks = [SeedEachBatch(config["seed"]), StopAtNaN(), probe, Progress(probe), SaveLast(folder, config)]
    return pl.Trainer(
        max_epochs=options.max_epochs,
        max_steps=options.max_steps,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=effective_precision(options.precision, options.accelerator),  # type: ignore[arg-type]
        accumulate_grad_batches=options.accumulate_grad_batches,
        plugins=[SyncNorms()] if options.sync_batchnorm else None,
        limit_train_batches=options.limit_train_batches,
        log_every_n_steps=min(options.log_every_n_steps, max(1, len(data.pretrain) // config["data"]["batch_size"])),
        fast_dev_run=options.fast_dev_run,
        logger=loggers,
        callbacks=callbacks,
        use_distributed_sampler=False,  # our loaders shard themselves
        enable_progress_bar=False,  # Lightning's writes to standard output
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


def _describe_run(config: dict[str, Any], data: Dataset, method: Method, command: Sequence[str]) -> RunInfo:
    views = method.views()
    pretrains = method.product == "backbone"
    return RunInfo(
        status="running",
        kind="pretrained" if pretrains else "tokenizer",
        method=config["method"]["name"],
        data=DataRecord(data.title, data.fingerprint),
        options=_options_of(config),
        backbone=describe_backbone(config["backbone"]["name"], method.backbone) if pretrains else None,
        seed=config["seed"],
        views_per_image=sum(v.count * v.size**2 for v in views) / max(v.size**2 for v in views),
        created=_now(),
        command=list(command),
        version=ssl_bench.__version__,
        branch=main_branch(method) if pretrains else "",
    )


def main_branch(method: Method) -> str:
    """Which of a method's networks speaks for it, where there are several."""
    return next(iter(method.branches)) if len(method.branches) > 1 else ""


def _options_of(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its seed; nor with those of the runs it starts from, so that seeds stay one row."""
    options = {**config, "method": dict(config["method"])}
    del options["seed"]
    for group, name in ((options, "init"), (options["method"], "teacher"), (options["method"], "tokenizer")):
        run = group.get(name)
        if isinstance(run, str) and (Path(run) / "run.json").is_file():
            earlier = read_run(Path(run))
            stage = hashlib.sha256(json.dumps(earlier.options, sort_keys=True).encode()).hexdigest()[:8]
            group[name] = f"{earlier.method}-{stage}"
    return options


def training_flops(method: Method) -> float:
    """FLOPs of one image's forward and backward, counted on a copy with two random images."""
    copied = copy.deepcopy(method).train()
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(2, 3, v.size, v.size, generator=generator) for v in method.views() for _ in range(v.count)]
    labels = {"labels": torch.zeros(2, dtype=torch.int64)} if method.needs_labels else {}
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        copied.loss(views, **labels).backward()
    return counter.get_total_flops() / 2


def _finished(trainer: pl.Trainer, info: RunInfo, flops_per_image: float) -> RunInfo:
    progress = next(c for c in trainer.callbacks if isinstance(c, Progress))  # type: ignore[attr-defined]
    device = str(describe()["device"])
    memory = peak_memory(trainer.strategy.root_device)
    cost = RunCost(progress.seconds, flops_per_image * progress.images_seen, memory, device)
    batches = max(1, int(trainer.num_training_batches) * int(trainer.max_epochs or 1))
    epochs = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return replace(
        info,
        status="finished",
        epochs=round(epochs / batches * int(trainer.max_epochs or 1), 3),
        steps=trainer.global_step,
        images_seen=progress.images_seen,
        cost=cost,
        finished=_now(),
    )


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
