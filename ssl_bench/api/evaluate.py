"""Evaluations of runs, baselines, methods and modules in memory."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from torch import nn

from ssl_bench.api.images import Data, data_options
from ssl_bench.api.protocols import Protocols, flags, protocol_flags
from ssl_bench.api.results import result_rows, run_facts
from ssl_bench.api.save import statistics_of, write
from ssl_bench.config.parser import errors_raised
from ssl_bench.errors import UserError
from ssl_bench.evaluation.command import run_evaluate
from ssl_bench.evaluation.evaluate_config import Evaluate, parse_evaluate
from ssl_bench.evaluation.recorded_results import answer_from_records
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.module_backbone import ModuleBackbone
from ssl_bench.models.weights_files import checksum
from ssl_bench.pretraining.image_batches import IMAGENET
from ssl_bench.pretraining.method import Method
from ssl_bench.records.run_folder import data_title
from ssl_bench.records.store import load_runs

Target: TypeAlias = str | PathLike[str] | nn.Module
PHOTOGRAPH = 224  # pixels that a module is shown where nothing else is asked


def evaluate(
    targets: Target | Iterable[Target],
    data: Data | None = None,
    protocols: Protocols = ("knn", "linear"),
    *,
    runs: str | PathLike[str] = "runs",
    image_size: int = PHOTOGRAPH,
    backbone: Mapping[str, Any] | None = None,
    branch: str | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    wandb: str = "off",
) -> pd.DataFrame:
    """Measure what networks have learned, as `ssl-bench evaluate` does; what is recorded already is not repeated.

    Args:
        targets: Run folders or `Run`s; baselines, `"random:RUN"`, `"random:BACKBONE"`, `"pixels"`; methods from
            `create_method`; modules that give (B, D) features of images normalised as ImageNet's. Methods and modules
            get a run folder, so that a leaderboard has them.
        data: As for `fit`; by default each run's own images.
        protocols: Names (`list_evaluations`), or name -> options: `{"knn": {"k": [1, 20]}}`.
        runs: Where the folders of baselines, methods and modules go.
        image_size: Pixels that a module is shown.
        backbone: Options of random backbones.
        branch: student or teacher, of methods that have both.
        device: auto, cpu, cuda, ...
        seed: Of random backbones.
        force: Evaluate again what is recorded.
        wandb: off, online, offline or auto.

    Returns:
        One row for each target, protocol and variant, as `load_results` has them.

    Raises:
        UserError: An unknown name or option, no such run, or a network that a protocol cannot be run on.
    """
    several = [targets] if isinstance(targets, str | PathLike | nn.Module) else list(targets)
    folder = Path(runs).expanduser()
    held = [_held(each, folder, image_size) if isinstance(each, nn.Module) else None for each in several]
    names = [str(kept[0]) if kept else os.fspath(each) for each, kept in zip(several, held, strict=True)]  # type: ignore[arg-type]
    groups = {"data": data_options(data), "backbone": dict(backbone or {})}
    single = {"runs": str(folder), "branch": branch, "device": device, "seed": seed, "wandb": wandb}
    argv = [*names, *protocol_flags(protocols), *flags({**groups, **single}), *(["--force"] if force else [])]
    with errors_raised():
        asked = parse_evaluate(argv)
    in_memory = [
        replace(target, network=kept[1]) if kept and kept[1] else target
        for target, kept in zip(asked.targets, held, strict=True)
    ]
    asked = replace(asked, targets=in_memory)
    lines = answer_from_records(asked)
    folders = dict.fromkeys(run_evaluate(asked) if lines is None else lines)
    return _measured([Path(each) for each in folders], asked)


def _held(network: nn.Module, runs: Path, size: int) -> tuple[Path, Any]:
    """The run folder of a method or module in memory, and, where its files do not build it, the network itself."""
    if isinstance(network, Method):
        source: Method | ModuleBackbone = network
        shown, statistics = network.evaluated, statistics_of(network)
        name = str(network.hparams.get("name") or type(network).__name__)
    else:
        source = shown = network if isinstance(network, ModuleBackbone) else ModuleBackbone(network, size)
        statistics, name = IMAGENET, f"{type(source.model).__name__}-{source.img_size}px"
    if isinstance(shown, ModuleBackbone) and shown.channels != 3:
        text = f"{shown.architecture} takes {shown.channels} channels, and data sets here have three"
        raise UserError(f"{text}: ssl_bench.evaluate_features measures its features")
    digest = checksum({key: tensor.detach().cpu() for key, tensor in shown.state_dict().items()})
    folder = runs / f"{name.rpartition('.')[2]}-{digest[:8]}"
    if not (folder / "run.json").exists():
        write(source, folder, None)
    return folder, None if isinstance(shown, Backbone) else (shown, *statistics)


def _measured(folders: list[Path], asked: Evaluate) -> pd.DataFrame:
    """What was asked for, of all that the folders hold."""
    title = data_title(asked.data) if "name" in asked.data else None
    rows = []
    for run in load_runs(folders):
        for result in run.results:
            images = result.data.title == title if title else result.data.same_images(run.info.data)
            of_branch = asked.branch is None or result.branch in (asked.branch, "encoder")
            if result.protocol in asked.protocols and images and of_branch:
                rows += [run_facts(run, result) | row for row in result_rows(result)]
    return pd.DataFrame(rows)
