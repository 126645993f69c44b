"""What an evaluation measures, and on which images: run folders and baselines, named as on the command line.

Torch-free.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench.config import class_paths
from ssl_bench.config.layers import checked_path
from ssl_bench.config.options import DataOptions
from ssl_bench.errors import UserError
from ssl_bench.records.files import in_words, read_regular
from ssl_bench.records.run import RunInfo, read_run

# Data options that say which images.
IMAGES = ("name", "root", "image_size", "val_fraction", "split_seed", "value_range", "label_column", "channels")
PUBLISHED = "timm"  # targets whose weights are timm's, a hub's or a folder's
LOADING = ("num_workers", "download")  # and those that say how they are read
NETWORKLESS = ("pixels", "kmeans-patches")  # baselines


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Args:
        name: As the user wrote it.
        folder: Of its run; None for a baseline, which gets one.
        baseline: `random`, `pixels`, `kmeans-patches`, or `timm` for a network with published weights; None for a run.
        backbone: Options of a random or published backbone.
        seed: Of a random backbone's weights, or of k-means.
        data: Data options of a baseline that has images of its own: one that was recorded, or a run's random network.
        network: A module in memory with the mean and deviation of its input, where the run's files do not build it.
    """

    name: str
    folder: Path | None = None
    baseline: str | None = None
    backbone: dict[str, Any] | None = None
    seed: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    network: Any = field(default=None, compare=False)

    @property
    def own_data(self) -> dict[str, Any]:
        """Data options of its own images; empty where it has none."""
        return dict(read_run(self.folder).options.get("data", {})) if self.folder else dict(self.data)


@dataclass(frozen=True)
class Measurement:
    """A target on the images that it is measured on."""

    target: Target
    data: DataOptions


def parse_target(name: str, backbone: dict[str, Any], seed: int) -> Target:
    """The target that a user means.

    Args:
        name: A run folder, random:BACKBONE[@SEED], random:RUN[@SEED], timm:NAME, timm:hf-hub:ORG/NAME,
            timm:local-dir:PATH, pixels or kmeans-patches[@SEED].
        backbone: Options of a random backbone.
        seed: Of a random backbone's weights, where the name has none.

    Raises:
        UserError: There is no such run, or it has no network.
    """
    kind, colon, rest = name.partition(":")
    if kind == PUBLISHED and not Path(name).exists():
        if not rest:
            raise UserError("timm: which network? timm:vit_small_patch14_dinov2.lvd142m, say, or timm:hf-hub:ORG/NAME")
        return Target(name, None, PUBLISHED, {**backbone, "name": rest, "pretrained": True})
    named = kind in ("random", *NETWORKLESS)  # `random:RUN`, whose path may begin with ~
    name = f"{kind}{colon}{checked_path(rest, f'{kind}:')}" if named else checked_path(name, "RUN")
    baseline, at, number = name.partition("@")
    kind, _, network = baseline.partition(":")
    if kind in ("random", *NETWORKLESS) and not Path(name).exists():
        if at and not (number.isdecimal() and number.isascii() and len(number) <= 10 and int(number) < 2**32):
            raise UserError(f"{name}: the seed after @ is a whole number from 0 to {2**32 - 1}")
        if kind == "random" and not network:
            raise UserError("random: of which backbone? random:vit_nano_patch4_32, say (ssl-bench list backbones)")
        if kind == "random" and (Path(network) / "run.json").exists():
            return _random_network_of(name, Path(network), int(number) if at else None)
        class_paths.name_classes(network)  # by the user, if it is one
        options = {**backbone, "name": network} if network else None
        return Target(name, None, kind, options, int(number) if at else seed)
    folder = Path(name)
    if not folder.is_dir():
        names = ", ".join(NETWORKLESS)
        raise UserError(f"no run folder {name} (baselines: random:BACKBONE, {names}; published weights: timm:NAME)")
    if not (folder / "run.json").exists():
        raise UserError(f"{name} is no run folder: it has no run.json (`ssl-bench fit` prints the folder it made)")
    info = read_run(folder)
    if info.kind == "tokenizer":
        raise UserError(f"{name} is a tokenizer, which has no features: train with it, --method.tokenizer {name}")
    if not (folder / "backbone.safetensors").exists() and not (folder / "backbone.json").exists():
        if info.kind == "baseline":
            return recorded_baseline(folder)
        raise UserError(f"{name}: its run is {info.status}; ssl-bench fit -c {folder}/config.yaml finishes it")
    return Target(name, folder)


def recorded_baseline(folder: Path) -> Target:
    """A baseline that was evaluated before, by its folder."""
    info = read_run(folder)
    options = info.options
    return Target(str(folder), None, info.method, options.get("backbone"), info.seed, dict(options.get("data", {})))


def baselines_folder(target: Target, runs: Path) -> Path:
    """Where a baseline's run folder is: one that was evaluated before stays where it is."""
    named = Path(target.name)
    return named.parent if (named / "run.json").exists() else runs


def _random_network_of(name: str, run: Path, seed: int | None) -> Target:
    """A run's own network, at its size, as initialised, on its images."""
    info = read_run(run)
    if info.kind == "tokenizer":
        raise UserError(f"{name}: {run} is a tokenizer's run, which has no backbone")
    if info.backbone is None or not isinstance(info.options.get("backbone"), dict):
        raise UserError(f"{name}: {run} is a run of {info.method}, which has no network")
    options = {k: v for k, v in info.options["backbone"].items() if k not in ("pretrained", "weights")}
    backbone = {**options, "img_size": network_size(info)}
    if ":" in backbone["name"]:  # of a hub: what its network is stands beside its weights
        backbone = _described(name, run / "backbone.json")
    data = {k: v for k, v in info.options.get("data", {}).items() if k in (*IMAGES, *LOADING)}
    return Target(name, None, "random", backbone, info.seed if seed is None else seed, data)


def _described(name: str, file: Path) -> dict[str, Any]:
    """The options of a network, as they stand beside its weights."""
    try:
        return dict(json.loads(read_regular(file))["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: {file} does not say what its network is: {in_words(error)}") from None


def network_size(info: RunInfo) -> int | None:
    """Pixels of the input that a run's network was built for."""
    recorded = info.backbone.args.get("img_size") if info.backbone else None
    return info.options["backbone"].get("img_size") or recorded


def measurements(targets: Sequence[Target], given: Mapping[str, Any]) -> list[Measurement]:
    """Each target with its images: a run's own, unless others were named; for a baseline those of the runs beside it.

    Where the runs are of several data sets, baselines are measured on each of them.

    Args:
        targets: In the order in which they are evaluated.
        given: Data options of the command line, above a run's own.

    Raises:
        UserError: A network that was imported has no images.
    """
    own = [data_options(data, given) if (data := target.own_data) else None for target in targets]
    shared = _distinct(options for options in own if options)
    found = []
    for target, options in zip(targets, own, strict=True):
        if options:
            found.append(Measurement(target, options))
        elif shared:
            found += [Measurement(target, _images_of(data, given)) for data in shared]
        elif target.folder and "name" not in given:
            raise UserError(f"{target.name} has no images of its own on record: --data NAME")
        else:
            found.append(Measurement(target, data_options({}, given)))
    return found


def several_data_sets(found: Sequence[Measurement]) -> str | None:
    """A line that says so where not all are measured on the same images; None where they are."""
    sets = _distinct(each.data for each in found)
    if len(sets) < 2:
        return None
    differing = [name for name in IMAGES if len({getattr(options, name) for options in sets}) > 1]
    named = "; ".join(", ".join(f"{name} {getattr(options, name)}" for name in differing) for options in sets)
    what = "runs on their own images, baselines on each run's"
    return f"{len(sets)} data sets ({named}): {what}; --data NAME, or these options, for the same images"


def images(options: DataOptions) -> tuple[Any, ...]:
    """What is equal for the same images, split in the same way."""
    root = str(Path(options.root).expanduser().resolve()) if options.root else None
    return tuple(root if name == "root" else getattr(options, name) for name in IMAGES)


def data_options(own: Mapping[str, Any], given: Mapping[str, Any]) -> DataOptions:
    """The run's own data, unless others were named: then nothing of its own but what does not depend on the set."""
    if "name" in given and (given["name"] != own.get("name") or "root" in given):
        own = {k: v for k, v in own.items() if k in ("num_workers", "split_seed", "val_fraction", "strict")}
    if "label_fraction" in given:
        raise UserError("--data.label_fraction is of what a method learns from: evaluations use all labels")
    return DataOptions(**{**own, "label_fraction": None, **given})


def _distinct(found: Iterable[DataOptions]) -> list[DataOptions]:
    """The first of those that are of the same images."""
    sets: dict[tuple[Any, ...], DataOptions] = {}
    for options in found:
        sets.setdefault(images(options), options)
    return list(sets.values())


def _images_of(options: DataOptions, given: Mapping[str, Any]) -> DataOptions:
    """A run's images for a baseline: what else the run's data options say is no part of a baseline."""
    return DataOptions(**{**{k: getattr(options, k) for k in (*IMAGES, *LOADING)}, **given})
