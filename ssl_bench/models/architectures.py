"""Names of networks. Torch-free: timm's own list is read from its source, not by importing it."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

# Small enough for a laptop's CPU: (timm name, its arguments, what it is).
TINY: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit_nano_patch4_32": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3},
        "ViT, 32 px, 96 wide, 6 deep: 0.7 M parameters",
    ),
    "vit_micro_patch4_32": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2},
        "ViT, 32 px, 64 wide, 4 deep: 0.2 M parameters, the demo's",
    ),
    "vit_mini_patch8_32": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4},
        "ViT, 32 px, 16 patches, 128 wide, 4 deep: 0.8 M parameters",
    ),
    "vit_shallow_patch4_32": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0},
        "ViT, 32 px, 64 patches, 128 wide, 2 deep: 0.3 M parameters",
    ),
    "vit_pico_patch4_32": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
        "ViT, 32 px, 48 wide, 2 deep: for tests",
    ),
    "beit_nano_patch4_32": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3, "init_values": 0.1}
        | {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
        "ViT, 32 px, 96 wide, 6 deep, relative positions (SimMIM's): 0.7 M parameters",
    ),
    "beit_pico_patch4_32": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.1}
        | {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
        "ViT, 32 px, 48 wide, 2 deep, relative positions: for tests",
    ),
    "swin_nano_patch2_32": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "embed_dim": 48, "depths": (2, 4), "num_heads": (3, 6), "window_size": 4},
        "Swin, 32 px, 48 to 96 wide, 2 + 4 deep: 0.5 M parameters",
    ),
    "swin_pico_patch2_32": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "window_size": 4},
        "Swin, 32 px, 24 to 48 wide, 2 + 2 deep: for tests",
    ),
    "resnet_micro": (
        "resnet18",
        {"layers": (1, 1, 1, 1), "channels": (24, 48, 96, 192), "stem_type": "deep", "stem_width": 12},
        "ResNet, 10 layers, narrow from the stem on: 0.7 M parameters, the demo's",
    ),
    "resnet_nano": (
        "resnet18",
        {"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256)},
        "ResNet, 10 layers, a half to a quarter of ResNet-18's channels: 1.2 M parameters",
    ),
}


@cache
def timm_names() -> dict[str, list[str]]:
    """Family -> names of timm's models in it, as the installed version's source registers them."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "models"
    titles = {"vision_transformer": "ViT", "beit": "BEiT", "swin_transformer": "Swin", "resnet": "ResNet"}
    found: dict[str, list[str]] = {}
    for file in (*(folder / f"{name}.py" for name in titles), *sorted(folder.glob("[a-z]*.py"))):
        if names := re.findall(r"@register_model\s+def (\w+)", file.read_text(encoding="utf-8")):
            found.setdefault(titles.get(file.stem, file.stem), names)
    return found


def backbone_names() -> list[str]:
    """Ours and timm's, as `ssl-bench list backbones` has them."""
    return [*TINY, *(name for names in timm_names().values() for name in names)]
