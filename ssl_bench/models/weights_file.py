"""safetensors files with a checksum of their tensors, which reading verifies."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ssl_bench.records.files import replacing

CHECKSUM = "sha256"  # in the file's metadata


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole file of tensors, with the checksum of their names, shapes and bits.

    Raises:
        OSError: It cannot be written.
    """
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    # One entry of metadata: safetensors writes several in any order, and equal weights must make equal files.
    content = safetensors.torch.save(held, metadata={CHECKSUM: checksum(held)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)  # by Python, so that a full disk is an OSError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; one without a checksum was written by others, and is believed.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        SafetensorError: It is no such file, or incomplete.
        ValueError: Its tensors are not those that were written.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    if CHECKSUM in about and about[CHECKSUM] != checksum(tensors):
        raise ValueError(f"{path.name} does not match its checksum")
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
