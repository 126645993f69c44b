"""`ssl-bench import`: a checkpoint of an official repository becomes a run folder like any other.

Every name in the file is loaded, renamed or left with a reason; every name that is missing here has a reason, too.
Anything else is an error. Nothing of the size that a file claims is made before its tensors are seen to have it.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ssl_bench.checkpoints.checkpoint_file import CheckpointFile, read_checkpoint
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.checkpoints.imported_network import check_given, imported_network, statistics
from ssl_bench.checkpoints.imported_run import ImportedRun, continuing, write_imported
from ssl_bench.checkpoints.official.dino import TEACHER
from ssl_bench.checkpoints.official.layout import ENCODER, ENTRIES, Given, Kind, plain
from ssl_bench.checkpoints.official.shapes import MissingTensor, Shapes
from ssl_bench.checkpoints.recognition import Match, recognise, role
from ssl_bench.checkpoints.renaming import complete, fill, renamed
from ssl_bench.checkpoints.report import Report
from ssl_bench.config import registry
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.layers import read_yaml
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.weights_files import shapes_of
from ssl_bench.pretraining.method import Method


@dataclass(frozen=True)
class Imported:
    """A run folder that was made of a checkpoint.

    Args:
        kind: Title of its kind.
        network: Name, image size and parameters.
        report: Where its names went.
        again: The command that continues pretraining; empty of an encoder alone.
        weights: Which were taken, where the file holds several; else empty.
        positions: How positions are resampled at other sizes; empty where there are none.
    """

    kind: str
    network: str
    report: Report
    again: str
    weights: str
    positions: str


def import_checkpoint(asked: Import) -> Imported:
    """Make a run folder of a checkpoint.

    Raises:
        UserError: It cannot be read, is of another layout, or leaves something unexplained.
    """
    known = asked.checked()
    file = read_checkpoint(asked.file, asked.weights)
    match = recognise(asked.format, file.tensors, str(asked.file), None if file.chosen else asked.weights)
    kind = match.kind
    whole = kind.method is not None and not asked.encoder_only
    if asked.method and not whole:
        raise UserError(f"--method.{next(iter(asked.method))}: of {asked.file} only the encoder is imported")
    evaluated, taken = _weights(asked, file, match, whole)
    report = Report(unused={name: ENTRIES.get(name, "no weights") for name in file.entries} | file.left)
    state = renamed(match, file, report, None if whole else evaluated)
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    encoder = Shapes({n.removeprefix(evaluated): s for n, s in shapes.items() if n.startswith(evaluated)})
    args = dict(pair for name in ("args", "config") for pair in plain(file.entries.get(name)))
    given = Given(args, asked.heads, asked.img_size, {name: _parsed(text) for name, text in asked.method.items()})
    options = imported_network(asked, file, kind, encoder, given)
    tensors = {name.removeprefix(evaluated): tensor for name, tensor in state.items() if name.startswith(evaluated)}
    reported = Report() if whole else report
    started = complete(tensors, shapes_of(lambda: Backbone(options).model, str(asked.file)), kind, reported, asked.file)
    method = None
    if whole:
        assert kind.method is not None
        config = _configuration(kind.method, options, _options(kind, shapes, given, asked) | dict(given.method))
        started = complete(state, shapes_of(lambda: _build(config), str(asked.file)), kind, report, asked.file)
        method = _build(config)
        fill(method, state, started)
        backbone = method.evaluated
    else:
        backbone = Backbone(options)
        config = {"method": {"name": known.method}, "backbone": asdict(options), "seed": 0}
        fill(backbone.model, tensors, started)
    assert isinstance(backbone, Backbone)
    check_given(asked, backbone)
    write_imported(
        asked, file, ImportedRun(backbone, method, config, report, kind.title, taken, statistics(asked, file))
    )
    parameters = sum(p.numel() for p in backbone.parameters())
    described = f"{options.name}, {backbone.img_size} px, {parameters:,} parameters"
    positions = _positions(options) if "pos_embed" in encoder else ""
    again = continuing(asked.out, config) if whole else ""
    return Imported(f"{known.title}, {kind.title}", described, report, again, taken, positions)


def _weights(asked: Import, file: CheckpointFile, match: Match, whole: bool) -> tuple[str, str]:
    """What is in front of the names of the network that is evaluated, and a line on the choice, if there was one.

    Raises:
        UserError: The weights that were asked for are not there.
    """
    if file.chosen:
        return match.kind.evaluated, f"{file.chosen}; {', '.join(file.left)} left" if file.left else file.chosen
    if match.prefix:
        others = f"; {', '.join(f'{prefix}*' for prefix in match.others)} left" if match.others else ""
        return match.kind.evaluated, f"{match.prefix}*{others}" if others or asked.weights else ""
    both = match.kind.evaluated == TEACHER + ENCODER
    if asked.weights in ("student", "teacher") and both:
        if whole:
            raise UserError(f"--weights {asked.weights}: both are imported; of the encoder alone: --encoder-only")
        evaluated = ENCODER if asked.weights == "student" else TEACHER + ENCODER
        return evaluated, f"{asked.weights}; the other left"
    if asked.weights is not None and asked.weights != role(match.prefix):
        raise UserError(f"--weights {asked.weights}: {asked.file} holds one network alone: leave it out")
    return match.kind.evaluated, "teacher; the student left: --weights student" if both and not whole else ""


def _options(kind: Kind, shapes: Shapes, given: Given, asked: Import) -> dict[str, Any]:
    """Options of the method whose whole state this is.

    Raises:
        UserError: Something of it is missing.
    """
    try:
        return kind.options(shapes, given)
    except MissingTensor as error:
        lacking = str(error).partition(": is it whole")[0]
        raise UserError(
            f"{asked.file}: {lacking}, so it cannot be continued: --encoder-only imports its encoder"
        ) from None


def _positions(options: BackboneOptions) -> str:
    offset = 0.1 if options.interpolate_offset is None else options.interpolate_offset
    return f"offset {offset:g}, {'smoothed' if options.interpolate_antialias else 'not smoothed'}"


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


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
