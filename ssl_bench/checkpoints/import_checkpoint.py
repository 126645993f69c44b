"""`ssl-bench import`: a checkpoint of an official repository becomes a run folder like any other.

Every name in the file is loaded, renamed or left with a reason; every name that is missing here has a reason, too.
Anything else is an error.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import ssl_bench
from ssl_bench.checkpoints.checkpoint_file import CheckpointFile, read_checkpoint
from ssl_bench.checkpoints.official.layout import ENTRIES, IMAGENET, Given, Kind, kind_of, layout, matching, plain
from ssl_bench.checkpoints.official.networks import network
from ssl_bench.config import registry
from ssl_bench.config.fit_config import dump, parse_fit
from ssl_bench.config.layers import read_yaml
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import describe_backbone, write_backbone
from ssl_bench.pretraining.checkpoint import write_backbones
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import main_branch
from ssl_bench.records.files import replacing, write_json, write_text, writing_folder
from ssl_bench.records.run import DataRecord, RunInfo, write_run
from ssl_bench.runtime.environment import describe


@dataclass(frozen=True)
class Import:
    """What to import, as the user said it.

    Args:
        file: The checkpoint; for the format timm also a folder with config.json.
        format: Whose layout.
        out: The run folder that is made.
        backbone: timm's name of the network, for the format timm.
        heads: Attention heads of the encoder.
        img_size: Pixels of its input.
        encoder_only: Leave what only pretraining needs.
        method: Options of the method, text.
        data: What it was pretrained on, in words.
        command: Arguments that do this again.
    """

    file: Path
    format: str
    out: Path
    backbone: str | None = None
    heads: int | None = None
    img_size: int | None = None
    encoder_only: bool = False
    method: Mapping[str, str] = field(default_factory=dict)
    data: str = "unknown"
    command: tuple[str, ...] = ()


@dataclass
class Report:
    """Where every name went.

    Args:
        loaded: Names that are the same here.
        renamed: Name in the file -> name here.
        unused: Name in the file -> reason.
        missing: Name here -> reason.
    """

    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def lines(self, verbose: bool = False) -> Iterator[str]:
        """A table of counts and reasons; with all names."""
        yield f"loaded  {len(self.loaded):5}"
        yield from (f"               {name}" for name in self.loaded if verbose)
        yield f"renamed {len(self.renamed):5}"
        yield from (f"               {old} -> {new}" for old, new in self.renamed.items() if verbose)
        for title, reasons in (("unused", self.unused), ("missing", self.missing)):
            yield f"{title:8}{len(reasons):5}"
            for reason, count in Counter(reasons.values()).items():
                names = [name for name, why in reasons.items() if why == reason]
                shown = len(names) if verbose else 1
                yield f"        {count:5}  {reason}: {names[0]}{', ...' if count > shown else ''}"
                yield from (f"               {name}" for name in names[1:shown])


@dataclass(frozen=True)
class Imported:
    """A run folder that was made of a checkpoint.

    Args:
        kind: Of checkpoint, in words.
        network: In words.
        report: Where its names went.
        whole: Whether pretraining can be continued.
    """

    kind: str
    network: str
    report: Report
    whole: bool


def import_checkpoint(asked: Import) -> Imported:
    """Make a run folder of a checkpoint.

    Raises:
        UserError: It cannot be read, is of another layout, or leaves something unexplained.
    """
    known = layout(asked.format)
    if asked.out.exists():
        raise UserError(f"-o {asked.out} exists: name a folder that does not")
    if asked.backbone and asked.format != "timm":
        raise UserError(f"--backbone is for --format timm: a checkpoint of {known.title} says which network it is")
    file = read_checkpoint(asked.file)
    kind = kind_of(asked.format, file.tensors, str(asked.file))
    whole = kind.method is not None and not asked.encoder_only
    if asked.method and not whole:
        raise UserError(f"--method.{next(iter(asked.method))}: of {asked.file} only the encoder is imported")
    report = Report(unused={name: ENTRIES.get(name, "no weights") for name in file.entries})
    state = _renamed(kind, file, report, whole)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    encoder = {n.removeprefix(kind.evaluated): s for n, s in shapes.items() if n.startswith(kind.evaluated)}
    args = dict(pair for name in ("args", "config") for pair in plain(file.entries.get(name)))
    given = Given(args, asked.heads, asked.img_size, {name: _parsed(text) for name, text in asked.method.items()})
    options = _network(asked, file, encoder, given)
    method = None
    if whole:
        assert kind.method is not None
        config = _configuration(kind.method, options, kind.options(shapes, given) | dict(given.method))
        method = _build(config)
        _fill(method, state, kind, report, asked.file)
        backbone = method.evaluated
    else:
        backbone = Backbone(options)
        config = {"method": {"name": known.method}, "backbone": asdict(options), "seed": 0}
        state = {name.removeprefix(kind.evaluated): tensor for name, tensor in state.items()}
        _fill(backbone.model, state, kind, report, asked.file)
    assert isinstance(backbone, Backbone)
    _check_given(asked, backbone)
    _write(asked, file, Written(backbone, method, config, report, kind.title, _statistics(asked, file)))
    parameters = sum(p.numel() for p in backbone.parameters())
    words = f"{options.name}, {backbone.img_size} px, {parameters:,} parameters"
    return Imported(f"{known.title}, {kind.title}", words, report, whole)


def _renamed(kind: Kind, file: CheckpointFile, report: Report, whole: bool) -> dict[str, Tensor]:
    """Tensors by their names here."""
    state: dict[str, Tensor] = {}
    unexplained = []
    for name, tensor in file.tensors.items():
        twin = re.sub(kind.tied[0], kind.tied[1], name) if re.fullmatch(kind.tied[0], name) else None
        rule = matching(kind.rules, name)
        if twin in file.tensors and torch.equal(tensor, file.tensors[twin]):
            report.unused[name] = "stored a second time: shared with another"
        elif rule is None:
            unexplained.append(name)
        elif rule.refused:
            raise UserError(f"{file.path}: {name}: {rule.reason}")
        elif not rule.to:
            report.unused[name] = rule.reason
        else:
            new = re.fullmatch(rule.pattern, name).expand(rule.to)  # type: ignore[union-attr]
            if not whole and not new.startswith(kind.evaluated):
                report.unused[name] = "of pretraining alone: the encoder was asked for"
            elif tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"{file.path}: {name} holds values that are no numbers: its run had diverged")
            else:
                state[new] = tensor
                if new in (name, kind.evaluated + name):
                    report.loaded.append(name)
                else:
                    report.renamed[name] = new
    if unexplained:
        raise UserError(f"{file.path}: nothing explains {_named(unexplained)}: is it of another version, or method?")
    return kind.prepare(state)


def _fill(module: nn.Module, state: dict[str, Tensor], kind: Kind, report: Report, file: Path) -> None:
    """Load a state that may lack only what its kind lacks."""
    own = module.state_dict()
    if extra := [name for name in state if name not in own]:
        raise UserError(f"{file}: the network here has no {_named(extra)}: is it of another version, or method?")
    for name in [name for name in own if name not in state]:
        rule = matching(kind.absent, name)
        if rule is not None:
            report.missing[name] = rule.reason
            source = re.fullmatch(rule.pattern, name).expand(rule.to) if rule.to else None  # type: ignore[union-attr]
            state[name] = state.get(source, own[name]) if source else own[name]
    if missing := [name for name in own if name not in state]:
        raise UserError(f"{file} lacks {_named(missing)}: is it whole, and of this method?")
    for name, tensor in state.items():
        if _without_ones(tensor) != _without_ones(own[name]):
            shapes = f"{tuple(tensor.shape)} in {file}, {tuple(own[name].shape)} here"
            raise UserError(f"{name} is {shapes}: do --heads, --img-size, --backbone or --method options fit?")
        state[name] = tensor.reshape(own[name].shape)
    with torch.no_grad():
        module.load_state_dict(state)


def _network(
    asked: Import, file: CheckpointFile, encoder: Mapping[str, tuple[int, ...]], given: Given
) -> BackboneOptions:
    """Options of the network that has these shapes."""
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


def _sized(
    name: str, encoder: Mapping[str, tuple[int, ...]], given: Given, options: dict[str, Any], args: dict[str, Any]
) -> BackboneOptions:
    """A network by its name, at the size of the checkpoint's positions, or its own."""
    with torch.device("meta"):
        native = Backbone(BackboneOptions(name, **options, timm_args=args or None))
    size = given.img_size or native.img_size
    positions: Any = native.model.pos_embed if native.is_vit else None
    if "pos_embed" in encoder and positions is not None:
        prefix = positions.shape[1] - native.grid**2
        size = math.isqrt(encoder["pos_embed"][1] - prefix) * native.patch_size
    stem = encoder.get("conv1.weight")
    small = {"small_stem": stem is not None and stem[2] == 3} if native.is_resnet else {}
    return BackboneOptions(name, **{**options, "img_size": size}, **small, timm_args=args or None)


def _configuration(method: str, options: BackboneOptions, chosen: dict[str, Any]) -> dict[str, Any]:
    """The published recipe, with the checkpoint's network and options."""
    published = dict(registry.recipes()).get(method)
    recipe = ["--recipe", method] if published else []
    network = {name: value for name, value in asdict(options).items() if value is not None and name != "name"}
    usual = read_yaml(published).get("backbone", {}) if published else {}
    if str(usual.get("name")).partition("_")[0] == options.name.partition("_")[0]:  # a ViT's is no Swin's
        network["drop_path"] = usual.get("drop_path", 0.0)
    flags = [f"--backbone.{name}={json.dumps(value)}" for name, value in network.items()]
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in chosen.items()}
    flags += [f"--method.{name}={text}" for name, text in texts.items()]
    return parse_fit(["--method", method, "--backbone", options.name, *recipe, *flags], {}).config


def _build(config: dict[str, Any]) -> Method:
    given = dict(config["method"])
    cls = registry.load(registry.find("methods", given.pop("name")))
    tuples = {name: tuple(value) for name, value in config["optim"].items() if isinstance(value, list)}
    method = cls(Backbone(BackboneOptions(**config["backbone"])), optim=Optim(**{**config["optim"], **tuples}), **given)
    assert isinstance(method, Method)
    return method


def _check_given(asked: Import, backbone: Backbone) -> None:
    """That what the user said of the network came true: the file may say otherwise."""
    network: Any = backbone.model
    heads = network.blocks[0].attn.num_heads if backbone.is_vit else None
    if asked.heads not in (None, heads):
        known = f"{backbone.options.name} here has {heads}" if heads else "it is for ViTs"
        raise UserError(f"--heads {asked.heads}: {known}: leave it out")
    if asked.img_size not in (None, backbone.img_size):
        raise UserError(f"--img-size {asked.img_size}: the file is for {backbone.img_size} px: leave it out")


def _statistics(asked: Import, file: CheckpointFile) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the network's input is normalised with."""
    cfg = dict(file.config.get("pretrained_cfg") or {})
    if asked.backbone:
        known = timm.get_pretrained_cfg(asked.backbone)
        cfg = {"mean": known.mean, "std": known.std} if known else {}
    return tuple(cfg.get("mean", IMAGENET[0])), tuple(cfg.get("std", IMAGENET[1]))


@dataclass(frozen=True)
class Written:
    """What goes into the folder."""

    backbone: Backbone
    method: Method | None
    config: dict[str, Any]
    report: Report
    kind: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]


def _write(asked: Import, file: CheckpointFile, made: Written) -> None:
    """The run folder, whole or not at all."""
    name = made.config["backbone"]["name"]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    origin = {"file": asked.file.name, "format": asked.format, "kind": made.kind}
    info = RunInfo(
        status="finished",
        kind="imported",
        method=layout(asked.format).method,
        data=DataRecord(asked.data),
        options={"imported": origin, "backbone": made.config["backbone"]},
        backbone=describe_backbone(name, made.backbone),
        created=now,
        finished=now,
        command=["ssl-bench", "import", *asked.command],
        version=ssl_bench.__version__,
        branch=main_branch(made.method) if made.method else "",
    )
    again = f"ssl-bench fit -c {asked.out}/config.yaml --init {asked.out}"
    use = f"to continue it: {again}" if made.method else "an encoder, to evaluate"
    account = {
        **origin,
        "bytes": file.path.stat().st_size,
        "sha256": _sha256(file.path),
        "epoch": file.entries.get("epoch") if isinstance(file.entries.get("epoch"), int) else None,
        **asdict(made.report),
    }
    with writing_folder(asked.out) as folder:
        write_text(folder / "config.yaml", f"# Imported from {asked.file.name}: {use}.\n{dump(made.config)}")
        write_json(folder / "environment.json", describe())
        write_json(folder / "import.json", account)
        if made.method is None:
            write_backbone(folder, made.backbone, *made.statistics)
        else:
            write_backbones(folder, made.method, *made.statistics)
            with replacing(folder / "checkpoints" / "last.ckpt") as temporary:
                torch.save({"state_dict": made.method.state_dict(), "ssl_bench": {"config": made.config}}, temporary)
        write_run(folder, info)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _named(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
