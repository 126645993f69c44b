"""A backbone's files: backbone.safetensors, and backbone.json with what `timm.create_model` needs."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.weights_file import read_weights, write_weights
from ssl_bench.records.files import write_json
from ssl_bench.records.run import BackboneRecord


def write_backbone(folder: Path, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
    """backbone.safetensors, and backbone.json with what `timm.create_model` needs to hold those weights."""
    write_weights(folder / "backbone.safetensors", backbone.model.state_dict())
    size = backbone.img_size
    cfg = {"input_size": [3, size, size], "mean": list(mean), "std": list(std), "interpolation": "bicubic"}
    write_json(folder / "backbone.json", {**backbone.spec, "num_classes": 0, "pretrained_cfg": cfg})


def load_backbone(folder: Path, branch: str = "") -> tuple[Backbone, tuple[float, ...], tuple[float, ...]]:
    """The backbone of a run folder, and the mean and deviation its input is normalised with.

    Args:
        folder: Of the run.
        branch: Another than the one that speaks for the method: student or teacher.

    Raises:
        UserError: The folder has none, or its file does not fit.
    """
    file = f"backbone-{branch}.safetensors" if branch else "backbone.safetensors"
    try:
        spec = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
        weights = read_weights(folder / file)
    except FileNotFoundError as error:
        missing = Path(error.filename or "backbone.safetensors").name
        raise UserError(f"{folder} has no {missing}: finish its run: ssl-bench fit -c {folder}/config.yaml") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{folder}: the backbone is damaged ({reason[:200]})"
        raise UserError(f"{text}: bring {file} and backbone.json back, or train again in another --runs") from None
    backbone = Backbone(BackboneOptions(**spec["options"]))
    own = backbone.model.state_dict()
    if own.keys() != weights.keys() or any(own[k].shape != weights[k].shape for k in own):
        raise UserError(f"{folder}: {file} does not fit the network in backbone.json")
    with torch.no_grad():
        backbone.model.load_state_dict(weights)
    return backbone, tuple(spec["pretrained_cfg"]["mean"]), tuple(spec["pretrained_cfg"]["std"])


def describe_backbone(name: str, backbone: Backbone) -> BackboneRecord:
    """The record of an architecture, with the cost of one image's forward."""
    image = torch.zeros(1, 3, backbone.img_size, backbone.img_size)
    training = backbone.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(image)
    backbone.train(training)
    tokens = backbone.grid**2 + backbone.prefix if backbone.is_vit or backbone.is_swin else 0
    ours = ("small_stem", "selective_kernel")  # that timm does not know
    changed = {option: value for option in ours if (value := getattr(backbone.options, option)) is not None}
    args = {**backbone.args, **changed, "img_size": backbone.img_size}
    params = sum(p.numel() for p in backbone.parameters())
    return BackboneRecord(name, json.loads(json.dumps(args)), params, counter.get_total_flops() / 1e9, tokens)
