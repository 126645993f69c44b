"""The Lightning trainer of a run, and what it does besides training."""

import logging
import warnings
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy

from ssl_bench.config import class_paths, registry
from ssl_bench.config.options import ProbeOptions, TrainerOptions
from ssl_bench.data.dataset import Dataset
from ssl_bench.errors import UserError
from ssl_bench.pretraining.last_checkpoint import LocalCheckpointIO, SaveLast
from ssl_bench.pretraining.metrics import MetricsFile, WandbMetrics
from ssl_bench.pretraining.nan_guard import StopAtNaN
from ssl_bench.pretraining.online_probe import OnlineProbe
from ssl_bench.pretraining.progress import Progress
from ssl_bench.pretraining.weight_average import WeightAverage
from ssl_bench.runtime.acceleration import effective_precision
from ssl_bench.runtime.distributed import TIMEOUT, LaunchedEnvironment, SyncNorms
from ssl_bench.runtime.launch import Launch, requested_processes, settled_devices
from ssl_bench.runtime.seeds import derive
from ssl_bench.runtime.stopping import Signals
from ssl_bench.tracking.other_loggers import other_loggers
from ssl_bench.tracking.wandb_run import WandbRun


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


def prepare_process(quiet: bool = False) -> None:
    """What makes Lightning quiet and products of matrices fast, once per process.

    Args:
        quiet: Whether warnings are another process's to give.
    """
    if quiet:
        warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # our own launch knows of SLURM
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; no effect on a CPU


def make_trainer(
    config: dict[str, Any], folder: Path, data: Dataset, run: WandbRun, launch: Launch | None, signals: Signals
) -> pl.Trainer:
    """The trainer of a configuration.

    Args:
        config: The whole configuration.
        folder: The run folder.
        data: The images.
        run: Where numbers go besides the folder.
        launch: What a launcher said of this process.
        signals: What is asked of the run meanwhile.
    """
    options, batch = TrainerOptions(**config["trainer"]), config["data"]["batch_size"]
    devices, nodes = settled_devices(launch, options.devices, options.num_nodes, options.accelerator)
    world_size = launch.world_size if launch else nodes * requested_processes(devices, options.accelerator)
    images_per_step = batch * options.accumulate_grad_batches * world_size
    probe = OnlineProbe(data, ProbeOptions(**config["probe"]), folder)
    progress = Progress(probe, min(options.log_every_n_steps, max(1, len(data.pretrain) // images_per_step)))
    sha256 = str(data.fingerprint.get("sha256", ""))
    save = SaveLast(folder, config, sha256, signals, options.checkpoint_minutes)
    several = launch is not None and launch.world_size > 1
    first = launch is None or launch.rank == 0
    loggers = class_paths.names_in(options.loggers) if first and not options.fast_dev_run else ()
    average = [WeightAverage(options.ema)] if options.ema is not None and "backbone" in config else []
    plugins: list[Any] = [LaunchedEnvironment(launch) if launch and several else LightningEnvironment()]
    return pl.Trainer(
        max_epochs=options.max_epochs,
        max_steps=options.max_steps,
        accelerator=options.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(options.strategy, world_size),
        precision=effective_precision(options.precision, options.accelerator),  # type: ignore[arg-type]
        accumulate_grad_batches=options.accumulate_grad_batches,
        plugins=[*plugins, LocalCheckpointIO(), *([SyncNorms()] if options.sync_batchnorm else [])],
        limit_train_batches=options.limit_train_batches,
        log_every_n_steps=0,  # Progress logs: a step's row is complete before its checkpoint
        fast_dev_run=options.fast_dev_run,
        logger=[MetricsFile(folder / "metrics.csv"), WandbMetrics(run), *other_loggers(loggers, folder, config)],
        callbacks=[SeedEachBatch(config["seed"]), StopAtNaN(), *average, *_callbacks(options), probe, progress, save],
        use_distributed_sampler=False,  # our loaders shard themselves
        enable_progress_bar=False,  # Lightning's writes to standard output
        enable_model_summary=bool(options.enable_model_summary),
        profiler=_profiler(options.profiler, folder),
        deterministic=options.deterministic,
        benchmark=options.benchmark,
        detect_anomaly=bool(options.detect_anomaly),
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


def _callbacks(options: TrainerOptions) -> list[pl.Callback]:
    """The user's.

    Raises:
        UserError: One is no callback, needs arguments, or is named by a file alone.
    """
    found = []
    for name in class_paths.names_in(options.callbacks):
        class_paths.refuse_unnamed(class_paths.CALLBACKS, name)
        made = registry.load_object(registry.class_at(name, "callback"))
        if not (isinstance(made, type) and issubclass(made, pl.Callback)):
            raise UserError(f"--trainer.callbacks {name} is no pytorch_lightning.Callback")
        try:
            found.append(made())
        except TypeError as error:
            raise UserError(f"--trainer.callbacks {name}: it is made without arguments ({error})") from None
    return found


def _profiler(name: str | None, folder: Path) -> Profiler | None:
    """What writes `profile-*.txt` into the run's folder."""
    if name is None:
        return None
    kinds: dict[str, type[Profiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    return kinds[name](dirpath=folder, filename="profile")


def _strategy(name: str, world_size: int) -> Any:
    """How devices work together: DDP, with a bound on how long one waits for the others.

    Raises:
        UserError: Another way, with which gradients would be clipped and weights saved in parts.
    """
    if name == "auto" and world_size == 1:
        return "auto"
    if name in ("auto", "ddp", "ddp_find_unused_parameters_false"):
        return DDPStrategy(timeout=TIMEOUT)
    if name == "ddp_find_unused_parameters_true":
        return DDPStrategy(timeout=TIMEOUT, find_unused_parameters=True)
    raise UserError(f"--trainer.strategy {name}: auto, ddp or ddp_find_unused_parameters_true")
