"""FLOPs of a network by formula, within a factor of one and a half, for plans that are made before torch is loaded.

What a run really took is counted (`pretraining/training.py`). Torch-free.
"""

import re
from collections.abc import Mapping
from typing import Any

from ssl_bench.models.architectures import TINY

VITS = {  # in timm's names -> width, blocks
    "tiny": (192, 12),
    "xsmall": (256, 12),
    "small": (384, 12),
    "medium": (512, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "huge": (1280, 32),
    "giant": (1408, 40),
}
RESNETS = {"18": 3.6e9, "26": 4.7e9, "34": 7.3e9, "50": 8.2e9, "101": 15.7e9, "152": 23.1e9}  # at 224 px
SWINS = {"tiny": 9.0e9, "small": 17.5e9, "base": 30.9e9, "large": 69.0e9}  # at 224 px


def forward_flops(backbone: Mapping[str, Any], size: int, part: float = 1.0) -> float | None:
    """Of one image's forward pass; None for a network whose name says too little.

    Args:
        backbone: Its options, by name.
        size: Pixels of a side of the image.
        part: Of the patches, those that are processed; for ViTs.
    """
    name = str(backbone["name"])
    architecture, args = (TINY[name][0], TINY[name][1]) if name in TINY else (name, {})
    if architecture.startswith("resnet"):
        depth = re.match(r"resnet(\d+)", architecture)
        flops = RESNETS.get(depth[1]) if depth else None
        if flops is None:
            return None
        if channels := args.get("channels"):
            flops *= (channels[0] / 64) ** 2 * sum(args.get("layers", (2, 2, 2, 2))) / 8
        small = backbone.get("small_stem")
        stem = 16 if small or (small is None and size <= 64) else 1  # four times the side at every layer
        return flops * (size / 224) ** 2 * stem * float(backbone.get("width") or 1) ** 2
    kind = next((kind for kind in {**VITS, **SWINS} if f"_{kind}_" in architecture), None)
    if kind is None:
        return None
    if architecture.startswith("swin"):
        scale = ((backbone.get("width") or args.get("embed_dim") or 0) / {"base": 128, "large": 192}.get(kind, 96)) or 1
        patch = backbone.get("patch_size") or args.get("patch_size") or 4
        return SWINS[kind] * (size / patch / 56) ** 2 * scale**2 * sum(args.get("depths", (2, 2, 6, 2))) / 12
    if kind not in VITS or not architecture.startswith(("vit", "beit", "deit")):
        return None
    width, blocks = VITS[kind]
    width = backbone.get("width") or args.get("embed_dim") or width
    blocks = backbone.get("depth") or args.get("depth") or blocks
    patch = patch_of(backbone)
    return (
        transformer_flops(width, blocks, part * (size / patch) ** 2 + 1) + 6.0 * width * patch**2 * (size / patch) ** 2
    )


def transformer_flops(width: int, blocks: int, tokens: float) -> float:
    """Of blocks with an MLP four times as wide: 12 w^2 multiplications a token, and attention."""
    return blocks * (24.0 * width**2 * tokens + 4.0 * width * tokens**2)


def patch_of(backbone: Mapping[str, Any]) -> int:
    """Pixels of a patch's side."""
    name = str(backbone["name"])
    architecture, args = (TINY[name][0], TINY[name][1]) if name in TINY else (name, {})
    found = re.search(r"patch(\d+)", architecture)
    return int(backbone.get("patch_size") or args.get("patch_size") or (found[1] if found else 16))
