"""Whether the devices that were asked for are on this machine: found out before anything is built on them."""

import os
import re
from collections.abc import Mapping

import torch

from ssl_bench.config.options import TrainerOptions
from ssl_bench.errors import UserError
from ssl_bench.runtime.launch import adopt_launcher

MOST_PROCESSES = 16  # on a processor with fewer cores; more are a typing mistake


def own_device(asked: str, environ: Mapping[str, str] = os.environ) -> str:
    """The device of this process, which has one to itself where a launcher has started several.

    Args:
        asked: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        environ: What the launcher says.

    Raises:
        UserError: This machine has no such device, or too few for its processes.
    """
    kind, _, index = asked.partition(":")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", asked):
        raise UserError(f"--device {asked}: auto, cpu, cuda, cuda:1 or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has none: --device auto, or cpu")
    if kind == "cuda":
        _require_gpu(f"--device {asked}")
    count = torch.cuda.device_count() if kind in ("auto", "cuda") and torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise UserError(f"--device {asked}: {_gpus()}, counted from 0")
    if kind in ("cpu", "mps") or count == 0:
        return kind if kind != "auto" else "cpu"
    launch = adopt_launcher(dict(environ))
    if index:
        if launch is not None and launch.world_size > 1:
            raise UserError(f"--device {asked}: several processes cannot share it; cuda gives each its own")
        return asked
    if launch is None or count == 1:  # srun --gpus-per-task shows each task its own GPU alone
        return "cuda:0"
    if launch.local_rank >= count:
        raise UserError(f"more processes than the {count} GPUs of this machine: start as many, or --device cpu")
    return f"cuda:{launch.local_rank}"


def check_trainer(options: TrainerOptions) -> None:
    """Refuse to train on devices that are not here, or in a way that they cannot.

    Raises:
        UserError: What is missing, and what would do instead.
    """
    kind = options.accelerator
    if kind in ("gpu", "cuda") and not (kind == "gpu" and torch.backends.mps.is_available()):
        _require_gpu(f"--trainer.accelerator {kind}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--trainer.accelerator mps: this machine has none: auto, or cpu")
    on_gpu = kind in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    _check_devices(str(options.devices), on_gpu)
    if not on_gpu and options.strategy == "fsdp":
        raise UserError("--trainer.strategy fsdp needs GPUs: ddp, or auto")
    if not on_gpu and options.precision in ("16-mixed", "16-true"):
        raise UserError(f"--trainer.precision {options.precision} needs a GPU: bf16-mixed, 32-true, or auto")


def _check_devices(devices: str, on_gpu: bool) -> None:
    if devices == "auto":
        return
    if on_gpu:
        here = torch.cuda.device_count()
        indices = [int(index) for index in devices.split(",")] if "," in devices else []
        if max([*indices, -1]) >= here or (not indices and int(devices) > here):
            raise UserError(f"--trainer.devices {devices}: {_gpus()}, counted from 0 in a list")
        return
    if "," in devices or int(devices) < 1:
        raise UserError(f"--trainer.devices {devices}: a processor has no numbered devices: 1, or auto")
    most = max(MOST_PROCESSES, os.cpu_count() or 1)
    if int(devices) > most:
        raise UserError(f"--trainer.devices {devices}: that many processes on {os.cpu_count()} cores: at most {most}")


def _require_gpu(option: str) -> None:
    if torch.cuda.is_available():
        return
    why = "the installed torch is for CPUs alone" if torch.version.cuda is None else "torch finds no GPU here"
    raise UserError(f"{option}: {why}: cpu, or auto")


def _gpus() -> str:
    count = torch.cuda.device_count()
    return f"this machine has {count} GPU{'s' if count > 1 else ''}"
