"""Inputs, weights and outputs of the official implementations on tiny networks, kept in tests/golden/.

Each case is a JSON file (configuration, scalars, what computed it) and, where it has tensors, a safetensors file.
"""

import json
from typing import Any

import torch
from paths import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

FOLDER = GOLDEN


def load(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case's JSON and tensors."""
    tensors = FOLDER / f"{case}.safetensors"
    record = json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    return record, load_file(tensors) if tensors.exists() else {}


def weights(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def assert_close(actual: Tensor | float, expected: Tensor | float, noise: float = 0.0, relative: float = 1e-5) -> None:
    """Largest difference below 1e-5 of the largest expected value, or ten times the float32 noise on record."""
    actual, expected = (torch.as_tensor(v).detach().double() for v in (actual, expected))
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference, scale = (actual - expected).abs().max().item(), expected.abs().max().item()
    allowed = max(relative * scale, 10 * noise)
    assert difference <= allowed, f"differs by {difference:.3g}, allowed {allowed:.3g} at values up to {scale:.3g}"
