"""Files of weights, and the JSON beside them, read as data: others may have written them.

No file is opened that could block (a named pipe, a device) or, of a run folder, leads out of it. What a file claims to
hold is compared with its size before anything of that size is made. What we write has a checksum, which reading
verifies.
"""

import hashlib
import json
import math
import os
import stat
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.records.files import replacing

CHECKSUM = "sha256"  # in a safetensors file's metadata
MOST_JSON = 8 << 20  # bytes of a description
MOST_HEADER = 8 << 20  # bytes of a safetensors file's header: about 60,000 tensors
MOST_PICKLE = 4 << 20  # bytes of the pickle beside a checkpoint's tensors: about 20,000 of them
MOST_ENTRIES = 1 << 20  # of nested dictionaries
MOST_BUFFERS = 1 << 25  # values that a network computes rather than learns: tables of relative positions, masks
DEEPEST = 32  # dictionaries inside one another


def plain_file(path: Path, inside: Path | None = None) -> Path:
    """The path, of a file that can be read without surprise.

    Args:
        path: Of the file.
        inside: The run folder that it is part of; a link may not lead out of it.

    Raises:
        FileNotFoundError: It is not there.
        UserError: It is no ordinary file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path} is no ordinary file")
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise UserError(f"{path} is a link to {path.resolve()}, out of {inside}: copy the file there to use it")
    return path


def read_json(path: Path, inside: Path | None = None) -> Any:
    """What a description says.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is not JSON.
        UserError: It is no ordinary file, or larger or deeper than any description.
    """
    if plain_file(path, inside).stat().st_size > MOST_JSON:
        raise UserError(f"{path} is larger than {MOST_JSON >> 20} MiB: it is no description of a network")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply: it is no description of a network") from None


def tensor_shapes(path: Path, inside: Path | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, from its header alone; the library checks them against the file's size.

    Raises:
        FileNotFoundError: It is not there.
        SafetensorError: It is damaged.
        UserError: It is no ordinary file, or its header is larger than any network's.
    """
    with open(plain_file(path, inside), "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if MOST_HEADER < claimed <= path.stat().st_size:  # safetensors itself refuses a longer one
        raise UserError(f"{path} is damaged: its header claims {claimed:,} bytes")
    with safe_open(path, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def read_tensors(path: Path, inside: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file; one without a checksum was written by others, and is believed.

    Raises:
        FileNotFoundError: It is not there.
        SafetensorError: It is damaged.
        ValueError: Its tensors are not those that were written.
        UserError: As `tensor_shapes`.
    """
    tensor_shapes(path, inside)
    with safe_open(path, framework="pt") as opened:
        about = opened.metadata() or {}
    tensors: dict[str, Tensor] = load_file(path)
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


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole file of tensors, with the checksum of their names, shapes and bits.

    Raises:
        OSError: It cannot be written.
    """
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    # One entry of metadata: safetensors writes several in any order, and equal weights must make equal files.
    content = save(held, metadata={CHECKSUM: checksum(held)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)  # by Python, so that a full disk is an OSError


def read_pickled(path: Path, inside: Path | None = None) -> Any:
    """What `torch.save` wrote: tensors and plain values in dictionaries and lists; tensors stay on disk where they can.

    Raises:
        FileNotFoundError: It is not there.
        Exception: Whatever torch raises of a damaged file, or of one that needs more than reading.
        UserError: It is no ordinary file, is compressed, or claims more than it holds.
    """
    size = plain_file(path, inside).stat().st_size
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        whole = sum(member.file_size for member in members)
        if whole > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(f"{path} holds {whole:,} bytes in {size:,}: torch.save compresses nothing; fetch it again")
        pickled = sum(member.file_size for member in members if member.filename.endswith(".pkl"))
        if pickled > MOST_PICKLE:
            raise UserError(f"{path} holds {pickled:,} bytes beside its tensors: save its weights alone")
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    total = 0
    for name, value in entries(found, str(path)):
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise UserError(f"{path}: {name} is a sparse, quantised or empty tensor: save plain ones")
            nbytes = value.numel() * value.element_size()
            total += nbytes
            if nbytes > value.untyped_storage().nbytes() or total > 4 * size:  # views of one value, again and again
                raise UserError(f"{path}: {name} claims {nbytes:,} bytes of a file of {size:,}")
    return found


def entries(value: Any, file: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all that nested dictionaries, lists and options hold.

    Args:
        value: A dictionary, a list, an object of options, or anything else, which is a value.
        file: Whose it is, for messages.

    Raises:
        UserError: There is no end to it.
    """
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    count = 0
    while stack:
        name, here, depth = stack.pop()
        inner: Any
        if isinstance(here, Mapping):
            inner = here.items()
        elif isinstance(here, list | tuple) and not isinstance(here, torch.Size):
            inner = enumerate(here)
        elif isinstance(here, Namespace):
            inner = vars(here).items()
        else:
            yield name, here
            continue
        count += len(here) if not isinstance(here, Namespace) else len(vars(here))
        if depth >= DEEPEST or count > MOST_ENTRIES:
            raise UserError(f"{file} holds dictionaries in dictionaries without end: it is no checkpoint")
        before = f"{name}." if name else ""
        stack += [(f"{before}{key}", content, depth + 1) for key, content in reversed(list(inner))]


def shapes_of(build: Callable[[], nn.Module], what: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's state, found without making its weights.

    Args:
        build: Makes the module.
        what: The module, for messages.

    Raises:
        UserError: Beside its weights it would hold more than any network does.
    """
    with torch.device("meta"):
        module = build()
    state = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    computed = sum(buffer.numel() for _, buffer in module.named_buffers())
    if computed > MOST_BUFFERS + sum(math.prod(shape) for shape in state.values()):
        raise UserError(f"{what} would need {computed:,} values beside its weights")
    return state
