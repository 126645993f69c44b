"""A checkpoint that others wrote, read as data: its tensors laid flat, and what else is in it."""

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_bench.checkpoints.official.layout import AVERAGES, ENTRIES, WRAPPED, WRAPPERS
from ssl_bench.errors import UserError
from ssl_bench.models.weights_files import read_json, read_pickled, read_tensors

# How official code and Lightning store their options. None of it runs anything; of the classes of others the entries
# are read, never the class.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]
SHARDED = re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?")  # FSDP's pieces of several tensors


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds.

    Args:
        path: Of the weights.
        tensors: By their flat names (`ssl_bench/checkpoints/official/layout.py` says how).
        entries: The rest of its top level.
        config: config.json beside the weights, of a folder that timm can load.
        left: Entries of other weights than the ones that were chosen, and why.
        chosen: The entry that was chosen where a file has weights and their moving average; empty where it has not.
    """

    path: Path
    tensors: dict[str, Tensor]
    entries: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    chosen: str = ""


def read_checkpoint(path: Path, weights: str | None = None) -> CheckpointFile:
    """Read a .pth, .safetensors or a folder with config.json and model.safetensors.

    Args:
        path: Of the file or folder.
        weights: `ema` for the moving average, where a file has one beside the weights; else the weights.

    Raises:
        UserError: It is not there, is damaged, or needs more than reading.
    """
    if path.is_dir():
        return _folder(path)
    try:
        if path.suffix == ".safetensors":
            whole: Any = read_tensors(path)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                whole = read_pickled(path)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint ({reason}): fetch it again") from None
    if not isinstance(whole, Mapping):
        raise UserError(f"{path} holds a {type(whole).__name__}, not tensors by name")
    return _chosen(path, whole, weights)


def _chosen(path: Path, whole: Mapping[Any, Any], weights: str | None) -> CheckpointFile:
    """One of the weights that a file holds, with all that is beside them."""
    found = {name: [] if name in ENTRIES else list(_tensors(value, str(name))) for name, value in whole.items()}
    averages = [name for name in found if name in AVERAGES and found[name]]
    plain = [name for name in found if name in WRAPPERS and found[name]]
    if weights == "ema" and plain and not averages:
        raise UserError(f"--weights ema: {path} holds no moving average of its weights ({', '.join(AVERAGES)})")
    average = bool(averages) and (weights == "ema" or not plain)
    left: dict[str, str] = {}
    if averages and plain:
        other = "model" if average else "ema"
        left = dict.fromkeys(plain if average else averages, f"other weights than were asked for: --weights {other}")
    held = (*WRAPPERS, *AVERAGES)  # whose names are no part of what is in them
    tensors: dict[str, Tensor] = {}
    for entry, pairs in found.items():
        for name, tensor in () if entry in left else pairs:
            inner = name.partition(".")[2] if entry in held and not isinstance(whole[entry], Tensor) else name
            flat = WRAPPED.sub("", inner)
            if SHARDED.fullmatch(flat):
                raise UserError(f"{path}: {name} is a piece of a network that FSDP sharded: save its full state dict")
            if flat in tensors:
                raise UserError(f"{path} holds {flat} twice, wrapped and not: keep one of them")
            tensors[flat] = tensor
    entries = {str(name): whole[name] for name, pairs in found.items() if not pairs}
    chosen = (averages if average else plain)[0] if averages else ""
    return CheckpointFile(path, tensors, entries, left=left, chosen=chosen)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for inner, content in value.items():
            held = isinstance(content, Mapping) and inner in WRAPPERS
            yield from _tensors(content, name if held else f"{name}.{inner}")


def _folder(path: Path) -> CheckpointFile:
    config, weights = path / "config.json", path / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(f"{path} is a folder without config.json and model.safetensors: name a checkpoint's file")
    try:
        read = read_json(config)
        if not isinstance(read, dict) or not isinstance(read.get("architecture"), str):
            raise ValueError("config.json names no architecture")
        return CheckpointFile(weights, read_tensors(weights), config=read)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:
        raise UserError(f"{path} is damaged ({str(error).partition(chr(10))[0]}): export or fetch it again") from None


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Why a pickle is not opened: what it would take, and how to do without."""
    wanted = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    if not wanted:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        return f"{path} is damaged or no checkpoint ({reason}): fetch it again"
    # all of them, not only the first; the older kind of file, no zip, cannot be asked
    with suppress(Exception), torch.serialization.safe_globals(HARMLESS):
        wanted |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return (
        f"{path} holds objects of {', '.join(sorted(wanted)[:4])}, which only running its code would open, and that is"
        " never done here; where you trust it, keep its weights alone:"
        " c = torch.load(FILE, weights_only=False); torch.save({'model': c['model']}, NEW)"
        " (in place of 'model' what the file has: 'state_dict', or 'student', 'teacher' and the loss)"
    )
