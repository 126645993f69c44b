"""A backbone's files: backbone.safetensors, and backbone.json with what `timm.create_model` needs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.module_backbone import ModuleBackbone
from ssl_bench.models.timm_arguments import blocks_claimed
from ssl_bench.models.weights_files import read_json, read_tensors, shapes_of, tensor_shapes, write_weights
from ssl_bench.records.files import write_json
from ssl_bench.records.run import BackboneRecord


def write_backbone(
    folder: Path, backbone: Backbone | ModuleBackbone, mean: Sequence[float], std: Sequence[float]
) -> None:
    """backbone.safetensors, and backbone.json with what `timm.create_model` needs to hold those weights."""
    write_weights(folder / "backbone.safetensors", backbone.model.state_dict())
    size = backbone.img_size
    cfg = {
        "input_size": [backbone.channels, size, size],
        "mean": list(mean),
        "std": list(std),
        "interpolation": "bicubic",
    }
    write_json(folder / "backbone.json", {**backbone.spec, "num_classes": 0, "pretrained_cfg": cfg})


def load_backbone(folder: Path, branch: str = "") -> tuple[Backbone, tuple[float, ...], tuple[float, ...]]:
    """The backbone of a run folder, and the mean and deviation its input is normalised with.

    Args:
        folder: Of the run.
        branch: Another than the default one: student or teacher.

    Raises:
        UserError: The folder has none, its file does not fit, or it describes another network than its file holds.
    """
    described, file = folder / "backbone.json", f"backbone-{branch}.safetensors" if branch else "backbone.safetensors"
    try:
        spec = read_json(described, folder)
        if "class" in spec:
            text = f"{folder} holds a {spec['class']}, which only code can build"
            raise UserError(f"{text}: give the module itself to ssl_bench.evaluate")
        options = BackboneOptions(**spec["options"])
        mean, std = (_statistic(spec["pretrained_cfg"][name], options.channels or 3) for name in ("mean", "std"))
        shapes = tensor_shapes(folder / file, folder)
        weights = read_tensors(folder / file, folder)
    except FileNotFoundError as error:
        missing = Path(error.filename or "backbone.safetensors").name
        raise UserError(f"{folder} has no {missing}: finish its run: ssl-bench fit -c {folder}/config.yaml") from None
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{folder}: the backbone is damaged ({reason[:200]})"
        again = f"or remove {file}, and `ssl-bench fit -c {folder}/config.yaml` writes both from the last checkpoint"
        raise UserError(f"{text}: bring {file} and backbone.json back, {again}") from None
    try:  # before anything of the described size is made
        fits = blocks_claimed(options) <= len(shapes)
        fits = fits and shapes_of(lambda: Backbone(options).model, str(described)) == shapes
    except UserError as error:
        raise UserError(f"{described}: {error}") from None
    except Exception as error:  # whatever timm and torch say of numbers that make no network
        raise UserError(f"{described} describes no network ({type(error).__name__})") from None
    if not fits:
        raise UserError(f"{folder}: {file} does not fit the network in backbone.json")
    backbone = Backbone(options)
    with torch.no_grad():
        backbone.model.load_state_dict(weights)
    return backbone, mean, std


def _statistic(values: Any, channels: int) -> tuple[float, ...]:
    """A mean or a deviation of three channels."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{values} is no mean or deviation of {'three' if channels == 3 else channels} channels")
    return numbers


def describe_backbone(name: str, backbone: Backbone | ModuleBackbone) -> BackboneRecord:
    """The record of an architecture, with the cost of one image's forward."""
    image = torch.zeros(1, backbone.channels, backbone.img_size, backbone.img_size)
    image = image.to(next((p.device for p in backbone.parameters()), image.device))
    training = backbone.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(image)
    backbone.train(training)
    tokens = 0
    if isinstance(backbone, Backbone) and (backbone.is_vit or backbone.is_swin):
        tokens = backbone.grid**2 + backbone.prefix
    ours = ("small_stem", "selective_kernel")  # that timm does not know
    changed = {option: value for option in ours if (value := getattr(backbone.options, option)) is not None}
    args = {**backbone.args, **changed, "img_size": backbone.img_size}
    params = sum(p.numel() for p in backbone.parameters())
    return BackboneRecord(name, json.loads(json.dumps(args)), params, counter.get_total_flops() / 1e9, tokens)
