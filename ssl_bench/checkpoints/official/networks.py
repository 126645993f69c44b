"""Which network has tensors of these shapes: timm's class and our options for it. Torch-free.

Names are timm's. Heads leave no trace in a ViT's shapes; relative position tables have a column for each.
"""

import math
from collections.abc import Mapping
from typing import Any

from ssl_bench.checkpoints.official.layout import Given, blocks
from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.errors import UserError
from ssl_bench.models.architectures import timm_names

# Size -> width, depth, heads.
VITS = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
GIANT = (1536, 40, 24)  # DINOv2's, the one of timm's whose MLPs are SwiGLUs
SWINS = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
}
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


def network(
    named: Mapping[str, tuple[int, ...]], file: Mapping[str, tuple[int, ...]], given: Given, heads: Mapping[int, int]
) -> dict[str, Any]:
    """Options of the network.

    Args:
        named: Shapes of its tensors, by timm's names.
        file: Shapes of all tensors, by the file's names.
        given: What shapes cannot say.
        heads: Width -> heads, as published.

    Raises:
        UserError: Shapes leave it open, or none of the families has such tensors.
    """
    shapes = Shapes(named)
    if "layer1.0.conv1.weight" in shapes:
        return _resnet(shapes, given)
    if "patch_embed.proj.weight" not in shapes:
        raise UserError("the checkpoint has no patch_embed.proj.weight: it is no ViT, BEiT or Swin, nor a ResNet")
    if any(name.startswith("layers.") for name in shapes):
        return _swin(shapes, file, given)
    if "blocks.0.attn.q_bias" in shapes:
        return _beit(shapes, given, heads)
    return _vit(shapes, given, heads)


def _vit(shapes: Shapes, given: Given, published: Mapping[int, int]) -> dict[str, Any]:
    width, _, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    depth = blocks(shapes, "blocks")
    heads = _heads(width, given, published)
    registers = shapes.of("reg_token", 3)[1] if "reg_token" in shapes else 0
    positions = shapes.of("pos_embed", 3)[1]
    prefix = 0 if registers else 1
    img_size = _grid(positions - prefix) * patch
    args = _if(registers, {"reg_tokens": registers, "no_embed_class": True})
    args |= _if("blocks.0.attn.qkv.bias" not in shapes, {"qkv_bias": False})
    scaled = "blocks.0.ls1.gamma" in shapes
    hidden = shapes.of("blocks.0.mlp.fc1.weight", 2)[0]
    if hidden == 2 * shapes.of("blocks.0.mlp.fc2.weight", 2)[1]:  # SwiGLU: two halves, one the other's gate
        args |= _mlp(shapes, width, "blocks.0", usual=2.66667 * 2) | _if(not scaled, {"init_values": None})
        own = _differing(GIANT, width, depth, heads, patch, 14)
        return {"name": "vit_giant_patch14_dinov2", "img_size": img_size, **own} | _if(args, {"timm_args": args})
    args |= _mlp(shapes, width, "blocks.0") | _if(scaled, {"init_values": 1e-5})
    size = next((size for size, known in VITS.items() if known == (width, depth, heads)), None)
    exact = f"vit_{size}_patch{patch}_{img_size}"
    if exact in timm_names().get("ViT", []):
        return {"name": exact, "img_size": img_size} | _if(args, {"timm_args": args})
    size = min(VITS, key=lambda size: abs(VITS[size][0] - width))
    usual = 14 if size == "huge" else 16  # timm has no larger ones of 16
    own = _differing(VITS[size], width, depth, heads, patch, usual)
    return {"name": f"vit_{size}_patch{usual}_224", "img_size": img_size, **own} | _if(args, {"timm_args": args})


def _beit(shapes: Shapes, given: Given, published: Mapping[int, int]) -> dict[str, Any]:
    width, _, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    depth = blocks(shapes, "blocks")
    once, each = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"
    shared = shapes.of(once, 2) if once in shapes else None
    table = shared or (shapes.of(each, 2) if each in shapes else None)
    heads = table[1] if table else _heads(width, given, published)
    if "pos_embed" in shapes:
        grid = _grid(shapes.of("pos_embed", 3)[1] - 1)
    elif table:
        grid = (_grid(table[0] - 3) + 1) // 2  # (2g - 1)^2 offsets, and three of the class token
    else:
        raise UserError("the checkpoint has neither pos_embed nor relative_position_bias_table")
    args: dict[str, Any] = {
        "use_abs_pos_emb": "pos_embed" in shapes,
        "use_rel_pos_bias": table is not None and shared is None,
        "use_shared_rel_pos_bias": shared is not None,
        "init_values": 0.1 if "blocks.0.gamma_1" in shapes else 0,
    }
    args |= _mlp(shapes, width, "blocks.0")
    size = "large" if (width, depth, heads) == VITS["large"] else "base"
    own = _differing(VITS[size], width, depth, heads, patch)
    return {"name": f"beit_{size}_patch16_224", "img_size": grid * patch, **own, "timm_args": args}


def _swin(shapes: Shapes, file: Mapping[str, tuple[int, ...]], given: Given) -> dict[str, Any]:
    width, _, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    stages = blocks(shapes, "layers")
    depths = [blocks(shapes, f"layers.{i}.blocks") for i in range(stages)]
    tables = [shapes.of(f"layers.{i}.blocks.0.attn.relative_position_bias_table", 2) for i in range(stages)]
    heads = [table[1] for table in tables]
    window = (_grid(tables[0][0]) + 1) // 2
    args = _mlp(shapes, width, "layers.0.blocks.0") | _if(window != 7, {"window_size": window})
    size = next((size for size, known in SWINS.items() if known == (width, depths, heads)), None)
    if size is None:
        size = min(SWINS, key=lambda size: abs(SWINS[size][0] - width))
        args |= {"depths": depths, "num_heads": heads}
    own = _if(width != SWINS[size][0], {"width": width}) | _if(patch != 4, {"patch_size": patch})
    positions = shapes.of("absolute_pos_embed", 3) if "absolute_pos_embed" in shapes else None
    own |= _if(positions, {"absolute_positions": True})
    img_size = _grid(positions[1]) * patch if positions else given.img_size or _swin_size(file, window, patch)
    return {"name": f"swin_{size}_patch4_window7_224", "img_size": img_size, **own} | _if(args, {"timm_args": args})


def _swin_size(file: Mapping[str, tuple[int, ...]], window: int, patch: int) -> int:
    """Pixels of the input, from the mask of the first shifted windows, of which there is a row for each window."""
    masks = [shape for name, shape in file.items() if name.endswith("layers.0.blocks.1.attn_mask")]
    if masks:
        return _grid(masks[0][0]) * window * patch
    if any(name.endswith("relative_position_index") for name in file):
        return window * patch  # with its buffers saved, and none shifted: a single window
    raise UserError("the checkpoint does not say the size of its images: give --img-size N")


def _resnet(shapes: Shapes, given: Given) -> dict[str, Any]:
    depths = tuple(blocks(shapes, f"layer{i}") for i in range(1, 5))
    name = RESNETS.get(("layer1.0.conv3.weight" in shapes, depths))
    if name is None:
        raise UserError(f"a ResNet of {depths} blocks is none of {', '.join(RESNETS.values())}")
    factor = shapes.of("layer1.0.conv1.weight", 4)[0] // 64
    small = shapes.of("conv1.weight", 4)[2] == 3
    options = {"name": name, "img_size": given.img_size or (32 if small else 224), "small_stem": small}
    return options | _if(factor != 1, {"width": factor})


def _heads(width: int, given: Given, published: Mapping[int, int]) -> int:
    heads = given.heads or given.count("num_heads", "MODEL.VIT.NUM_HEADS") or published.get(width)
    if heads is None:
        raise UserError(f"the shapes of a ViT {width} wide do not say how many attention heads it has: give --heads N")
    if width % heads:
        raise UserError(f"--heads {heads} does not divide the width {width}")
    return heads


def _mlp(shapes: Shapes, width: int, block: str, usual: float = 4) -> dict[str, Any]:
    """The ratio of widths, where it is not the usual one; timm multiplies and rounds down."""
    hidden = shapes.of(f"{block}.mlp.fc1.weight", 2)[0]
    ratio = hidden / width if int(hidden / width * width) == hidden else (hidden + 0.5) / width
    return _if(hidden != int(usual * width), {"mlp_ratio": ratio})


def _grid(area: int) -> int:
    side = math.isqrt(max(area, 0))
    if side * side != area or not side:
        raise UserError(f"{area} positions make no square: only networks of square images fit here")
    return side


def _differing(
    usual: tuple[int, int, int], width: int, depth: int, heads: int, patch: int, usual_patch: int = 16
) -> dict[str, Any]:
    """Options that are not the named network's."""
    own = {"width": (width, usual[0]), "depth": (depth, usual[1]), "num_heads": (heads, usual[2])}
    own["patch_size"] = patch, usual_patch
    return {name: value for name, (value, known) in own.items() if value != known}


def _if(condition: object, options: dict[str, Any]) -> dict[str, Any]:
    return options if condition else {}
