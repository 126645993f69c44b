"""Formats of an exported network besides timm's, each checked by the library that reads it.

Shapes: B images, 3 x s x s pixels, D features.
"""

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.errors import UserError

BATCH = 3  # images of the check, another number than the network was traced with


@torch.no_grad()
def write_torchscript(folder: Path, model: nn.Module, size: int, channels: int) -> None:
    """model.pt, which `torch.jit.load` reads without this package or timm.

    Raises:
        UserError: The network cannot be traced, or gives other features when loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are constants, which the check with another batch finds
        try:
            traced: Any = torch.jit.trace(model, torch.zeros(2, channels, size, size), check_trace=False)
            torch.jit.save(traced, folder / "model.pt")
            loaded: Any = torch.jit.load(folder / "model.pt")
            found = loaded(images(size, channels))
        except Exception as error:
            raise UserError(f"--format torchscript: this network cannot be traced ({_brief(error)})") from None
    require_equal(found, model, (size, channels), "torchscript")


@torch.no_grad()
def write_onnx(folder: Path, model: nn.Module, size: int, channels: int) -> None:
    """model.onnx: `images` (B, C, s, s) float32 -> `features` (B, D), for any B; checked with onnxruntime.

    Raises:
        UserError: A library is missing, the network cannot be exported, or gives other features when loaded.
    """
    runtime = _library("onnxruntime", "onnx")
    for name in ("onnx", "onnxscript"):
        _library(name, "onnx")
    file = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries among themselves
        try:
            torch.onnx.export(
                model,
                (torch.zeros(2, channels, size, size),),
                file,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
            session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"images": images(size, channels).numpy()})
        except Exception as error:
            raise UserError(f"--format onnx: this network cannot be exported ({_brief(error)})") from None
    require_equal(torch.from_numpy(found), model, (size, channels), "onnx")


@torch.no_grad()
def check_with_transformers(folder: Path, model: nn.Module, size: int, channels: int) -> None:
    """Check that `AutoModel.from_pretrained` loads the folder and pools the same features.

    Raises:
        UserError: transformers is missing, or gives other features.
    """
    transformers = _library("transformers", "hf")
    try:
        loaded = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
        found = loaded(pixel_values=images(size, channels)).pooler_output
    except Exception as error:
        raise UserError(f"--format hf: transformers {transformers.__version__}: {_brief(error)}") from None
    require_equal(found, model, (size, channels), "hf")


def images(size: int, channels: int) -> Tensor:
    """(B, C, s, s) of noise."""
    return torch.rand(BATCH, channels, size, size, generator=torch.Generator().manual_seed(0))


def require_equal(found: Tensor, model: nn.Module, shape: tuple[int, int], format: str) -> None:
    """Refuse what gives other features of noise than the network.

    Raises:
        UserError: It does.
    """
    expected = model.eval()(images(*shape))
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise UserError(f"--format {format}: what was written gives other features than the network")


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"--format {extra} needs {name}: pip install 'ssl-bench[{extra}]'") from None


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
