"""A checkpoint that others wrote, read as data: its tensors laid flat, and what else is in it."""

import argparse
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ssl_bench.checkpoints.official.layout import ENTRIES, WRAPPERS
from ssl_bench.errors import UserError

# How official code stores its options. Neither runs anything; of yacs' class the entries are read, never the class.
HARMLESS: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds.

    Args:
        path: Of the weights.
        tensors: By their flat names (`ssl_bench/official/layout.py` says how).
        entries: The rest of its top level.
        config: config.json beside the weights, of a folder that timm can load.
    """

    path: Path
    tensors: dict[str, Tensor]
    entries: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a .pth, .safetensors or a folder with config.json and model.safetensors.

    Raises:
        UserError: It is not there, is damaged, or needs more than reading.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        if path.suffix == ".safetensors":
            return CheckpointFile(path, load_file(path))
        with torch.serialization.safe_globals(HARMLESS):
            whole = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint ({reason}): fetch it again") from None
    if not isinstance(whole, Mapping):
        raise UserError(f"{path} holds a {type(whole).__name__}, not tensors by name")
    tensors: dict[str, Tensor] = {}
    entries = {}
    for name, value in whole.items():
        found = {} if name in ENTRIES else dict(_tensors(value, "" if name in WRAPPERS else str(name)))
        if not found:
            entries[str(name)] = value
        tensors |= found
    return CheckpointFile(path, tensors, entries)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name.removeprefix("module."), value
    elif isinstance(value, Mapping):
        for inner, content in value.items():
            yield from _tensors(content, f"{name}.{str(inner).removeprefix('module.')}" if name else str(inner))


def _folder(path: Path) -> CheckpointFile:
    config, weights = path / "config.json", path / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(f"{path} is a folder without config.json and model.safetensors: name a checkpoint's file")
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(read, dict) or "architecture" not in read:
            raise ValueError("config.json names no architecture")
        return CheckpointFile(weights, load_file(weights), config=read)
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
