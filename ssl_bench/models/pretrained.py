"""Weights that a network starts from: timm's, those of a hub or folder, or a file's; fitted to the network here.

Positions are resampled to another grid, a patch embedding to another patch size, a first convolution to another number
of channels; every such step is told. Parameters that no weight is there for are an error.

Shapes: P prefix tokens, N patches, D features.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models import adapt_input_conv
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.timm_arguments import FIXED, family_of
from ssl_bench.models.weights_files import checksum

HUB, FOLDER = "hf-hub:", "local-dir:"
CLASSIFIER = re.compile(r"(?:head|head_dist|fc|classifier|last_linear)(?:\.\w+)*")
OURS = {"patch_size": "patch_size", "embed_dim": "width", "depth": "depth", "num_heads": "num_heads"}


@dataclass(frozen=True)
class Weights:
    """A network's weights, as others have them.

    Args:
        source: Where they are from.
        tensors: By timm's names, or by those of the user's own class.
        mean: That their network's input has subtracted, three numbers; None where it is not known.
        std: That it is divided by, likewise.
        img_size: Pixels of the images that it was made for, likewise.
    """

    source: str
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    img_size: int | None = None


@dataclass(frozen=True)
class Start:
    """What a network has begun with.

    Args:
        source: Where its weights are from.
        digest: sha256 of them as they came.
        adapted: What was made to fit, a line each.
    """

    source: str
    digest: str
    adapted: tuple[str, ...] = field(default=())


def is_pretrained(options: BackboneOptions) -> bool:
    """Whether timm's, a hub's or a folder's weights are asked for; a hub's name asks for them unless told otherwise."""
    return options.pretrained if options.pretrained is not None else options.name.startswith((HUB, FOLDER))


def network_of(options: BackboneOptions, image_size: int | None = None, channels: int = 3) -> BackboneOptions:
    """Options of the network alone: what a hub or a folder says of it in place of its name, no weights.

    Args:
        options: As given.
        channels: Of the images; a network says nothing of three.
        image_size: Of the images; rounded up to whole patches where a network with weights gets no size of its own.

    Raises:
        UserError: The hub or folder cannot be read, or has no network of timm's.
    """
    starts = is_pretrained(options) or options.weights is not None
    found = replace(
        options, pretrained=None, weights=None, channels=options.channels or (channels if channels != 3 else None)
    )
    if options.name.startswith((HUB, FOLDER)):
        found = _described(found)
    elif starts and "." in options.name and timm.is_model(options.name.partition(".")[0]):
        found = replace(found, name=options.name.partition(".")[0])
    if is_pretrained(options) and options.small_stem is None and timm.is_model(found.name):
        resnet = family_of(found.name) == "resnet"  # whose published weights have the stem of large images
        found = replace(found, small_stem=False if resnet else None)
    if options.img_size is not None or image_size is None:
        return replace(found, img_size=options.img_size)
    if starts:
        with torch.device("meta"):
            probe = Backbone(replace(found, img_size=None))
        patch = probe.patch_size if probe.is_vit else 1
        image_size = math.ceil(image_size / patch) * patch
    return replace(found, img_size=image_size)


def _described(options: BackboneOptions) -> BackboneOptions:
    kind, _, place = options.name.partition(":")
    load = load_model_config_from_hf if f"{kind}:" == HUB else load_model_config_from_path
    try:
        _, name, args = load(place)
    except Exception as error:
        raise UserError(f"--backbone {options.name}: {_brief(error)}") from None
    kept = {
        name: value
        for name, value in dict(args or {}).items()
        if name not in FIXED | {"global_pool", "drop_path_rate", "img_size"}
        and (name not in OURS or getattr(options, OURS[name]) is None)  # the user's word is above the folder's
    }
    return replace(options, name=str(name), timm_args={**kept, **(options.timm_args or {})} or None)


def timm_weights(name: str) -> Weights:
    """The weights that timm has for a name, or those of hf-hub:ORG/NAME or local-dir:PATH.

    Raises:
        UserError: There are none, or they cannot be fetched.
    """
    try:
        donor: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        known = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")[:4]) if ":" not in name else ""
        choice = f"; timm has weights for {known}" if known else ""
        raise UserError(
            f"no weights for --backbone {name}: {_brief(error)}{choice}; or --backbone.weights FILE"
        ) from None
    cfg = donor.pretrained_cfg
    tag = f".{cfg['tag']}" if cfg.get("tag") and "." not in name and ":" not in name else ""
    mean, std = (tuple(map(float, cfg[key])) for key in ("mean", "std"))
    return Weights(f"timm:{name}{tag}", donor.state_dict(), mean, std, int(cfg["input_size"][-1]))


def start(backbone: Backbone, weights: Weights) -> Start:
    """Load weights into a network, fitted to it.

    Raises:
        UserError: Some of its parameters have none, or of another shape.
    """
    model: Any = backbone.model
    own: dict[str, Tensor] = model.state_dict()
    learned = {name for name, _ in model.named_parameters()} | {name for name in own if "running_" in name}
    given, adapted = dict(weights.tensors), []
    if "norm.weight" in own and "norm.weight" not in given and "fc_norm.weight" in given:
        given = {re.sub(r"^fc_norm\.", "norm.", name): tensor for name, tensor in given.items()}
        adapted.append("the norm of pooled features is that of the tokens")
    if lacking := [name for name in own if name in learned and name not in given]:
        raise UserError(f"{weights.source} has no {_some(lacking)} of {backbone.options.name}: is it of this network?")
    fitted = dict(own)  # what is computed from sizes stays as it is here
    for name in own:
        if name in given and (name in learned or given[name].shape == own[name].shape):
            fitted[name], line = _fitted(name, given[name], own[name], backbone)
            adapted += [line] if line else []
    extra = [name for name in given if name not in own]
    if unused := [name for name in extra if not CLASSIFIER.fullmatch(name)]:
        adapted.append(f"{_some(unused)} left out")
    if len(extra) > len(unused):
        adapted.append("its classifier left out")
    with torch.no_grad():
        model.load_state_dict(fitted)
    digest = checksum({name: tensor.cpu() for name, tensor in weights.tensors.items()})
    return Start(weights.source, digest, tuple(dict.fromkeys(adapted)))


def _fitted(name: str, given: Tensor, own: Tensor, backbone: Backbone) -> tuple[Tensor, str]:
    """A weight in the shape that it has here, and a line on what was done; the line is empty if nothing was."""
    there, here = tuple(given.shape), tuple(own.shape)
    if there == here:
        return given, ""
    found = None
    if name == "pos_embed" and len(there) == len(here) == 3 and there[2] == here[2]:
        found = _positions(given, here[1] - backbone.grid**2, backbone.grid)
    elif name.endswith("relative_position_bias_table") and there[1] == here[1]:
        window = (math.isqrt(here[0]) + 1) // 2
        resized = resize_rel_pos_bias_table_simple(given.float(), (window, window), here)
        found = resized, f"relative positions {there[0]} -> {here[0]}"
    elif name == _first(backbone.model) and there[0] == here[0]:
        found = _convolution(given, here)
    if found is not None and found[0].shape == own.shape:
        return found
    raise UserError(
        f"{name} is {there} in the weights and {here} in {backbone.options.name}: leave options of --backbone that"
        " change it (width, depth, small_stem) as its weights have them"
    )


def _positions(given: Tensor, prefix: int, grid: int) -> tuple[Tensor, str] | None:
    """(1, P + N, D) positions of another grid, the prefix's unchanged."""
    side = math.isqrt(max(0, given.shape[1] - prefix))
    if prefix < 0 or side * side + prefix != given.shape[1]:
        return None
    resampled = resample_abs_pos_embed(given.float(), [grid, grid], [side, side], prefix)
    return resampled, f"positions {side} x {side} -> {grid} x {grid}"


def _convolution(given: Tensor, here: tuple[int, ...]) -> tuple[Tensor, str] | None:
    """(D, C, p, p) of the first convolution, for other channels and patches of another size."""
    fitted, lines = given, []
    if given.shape[1] != here[1]:
        fitted = _channels(fitted, here[1])
        lines.append(f"channels {given.shape[1]} -> {here[1]}")
    if given.shape[2:] != here[2:]:
        if here[2] % 2 or given.shape[2] % 2:  # a stem of 3 x 3 for 7 x 7 is another network
            return None
        fitted = resample_patch_embed(fitted.float(), list(here[2:]))
        lines.append(f"patches of {given.shape[2]} -> {here[2]} pixels")
    return fitted, ", ".join(lines)


def _channels(weight: Tensor, channels: int) -> Tensor:
    """(D, C, h, w) of one channel or of RGB for another number of channels, as timm does."""
    if weight.shape[1] != 3:
        weight = weight.sum(1, keepdim=True).expand(-1, 3, -1, -1) / 3
    fitted: Tensor = adapt_input_conv(channels, weight)
    return fitted


def _first(model: nn.Module) -> str:
    """Name of the first convolution's weight."""
    return next((f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), "")


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
