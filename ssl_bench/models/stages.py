"""The parts of any network from its input to its output, which layer-wise rates and partial fine-tuning count by."""

from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch import nn

from ssl_bench.models.backbone import Backbone

LISTS = (nn.Sequential, nn.ModuleList)


def blocks(backbone: Backbone) -> list[nn.Module]:
    """The residual blocks of a ViT, Swin or ResNet, the first first."""
    network: Any = backbone.model
    if backbone.is_swin:
        return [block for stage in network.layers for block in stage.blocks]
    if backbone.is_resnet:
        return [block for number in (1, 2, 3, 4) for block in getattr(network, f"layer{number}")]
    return list(network.blocks)


def depth_of(backbone: Backbone) -> int:
    """L, the parts that can be tuned from the output down: blocks, or stages of a network known by its features."""
    return 1 + max(stages(backbone.model).values()) if backbone.is_pooled else len(blocks(backbone))


def layers(backbone: Backbone) -> tuple[dict[str, int], int]:
    """Layer of each parameter (`model.blocks.0.norm1.weight`), and that of a head on top, which is the largest.

    0 is what makes tokens or the first map: patch embedding, positions, class token, a ResNet's stem. i is the i-th
    block, counted through a Swin's stages, whose merging of patches belongs to the block before it, or a ResNet's stage
    i, or a stage of `stages`. All else is the head's (MAE `util/lr_decay.py`, SimMIM `optimizer.py`). Unlike here,
    SimMIM's code gives a Swin's absolute positions the head's rate: they are in none of its rules.
    """
    network: Any = backbone.model
    if backbone.is_pooled:
        return {f"model.{name}": stage for name, stage in stages(network).items()}, depth_of(backbone)
    top = (4 if backbone.is_resnet else len(blocks(backbone))) + 1
    depths = [len(stage.blocks) for stage in network.layers] if backbone.is_swin else []
    names = [name for name, _ in backbone.named_parameters()]
    return {name: _layer(name.removeprefix("model."), top, depths) for name in names}, top


def _layer(name: str, top: int, depths: list[int]) -> int:
    part, *rest = name.split(".")
    tokens = ("cls_token", "reg_token", "mask_token", "pos_embed", "absolute_pos_embed", "patch_embed", "norm_pre")
    if part in (*tokens, "rope", "conv1", "bn1"):
        return 0
    if part == "blocks":
        return int(rest[0]) + 1
    if part == "layers":  # timm's stage begins with the merging that ends the stage before in the papers' code
        before = sum(depths[: int(rest[0])])
        return before + int(rest[2]) + 1 if rest[1] == "blocks" else before
    return int(part.removeprefix("layer")) if part.removeprefix("layer").isdigit() else top


def stages(model: nn.Module) -> dict[str, int]:
    """Name of each parameter -> its stage, 0 for the stem.

    timm's grouping (`group_matcher`, coarse: a stage of a convolutional network, a block of one with equal blocks); of
    a network that has none, its children in their order, those of lists one by one. What holds nothing but norms and
    biases belongs to the stage before it.
    """
    found = _grouped(model) or _children(model)
    weighty = {found[name] for name, parameter in model.named_parameters() if parameter.ndim > 1}
    numbers: dict[int, int] = {}
    for group in sorted(set(found.values())):
        numbers[group] = max(0, sum(1 for each in weighty if each <= group) - 1)
    return {name: numbers[group] for name, group in found.items()}


def _grouped(model: nn.Module) -> dict[str, int] | None:
    if not hasattr(model, "group_matcher"):
        return None
    matcher: Any = model.group_matcher
    names = group_parameters(model, matcher(coarse=True), reverse=True)
    own = {name for name, _ in model.named_parameters()}
    return {name: int(group) for name, group in names.items()} if own == set(names) else None


def _children(model: nn.Module) -> dict[str, int]:
    found = {name: 0 for name, _ in model.named_parameters(recurse=False)}
    for number, (prefix, child) in enumerate(_parts(model, "")):
        found |= {f"{prefix}.{name}": number for name, _ in child.named_parameters()}
    return found


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Children with parameters, lists taken apart."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, LISTS):
            yield from _parts(child, path)
        elif next(child.parameters(), None) is not None:
            yield path, child
