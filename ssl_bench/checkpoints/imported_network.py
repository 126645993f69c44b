"""Which network a checkpoint holds, with all that the files of its repository leave unsaid."""

import math
from dataclasses import replace
from typing import Any

import timm
import torch

from ssl_bench.checkpoints.checkpoint_file import CheckpointFile
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.checkpoints.official.layout import IMAGENET, Given, Kind, layout
from ssl_bench.checkpoints.official.networks import network
from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone


def imported_network(asked: Import, file: CheckpointFile, kind: Kind, encoder: Shapes, given: Given) -> BackboneOptions:
    """Options of the network that has these shapes.

    Args:
        asked: The command.
        file: The checkpoint.
        kind: Of file.
        encoder: Shapes by timm's names.
        given: What shapes cannot say.

    Raises:
        UserError: Shapes leave it open, no network has them, or the user says otherwise.
    """
    try:
        options = _network(asked, file, encoder, given)
    except UserError:
        raise
    except Exception as error:  # a configuration is whatever its writer made it
        raise UserError(f"{asked.file}: its config.json describes no network ({type(error).__name__})") from None
    resampled = kind.interpolation or layout(asked.format).interpolation
    own = resampled(encoder) if "pos_embed" in encoder else {}
    for name in ("interpolate_offset", "interpolate_antialias"):
        if (value := getattr(asked, name)) is not None:
            if not own and "pos_embed" not in encoder:
                raise UserError(f"--{name.replace('_', '-')}: {asked.file} holds no positions that could be resampled")
            own[name] = value
    return replace(options, **own)


def _network(asked: Import, file: CheckpointFile, encoder: Shapes, given: Given) -> BackboneOptions:
    if file.config:
        args = dict(file.config.get("model_args") or {})
        ours = {"img_size": "img_size", "patch_size": "patch_size", "embed_dim": "width"}
        options = {ours[name]: args.pop(name) for name in list(args) if name in ours}
        pooling = {"fc_norm", "use_fc_norm", "final_norm", "num_classes", "drop_path_rate"}
        if not str(file.config["architecture"]).startswith("vit"):
            pooling.add("global_pool")
        rest = {name: value for name, value in args.items() if name not in pooling}
        return _sized(str(file.config["architecture"]), encoder, given, options, rest)
    if asked.backbone:
        return _sized(asked.backbone, encoder, given, {}, {})
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    return BackboneOptions(**network(encoder, shapes, given, layout(asked.format).heads))


def _sized(name: str, encoder: Shapes, given: Given, options: dict[str, Any], args: dict[str, Any]) -> BackboneOptions:
    """A network by its name, at the size of the checkpoint's positions, or its own."""
    with torch.device("meta"):
        native = Backbone(BackboneOptions(name, **options, timm_args=args or None))
    size = given.img_size or native.img_size
    positions: Any = native.model.pos_embed if native.is_vit else None
    if "pos_embed" in encoder and positions is not None:
        prefix = positions.shape[1] - native.grid**2
        size = math.isqrt(max(0, encoder.of("pos_embed", 3)[1] - prefix)) * native.patch_size
    small: dict[str, Any] = {}
    if native.is_resnet:
        small["small_stem"] = "conv1.weight" in encoder and encoder.of("conv1.weight", 4)[2] == 3
    return BackboneOptions(name, **{**options, "img_size": size}, **small, timm_args=args or None)


def check_given(asked: Import, backbone: Backbone) -> None:
    """That the file agrees with what the user says of the network.

    Raises:
        UserError: It does not.
    """
    network: Any = backbone.model
    heads = network.blocks[0].attn.num_heads if backbone.is_vit else None
    if asked.heads not in (None, heads):
        known = f"{backbone.options.name} here has {heads}" if heads else "it is for ViTs"
        raise UserError(f"--heads {asked.heads}: {known}: leave it out")
    if asked.img_size not in (None, backbone.img_size):
        raise UserError(f"--img-size {asked.img_size}: the file is for {backbone.img_size} px: leave it out")


def statistics(asked: Import, file: CheckpointFile) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the network's input is normalised with.

    Raises:
        UserError: config.json has others than three numbers.
    """
    cfg = file.config.get("pretrained_cfg")
    cfg = dict(cfg) if isinstance(cfg, dict) else {}
    if asked.backbone:
        known = timm.get_pretrained_cfg(asked.backbone)
        cfg = {"mean": known.mean, "std": known.std} if known else {}
    found = []
    for name, usual in zip(("mean", "std"), IMAGENET, strict=True):
        values = cfg.get(name, usual)
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3 or not all(map(math.isfinite, values)):
            raise UserError(f"{asked.file}: config.json has a {name} of {str(values)[:40]}: it must be three numbers")
        found.append(tuple(map(float, values)))
    return found[0], found[1]
