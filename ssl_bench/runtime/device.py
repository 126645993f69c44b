"""The device that a process of a command runs on. Loads torch only when asked."""

import os
import re
from collections.abc import Mapping

from ssl_bench.errors import UserError


def several_processes(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (torchrun, srun) has started more than this process."""
    return _number(environ, "WORLD_SIZE", "SLURM_NTASKS", default=1) > 1


def own_device(asked: str, environ: Mapping[str, str] = os.environ) -> str:
    """The device of this process, which has one to itself where a launcher has started several.

    Args:
        asked: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        environ: What the launcher says.

    Raises:
        UserError: This machine has no such device, or too few for its processes.
    """
    import torch

    kind, _, index = asked.partition(":")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", asked):
        raise UserError(f"--device {asked}: auto, cpu, cuda, cuda:1 or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no such device; auto takes what there is")
    count = torch.cuda.device_count() if kind in ("auto", "cuda") and torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        has = f"{count} GPU{'s' * (count > 1)}, counted from 0" if count else "no GPU that torch can use"
        raise UserError(f"--device {asked}: this machine has {has}; auto takes what there is")
    if kind in ("cpu", "mps") or count == 0:
        return kind if kind != "auto" else "cpu"
    if index:
        if several_processes(environ):
            raise UserError(f"--device {asked}: several processes cannot share it; cuda gives each its own")
        return asked
    local = _number(environ, "LOCAL_RANK", "SLURM_LOCALID", default=0) if several_processes(environ) else 0
    if count == 1:  # srun --gpus-per-task shows each task its own GPU alone
        return "cuda:0"
    if local >= count:
        raise UserError(f"more processes than the {count} GPUs of this machine: start as many, or --device cpu")
    return f"cuda:{local}"


def _number(environ: Mapping[str, str], *names: str, default: int) -> int:
    """The first of some variables that holds a number."""
    return next((int(environ[name]) for name in names if environ.get(name, "").isdecimal()), default)
