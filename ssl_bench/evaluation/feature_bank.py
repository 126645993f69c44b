"""Features of a split, kept as half-precision numbers in memory and in a file.

Shapes: N images of a split, D features.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ssl_bench.evaluation.cost import Cost
from ssl_bench.records.files import replacing


@dataclass(frozen=True)
class FeatureBank:
    """Features of each image of a split, in the split's order.

    Args:
        halves: Kind -> (N, D) float16, divided by the feature type's scales.
        scales: Kind -> (D,) float32 powers of two, so that neither large nor tiny features leave float16's range and
            dividing by them rounds nothing.
        cost: Of the pass that gave them.
    """

    halves: dict[str, Tensor]
    scales: dict[str, Tensor]
    cost: Cost


def scales_of(features: Tensor) -> Tensor:
    """(N, D) -> (D,), the power of two above each feature's largest magnitude; 1 for a feature that is always 0."""
    if len(features) == 0:
        return torch.ones(features.shape[1])
    exponent = features.abs().amax(0).frexp().exponent.clamp(-126, 127)
    return torch.ldexp(torch.ones(features.shape[1]), exponent)


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_bank(path: Path, fields: dict[str, Any], bank: FeatureBank) -> None:
    tensors = {f"half {k}": v for k, v in bank.halves.items()} | {f"scale {k}": v for k, v in bank.scales.items()}
    about = {"fields": json.dumps(fields, sort_keys=True), "cost": json.dumps(asdict(bank.cost))}
    about["checksum"] = _checksum(tensors)
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=about)


def load_bank(path: Path, fields: dict[str, Any]) -> FeatureBank | None:
    """The features in a file, or None unless it is whole and made from exactly these fields."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        if about["fields"] != json.dumps(fields, sort_keys=True):
            raise ValueError("made from something else")
        if about["checksum"] != _checksum(tensors):
            raise ValueError("damaged")
        halves = {feature_type: tensors[f"half {feature_type}"] for feature_type in fields["feature_types"]}
        scales = {feature_type: tensors[f"scale {feature_type}"] for feature_type in fields["feature_types"]}
        return FeatureBank(halves, scales, Cost(**json.loads(about["cost"])))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: {error}; computing these features again", file=sys.stderr)
        return None
