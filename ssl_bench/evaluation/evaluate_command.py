"""`ssl-bench evaluate`: run folders and baselines through protocols, on their data or others. Parsed without torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config import registry, signatures
from ssl_bench.config.configuration import (
    Parser,
    common_arguments,
    environment_layer,
    flatten,
    read_yaml,
    split_argv,
    stack,
    wandb_options,
)
from ssl_bench.config.options import BackboneOptions, DataOptions, WandbOptions
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.results import read_run
from ssl_bench.records.run_folder import run_folder

if TYPE_CHECKING:
    from ssl_bench.data.dataset import Dataset
    from ssl_bench.evaluation.features import FeatureExtractor, Pixels
    from ssl_bench.models.backbone import Backbone

DEFAULT_PROTOCOLS = "knn,linear"


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Args:
        name: As the user wrote it.
        folder: Of its run; None for a baseline, which gets one.
        baseline: `random` or `pixels`, None for a run.
        backbone: Options of a random backbone.
        seed: Of a random backbone's weights.
    """

    name: str
    folder: Path | None = None
    baseline: str | None = None
    backbone: dict[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Evaluate:
    """A parsed `evaluate` command.

    Args:
        targets: What to evaluate.
        protocols: Name -> options.
        data: Options of the images; those a flag or file gave, over a run's own.
        runs: Where baselines' folders go.
        device: auto, cpu, cuda, ...
        force: Evaluate again what is recorded.
        branch: The one network of methods that have a student and a teacher; both when None, as far as a protocol does
            not train copies of them.
        wandb: Whether and where results are logged to W&B.
    """

    targets: list[Target]
    protocols: dict[str, dict[str, Any]]
    data: dict[str, Any]
    runs: Path
    device: str
    force: bool
    branch: str | None = None
    wandb: WandbOptions = WandbOptions()


def parse_evaluate(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Evaluate:
    """An `evaluate` command line.

    Raises:
        UserError: A run, baseline or protocol that there is not.
    """
    files, named, flags = split_argv(argv)
    given = [(str(f), flatten(read_yaml(f), str(f))) for f in files]
    layers = stack([("the environment", environment_layer(environ)), *given, ("flags", named)])
    chosen = [t.partition("=")[2] or flags[i + 1] for i, t in enumerate(flags[:-1]) if t.startswith("--protocols")]
    chosen += [t.partition("=")[2] for t in flags[-1:] if t.startswith("--protocols=")]
    names = (chosen[-1] if chosen else layers.values.get("protocols", DEFAULT_PROTOCOLS)).split(",")
    names = sorted(registry.names("evaluations")) if [n.strip() for n in names] == ["all"] else names
    found = {name.strip(): registry.find("evaluations", name.strip()) for name in names if name.strip()}
    parser = Parser(
        prog="ssl-bench evaluate",
        description="Measure what backbones have learned. Writes results/ and predictions/ into each run's folder.",
        usage="ssl-bench evaluate RUN... [--protocols knn,linear] [--data NAME] [--PROTOCOL.OPTION VALUE ...]",
    )
    parser.add_argument(
        "targets", nargs="*", metavar="RUN", help="a run folder, random:BACKBONE[@SEED], random:RUN or pixels"
    )
    parser.add_argument(
        "--protocols", default=DEFAULT_PROTOCOLS, help="with commas, or all (ssl-bench list evaluations)"
    )
    groups = {}
    for name, page in found.items():
        groups[name] = name.rpartition(".")[2].replace("-", "_")
        parser.add_class_arguments(signatures.read(page), groups[name])
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(BackboneOptions, "backbone")
    parser.add_argument("--seed", type=int, default=0, help="of a random backbone's weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--branch", choices=("student", "teacher"), help="the only one of a method that has both")
    parser.add_argument("--force", action="store_true", help="evaluate again what is recorded")
    common_arguments(parser)
    parser.origins = {k: v for k, v in layers.origins.items() if v != "flags"}
    tokens = [*layers.tokens(), *flags]
    namespace = parser.parse_args(tokens)
    if not namespace.targets:
        parser.error("what? name run folders, random:BACKBONE or pixels")
    tree = namespace.as_dict()
    set_by_user = {t.partition("=")[0].removeprefix("--") for t in tokens}
    data = {k: v for k, v in tree["data"].items() if f"data.{k}" in set_by_user}
    backbone = {k: v for k, v in tree["backbone"].items() if f"backbone.{k}" in set_by_user and k != "name"}
    return Evaluate(
        targets=[_target(name, backbone, namespace.seed) for name in namespace.targets],
        protocols={name: tree.get(group, {}) for name, group in groups.items()},  # none of a page without options
        data=data,
        runs=Path(namespace.runs),
        device=namespace.device,
        force=namespace.force,
        branch=namespace.branch,
        wandb=wandb_options(namespace),
    )


def _target(name: str, backbone: dict[str, Any], seed: int) -> Target:
    baseline, at, number = name.partition("@")
    kind, _, network = baseline.partition(":")
    if kind in ("random", "pixels") and not Path(name).exists():
        if at and not number.isdigit():
            raise UserError(f"{name}: the seed after @ is a number")
        if kind == "random" and not network:
            raise UserError("random: of which backbone? random:vit_nano_patch4_32, say (ssl-bench list backbones)")
        if kind == "random" and (Path(network) / "run.json").exists():  # the network that a run started from
            info = read_run(Path(network))
            if info.kind == "tokenizer":
                raise UserError(f"{name}: {network} is a tokenizer's run, which has no backbone")
            return Target(name, None, kind, info.options["backbone"], int(number) if at else info.seed)
        options = {**backbone, "name": network} if network else None
        return Target(name, None, kind, options, int(number) if at else seed)
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"no run folder {name} (baselines: random:BACKBONE, pixels)")
    if not (folder / "run.json").exists():
        raise UserError(f"{name} is no run folder: it has no run.json (`ssl-bench fit` prints the folder it made)")
    status = read_run(folder).status
    if read_run(folder).kind == "tokenizer":
        raise UserError(f"{name} is a tokenizer, which has no features: train with it, --method.tokenizer {name}")
    if not (folder / "backbone.safetensors").exists() and not (folder / "backbone.json").exists():
        if read_run(folder).kind == "baseline":
            return _recorded_baseline(folder)
        raise UserError(f"{name}: its run is {status}; ssl-bench fit -c {folder}/config.yaml finishes it")
    return Target(name, folder)


def _recorded_baseline(folder: Path) -> Target:
    info = read_run(folder)
    backbone = info.options.get("backbone")
    return Target(str(folder), None, info.method, backbone, info.seed)


def run_evaluate(given: Evaluate) -> Iterator[str]:
    """Evaluate all targets; yields each folder when it is done. Processes started by torchrun share the work."""
    from ssl_bench.evaluation.runner import evaluate
    from ssl_bench.runtime.distributed import distributed_context, rank
    from ssl_bench.tracking.wandb_results import logged

    with distributed_context(given.device) as device:
        opened: dict[str, Dataset] = {}
        for number, target in enumerate(given.targets, 1):
            say(f"[{number}/{len(given.targets)}] {target.name}")
            own = dict(read_run(target.folder).options.get("data", {})) if target.folder else {}
            if target.folder and not own and "name" not in given.data:
                raise UserError(f"{target.name} was imported and has no images of its own: --data NAME")
            options = data_options(own, given.data)
            key = repr(options)
            if key not in opened:
                opened[key] = _open(options)
            folder, networks = _prepare(target, opened[key], options, given, device)
            for place, frozen in enumerate(networks):
                pages = {name: _instance(name, o) for name, o in given.protocols.items()}
                if place > 0:
                    say(f"{frozen.identity['branch']}:")
                    pages = {name: page for name, page in pages.items() if not page.trains}
                evaluate(frozen, opened[key], _accepted(pages, frozen, given, target), folder, force=given.force)
            if rank() == 0:
                with logged(folder, given.wandb):  # all that the folder holds by now
                    pass
                yield str(folder)


def _accepted(pages: dict[str, Any], frozen: "FeatureExtractor", given: Evaluate, target: Target) -> dict[str, Any]:
    """The protocols that can be run on a backbone."""
    refused = {name: why for name, page in pages.items() if (why := page.refusal(frozen)) is not None}
    if len(given.targets) == 1 and pages and len(refused) == len(pages):
        name, why = next(iter(refused.items()))
        raise UserError(f"--protocols {name}: {target.name}: {why}")
    for name, why in refused.items():
        say(f"{name}: left out: {why}")
    return {name: page for name, page in pages.items() if name not in refused}


def data_options(own: dict[str, Any], given: dict[str, Any]) -> DataOptions:
    """The run's own data, unless others were named: then nothing of its own but what does not depend on the set."""
    if "name" in given and (given["name"] != own.get("name") or "root" in given):
        own = {k: v for k, v in own.items() if k in ("num_workers", "split_seed", "val_fraction", "strict")}
    if "label_fraction" in given:
        raise UserError("--data.label_fraction is of what a method learns from: evaluations use all labels")
    return DataOptions(**{**own, "label_fraction": None, **given})


def _open(options: DataOptions) -> "Dataset":
    from ssl_bench.data.dataset import load_dataset

    data = load_dataset(options)
    data.require_labels()
    return data


def _instance(name: str, options: dict[str, Any]) -> Any:
    cls = registry.load(registry.find("evaluations", name))
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except ValueError as error:
        raise UserError(f"--protocols {name}: {error}") from None


def _prepare(
    target: Target, data: "Dataset", options: DataOptions, given: Evaluate, device: str
) -> "tuple[Path, list[FeatureExtractor]]":
    """The target's folder, made if it is a baseline's, and its networks, the one that speaks for it first."""
    import torch

    from ssl_bench.models.backbone import Backbone
    from ssl_bench.pretraining.training import describe_backbone
    from ssl_bench.records.files import write_json
    from ssl_bench.records.results import DataRecord, RunInfo, write_run
    from ssl_bench.runtime.distributed import all_reduce_sum, rank
    from ssl_bench.runtime.environment import describe

    if target.folder is not None:
        return target.folder, _run_networks(target.folder, data, options.num_workers, device, given.branch)
    network = _baseline_network(target, data)
    record, chosen = None, {"name": "none"}
    if isinstance(network, Backbone):
        record, chosen = describe_backbone(network.options.name, network), asdict(network.options)
    assert target.baseline is not None
    config = {"method": {"name": target.baseline}, "backbone": chosen, "data": asdict(options), "seed": target.seed}
    named = Path(target.name)  # a baseline that was evaluated before stays where it is
    folder = run_folder(named.parent if (named / "run.json").exists() else given.runs, config)
    folder.mkdir(parents=True, exist_ok=True)
    info = RunInfo(
        status="finished",
        kind="baseline",
        method=target.baseline,
        data=DataRecord(data.title, data.fingerprint),
        options={k: v for k, v in config.items() if k != "seed" and v != {"name": "none"}},
        backbone=record,
        seed=target.seed,
        command=["ssl-bench", "evaluate", target.name],
    )
    if rank() == 0:
        write_run(folder, info)
        write_json(folder / "environment.json", describe())
    all_reduce_sum(torch.zeros(1, device=device))  # no process reads run.json before it is there
    return folder, [_frozen_baseline(network, target, folder, data, options.num_workers, device)]


def default_network(folder: Path, data: "Dataset", workers: int, device: str) -> "FeatureExtractor":
    """The network that speaks for a recorded run or baseline, its features shared with evaluations through the cache.

    Args:
        folder: The run's.
        data: Whose features are wanted.
        workers: Processes that decode photographs.
        device: Where it runs.

    Raises:
        UserError: The run has no network yet, or a damaged one.
    """
    info = read_run(folder)
    if info.kind == "baseline":
        target = _recorded_baseline(folder)
        return _frozen_baseline(_baseline_network(target, data), target, folder, data, workers, device)
    return _run_networks(folder, data, workers, device, info.branch or None)[0]


def _run_networks(
    folder: Path, data: "Dataset", workers: int, device: str, wanted: str | None
) -> "list[FeatureExtractor]":
    """A run's networks, or the one that is ``wanted``; the one that speaks for it first."""
    from ssl_bench.evaluation.features import FeatureExtractor
    from ssl_bench.models.classifier import load_classifier
    from ssl_bench.models.projection import load_first_layer
    from ssl_bench.pretraining.checkpoint import load_backbone

    info = read_run(folder)
    others = [file.stem.removeprefix("backbone-") for file in sorted(folder.glob("backbone-*.safetensors"))]
    branches = [info.branch, *others]
    if wanted is not None and info.branch:
        branches = [wanted]
        if wanted not in (info.branch, *others):
            raise UserError(f"{folder} has no branch {wanted}, only {info.branch}")
    networks = []
    for branch in branches:
        backbone, mean, std = load_backbone(folder, "" if branch == info.branch else branch)
        classifier = load_classifier(folder) if branch == info.branch else None
        if classifier is not None and classifier.names != data.classes:
            classifier = None  # it would answer another question
        identity = {"method": info.method, "branch": branch or "encoder"}
        head = load_first_layer(folder, info.method, branch)
        cache = folder / "features"
        networks.append(FeatureExtractor(backbone, mean, std, identity, cache, device, None, workers, classifier, head))
    return networks


def _baseline_network(target: Target, data: "Dataset") -> "Backbone | Pixels":
    import torch

    from ssl_bench.evaluation.features import Pixels
    from ssl_bench.models.backbone import Backbone

    if target.backbone is None:
        return Pixels(data.image_size)
    asked = BackboneOptions(**target.backbone)
    torch.manual_seed(target.seed)
    return Backbone(replace(asked, img_size=asked.img_size or data.image_size))


def _frozen_baseline(
    network: "Backbone | Pixels", target: Target, folder: Path, data: "Dataset", workers: int, device: str
) -> "FeatureExtractor":
    from ssl_bench.evaluation.features import FeatureExtractor

    identity = {"method": target.baseline, "branch": target.baseline}
    return FeatureExtractor(network, data.mean, data.std, identity, folder / "features", device, num_workers=workers)
