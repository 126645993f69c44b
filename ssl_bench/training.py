"""Pretraining: a configuration becomes a run folder.

The folder's record is complete at every moment: config.yaml and environment.json at the start, a checkpoint and
metrics.csv after each epoch, backbone and cost at the end. Starting again continues from the last checkpoint.
"""

import copy
import inspect
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, final

import ssl_bench.torchvision_guard  # noqa: F401  before lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

import ssl_bench
from ssl_bench import registry
from ssl_bench.backbone import Backbone
from ssl_bench.checkpoint import SaveLast, save_backbone, start_from
from ssl_bench.collectives import SyncNorms
from ssl_bench.configuration import dump
from ssl_bench.data.module import DataModule
from ssl_bench.data.opened import Data, open_data
from ssl_bench.environment import describe
from ssl_bench.errors import UserError
from ssl_bench.features import peak_memory
from ssl_bench.files import write_json, write_text
from ssl_bench.method import Method
from ssl_bench.metrics import MetricsFile, wandb_logger
from ssl_bench.options import BackboneOptions, DataOptions, Optim, ProbeOptions, TrainerOptions
from ssl_bench.probe import OnlineProbe
from ssl_bench.progress import Progress
from ssl_bench.randomness import derive
from ssl_bench.results import BackboneRecord, DataRecord, RunCost, RunInfo, read_run, write_run
from ssl_bench.run_folder import identity, run_folder
from ssl_bench.watch import DivergenceError, StopAtNaN


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
    config: dict[str, Any], runs: Path, command: Sequence[str] = (), wandb: str = "off", wandb_project: str = ""
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
    _prepare_process()
    trainer_options = TrainerOptions(**config["trainer"])
    pl.seed_everything(config["seed"], verbose=False)
    data, method, module = build(config)
    info = _describe_run(config, data, method, command)
    flops_per_image = training_flops(method)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump(config))
    precision = effective_precision(trainer_options.precision, trainer_options.accelerator)
    write_json(folder / "environment.json", {**describe(), "precision": precision})
    write_run(folder, info)
    trainer = _trainer(trainer_options, config, folder, data, wandb, wandb_project)
    if trainer.strategy.root_device.type == "cpu" and "bf16" in str(trainer.precision):
        write_out_attention(method)
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
    if trainer.is_global_zero and not trainer_options.fast_dev_run:
        save_backbone(folder, method, data)
        write_run(folder, _finished(trainer, info, flops_per_image))
    return Fitted(folder, already_done=False)


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


def build(config: dict[str, Any]) -> tuple[Data, Method, DataModule]:
    """Data, method and data module of a configuration."""
    data_options = DataOptions(**config["data"])
    data = open_data(data_options)
    size = config["backbone"]["img_size"] or data.image_size
    backbone = Backbone(BackboneOptions(**{**config["backbone"], "img_size": size}))
    given = dict(config["method"])
    found = registry.find("methods", given.pop("name"))
    cls = registry.load(found)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"{found.module}.{found.class_name} is no subclass of ssl_bench.method.Method")
    optim = config["optim"]
    as_tuples = {"betas": tuple(optim["betas"]), "milestones": tuple(optim["milestones"])}
    if "classes" in inspect.signature(cls).parameters:  # of a stage that learns from labels
        data.require_labels()
        given["classes"] = len(data.classes or ())
    method = cls(backbone=backbone, optim=Optim(**{**optim, **as_tuples}), **given)
    if config["init"] is not None:
        start_from(method, Path(config["init"]))
    if not method.standardize:
        data = replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return data, method, DataModule(data, data_options, method.views(), config["seed"])


def _prepare_process() -> None:
    """What makes Lightning quiet and the CPU fast."""
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; no effect on a CPU
    if sys.platform == "linux":
        import ctypes

        # Activations of one step are the next step's memory: keep it rather than return and fault it in again.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def _trainer(
    options: TrainerOptions, config: dict[str, Any], folder: Path, data: Data, wandb: str, project: str
) -> pl.Trainer:
    run_id = identity(config)
    loggers: list[Any] = [MetricsFile(folder / "metrics.csv")]
    if wandb != "off":
        loggers += wandb_logger(wandb, project, run_id, folder, config)
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


def effective_precision(asked: str, accelerator: str) -> str:
    """bf16-mixed where `auto` meets hardware that multiplies bf16 (GPUs, CPUs with AMX or AVX-512), else 32-true."""
    if asked != "auto":
        return asked
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16-mixed" if capable.get("amx_bf16") or capable.get("avx512_bf16") else "32-true"
    return "32-true"


def write_out_attention(method: Method) -> None:
    """Plain matrix products in place of fused attention.

    On a CPU in bf16 the fused kernel is the slow one for short sequences: measured with 65 tokens, 64 to 96 wide, steps
    take half the time without it (a Xeon with AMX, one thread).
    """
    for module in method.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _describe_run(config: dict[str, Any], data: Data, method: Method, command: Sequence[str]) -> RunInfo:
    views = method.views()
    return RunInfo(
        status="running",
        kind="pretrained",
        method=config["method"]["name"],
        data=DataRecord(data.title, data.fingerprint),
        options={k: v for k, v in config.items() if k != "seed"},
        backbone=describe_backbone(config["backbone"]["name"], method.backbone),
        seed=config["seed"],
        views_per_image=sum(v.count * v.size**2 for v in views) / max(v.size**2 for v in views),
        created=_now(),
        command=list(command),
        version=ssl_bench.__version__,
    )


def describe_backbone(name: str, backbone: Backbone) -> BackboneRecord:
    """The record of an architecture, with the cost of one image's forward."""
    image = torch.zeros(1, 3, backbone.img_size, backbone.img_size)
    training = backbone.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(image)
    backbone.train(training)
    tokens = backbone.grid**2 + backbone.prefix if backbone.is_vit or backbone.is_swin else 0
    args = {**backbone.args, "img_size": backbone.img_size}
    params = sum(p.numel() for p in backbone.parameters())
    return BackboneRecord(name, json.loads(json.dumps(args)), params, counter.get_total_flops() / 1e9, tokens)


def training_flops(method: Method) -> float:
    """FLOPs of one image's forward and backward, counted on a copy with two random images."""
    copied = copy.deepcopy(method).train()
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(2, 3, v.size, v.size, generator=generator) for v in method.views() for _ in range(v.count)]
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        copied.loss(views).backward()
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
