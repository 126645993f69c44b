"""Where the last block of a ViT looks, head by head.

Shapes: B images, h heads, P prefix tokens and N patches, T = P + N tokens, E features of a head.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.eva import Eva
from torch import Tensor

from ssl_bench.figures.drawing import Cell, folded, to_image
from ssl_bench.figures.opened_run import LeftOut, OpenedRun
from ssl_bench.figures.picture import Picture
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime.precision import full_precision

WIDTH, LEAST, SIDE = 1000, 40, 96  # pixels: of a row, and of a map at least and at most
LEVELS = 48  # of shade: more cannot be told apart, and cost bytes
# Dark to light, evenly in lightness, so that it reads in gray as well.
SHADES = ((11, 9, 36), (61, 15, 113), (121, 40, 130), (184, 55, 121), (237, 105, 94), (254, 176, 120), (252, 253, 191))


def draw(run: OpenedRun, count: int) -> Picture:
    """Some test images, each with the map of every head and their mean."""
    network = run.network.network
    if not isinstance(network, Backbone):
        raise LeftOut("raw pixels have no attention")
    if network.is_swin:
        raise LeftOut("a Swin attends within windows: no token looks at the whole image")
    if network.is_resnet:
        raise LeftOut("a ResNet has no attention")
    if not network.is_vit or isinstance(network.model, Eva):
        raise LeftOut(f"{network.options.name} does not say what its tokens look at")
    images = run.seen(run.shown, run.chosen(count), network.img_size)
    with torch.no_grad(), full_precision():
        maps = over_patches(network, run.network.normalized(images))  # (B, h, g, g)
    heads = maps.shape[1]
    side = min(SIDE, max(LEAST, WIDTH // (heads + 2)))
    shown = torch.cat([maps, maps.mean(1, keepdim=True)], 1)
    rows = []
    for image, each in zip(images, shown, strict=True):
        whole = to_image(image, side)
        rows.append([Cell(whole), *(Cell(heat(one, whole.width)) for one in each)])
    short = side < 60
    header = ["image", *(f"{n}" if short else f"head {n}" for n in range(1, heads + 1)), "mean"]
    return Picture(folded(header, rows, breaks=(1, heads + 1)), _caption(run, network, maps), _alt(heads))


def _caption(run: OpenedRun, network: Backbone, maps: Tensor) -> str:
    asks = "class token" if network.model.cls_token is not None else "patches' mean query"
    whose = f" of the {run.info.branch}" if run.info.branch in ("student", "teacher") else ""
    share = float(maps.sum((2, 3)).mean())
    return (
        f"Attention of the {asks} in the last block{whose} ({run.title}) to the patches of {len(maps)} "
        f"{run.images_shown()}, for each of {maps.shape[1]} heads and on average, enlarged to the image. "
        f"Light is much; each map is scaled to its own largest value. "
        f"On average {share:.0%} of the attention falls on patches, the rest on other tokens."
    )


def _alt(heads: int) -> str:
    return f"A row for each image: the image, {heads} maps of attention, one for each head, and their mean."


def over_patches(network: Backbone, images: Tensor) -> Tensor:
    """(B, 3, s, s) normalised -> (B, h, g, g) attention to patches: the class token's, or the mean query's."""
    asked, bias, keys = _last_block(network, images)
    first = network.prefix
    if network.model.cls_token is not None:
        logits = asked[:, :, :1] @ keys.transpose(2, 3) + bias[:, :, :1]  # (B, h, 1, T)
    else:  # no token stands for the image: what the mean of its patches would ask
        logits = asked[:, :, first:].mean(2, keepdim=True) @ keys.transpose(2, 3)
        logits = logits + bias[:, :, first:].mean(2, keepdim=True)
    return logits.softmax(-1)[:, :, 0, first:].reshape(*logits.shape[:2], network.grid, network.grid)


def attention(network: Backbone, images: Tensor) -> Tensor:
    """(B, 3, s, s) normalised -> (B, h, T, T), the whole attention of the last block; each row sums to 1."""
    asked, bias, keys = _last_block(network, images)
    return (asked @ keys.transpose(2, 3) + bias).softmax(-1)


def _last_block(network: Backbone, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, h, T, E) scaled queries, (1, h or 1, T or 1, T or 1) what positions add, (B, h, T, E) keys."""
    model: Any = network.model
    layer = model.blocks[-1].attn
    caught: dict[str, Any] = {}

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.update(kwargs, tokens=args[0])

    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        network.tokens(images)
    finally:
        handle.remove()
    tokens = caught["tokens"]  # (B, T, D)
    bias = layer.qkv.bias
    if getattr(layer, "q_bias", None) is not None:  # a BEiT's, whose keys have none
        bias = torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
    queries, keys, _ = F.linear(tokens, layer.qkv.weight, bias).unflatten(2, (3, layer.num_heads, -1)).unbind(2)
    queries, keys = queries.transpose(1, 2), keys.transpose(1, 2)  # (B, h, T, E)
    if hasattr(layer, "q_norm"):
        queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    added = tokens.new_zeros(1, 1, 1, 1)
    if getattr(layer, "relative_position_bias_table", None) is not None:
        added = added + layer._get_rel_pos_bias()
    if caught.get("shared_rel_pos_bias") is not None:
        added = added + caught["shared_rel_pos_bias"]
    count = tokens.shape[1]
    return queries * queries.shape[3] ** -0.5, added.expand(1, -1, count, count), keys


def heat(values: Tensor, side: int) -> Image.Image:
    """A (g, g) map of values of 0 and more, in shades and enlarged smoothly."""
    scaled = (values / values.max().clamp(min=1e-12)).cpu().numpy().astype(np.float32)
    large = np.asarray(Image.fromarray(scaled).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    large = np.round(large * LEVELS) / LEVELS
    places = np.linspace(0, 1, len(SHADES))
    channels = [np.interp(large, places, [shade[c] for shade in SHADES]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))
