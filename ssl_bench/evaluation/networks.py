"""The networks of a target: loaded, or made for a baseline."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config.options import BackboneOptions, DataOptions
from ssl_bench.console import say
from ssl_bench.data.files.content import folder_of_run
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import Evaluate
from ssl_bench.evaluation.targets import PUBLISHED, Target, baselines_folder, recorded_baseline
from ssl_bench.records.run import read_run

if TYPE_CHECKING:
    from ssl_bench.data.dataset import Dataset
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor
    from ssl_bench.evaluation.kmeans_patches import KMeansPatches
    from ssl_bench.evaluation.pixels import Pixels
    from ssl_bench.models.backbone import Backbone
    from ssl_bench.records.run import BackboneRecord


def prepare_target(
    target: Target, data: "Dataset", options: DataOptions, given: Evaluate, device: str
) -> "tuple[Path, list[FeatureExtractor]]":
    """The target's folder, made if it is a baseline's, and its networks, the default one first."""
    import torch

    from ssl_bench.models.backbone import Backbone
    from ssl_bench.models.saved_backbone import describe_backbone
    from ssl_bench.runtime.distributed import all_reduce_sum, rank

    if target.folder is not None and target.network is not None:
        return target.folder, [_network_in_memory(target, target.folder, options.num_workers, device)]
    if target.folder is not None:
        return target.folder, run_networks(target.folder, data, options.num_workers, device, given.branch)
    if target.baseline == PUBLISHED:
        folder = _published(target, data, options, given.runs, device)
        return folder, run_networks(folder, data, options.num_workers, device, None)
    network = _baseline_network(target, data)
    record, chosen = None, {"name": "none"}
    if isinstance(network, Backbone):
        record, chosen = describe_backbone(network.options.name, network), asdict(network.options)
    assert target.baseline is not None
    config: dict[str, Any] = {
        "method": {"name": target.baseline},
        "backbone": chosen,
        "data": asdict(options),
        "seed": target.seed,
    }
    folder = folder_of_run(baselines_folder(target, given.runs), config)
    if rank() == 0:
        _write_baseline(folder, target, data, config, record)
    all_reduce_sum(torch.zeros(1, device=device))  # no process reads run.json before it is there
    return folder, [_frozen_baseline(network, target, folder, data, options.num_workers, device)]


def _write_baseline(
    folder: Path, target: Target, data: "Dataset", config: dict[str, Any], record: "BackboneRecord | None"
) -> None:
    from ssl_bench.records.files import write_json
    from ssl_bench.records.run import DataRecord, RunInfo, write_run
    from ssl_bench.runtime.environment import describe

    info = RunInfo(
        status="finished",
        kind="baseline",
        method=str(target.baseline),
        data=DataRecord(data.title, data.fingerprint),
        options={k: v for k, v in config.items() if k != "seed" and v != {"name": "none"}},
        backbone=record,
        seed=target.seed,
        command=["ssl-bench", "evaluate", target.name],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_run(folder, info)
    write_json(folder / "environment.json", describe())


def _published(target: Target, data: "Dataset", options: DataOptions, runs: Path, device: str) -> Path:
    """The folder of a network with published weights, which are kept there; its name has a hash of them.

    It sees images at its own size, unless another was asked for.
    """
    import torch

    from ssl_bench.models.backbone import Backbone
    from ssl_bench.models.pretrained import network_of, start, timm_weights
    from ssl_bench.models.saved_backbone import describe_backbone, write_backbone
    from ssl_bench.runtime.distributed import all_reduce_sum, rank

    assert target.backbone is not None
    asked = BackboneOptions(**target.backbone)
    weights = timm_weights(asked.name)
    backbone = Backbone(network_of(asked, weights.img_size, data.channels))
    begun = start(backbone, weights)
    for line in begun.adapted:
        say(f"{target.name}: {line}")
    chosen = {**asdict(backbone.options), "weights": begun.digest}
    config: dict[str, Any] = {
        "method": {"name": target.baseline},
        "backbone": chosen,
        "data": asdict(options),
        "seed": 0,
    }
    folder = folder_of_run(runs, config)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        theirs = weights.mean is not None and len(weights.mean) == data.channels
        mean, std = (weights.mean, weights.std) if theirs else (data.mean, data.std)
        write_backbone(folder, backbone, mean or data.mean, std or data.std)
        name = asked.name if ":" in asked.name else begun.source.partition(":")[2]
        _write_baseline(folder, target, data, config | {"start": asdict(begun)}, describe_backbone(name, backbone))
    all_reduce_sum(torch.zeros(1, device=device))
    return folder


def default_network(folder: Path, data: "Dataset", workers: int, device: str) -> "FeatureExtractor":
    """The default network of a recorded run or baseline, its features shared with evaluations through the cache.

    Args:
        folder: The run's.
        data: Whose features are wanted.
        workers: Processes that decode photographs.
        device: Where it runs.

    Raises:
        UserError: The run has no network yet, or a damaged one.
    """
    info = read_run(folder)
    if info.kind == "baseline" and not (folder / "backbone.safetensors").exists():
        target = recorded_baseline(folder)
        return _frozen_baseline(_baseline_network(target, data), target, folder, data, workers, device)
    return run_networks(folder, data, workers, device, info.branch or None)[0]


def run_networks(
    folder: Path, data: "Dataset", workers: int, device: str, wanted: str | None
) -> "list[FeatureExtractor]":
    """A run's networks, or the one that is ``wanted``; the default one, which its paper reports, first."""
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor
    from ssl_bench.models.classifier import load_classifier
    from ssl_bench.models.projection import load_first_layer
    from ssl_bench.models.saved_backbone import load_backbone

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


def _network_in_memory(target: Target, folder: Path, workers: int, device: str) -> "FeatureExtractor":
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor

    info = read_run(folder)
    module, mean, std = target.network
    identity = {"method": info.method, "branch": info.branch or "encoder"}
    return FeatureExtractor(module, mean, std, identity, folder / "features", device, num_workers=workers)


def _baseline_network(target: Target, data: "Dataset") -> "Backbone | Pixels | KMeansPatches":
    import torch

    from ssl_bench.evaluation.kmeans_patches import KMeansPatches
    from ssl_bench.evaluation.pixels import Pixels
    from ssl_bench.models.backbone import Backbone

    if target.baseline == "kmeans-patches":
        return KMeansPatches(data.image_size, data.mean, data.std, data.pretrain, target.seed)
    if target.backbone is None:
        return Pixels(data.image_size, data.channels)
    asked = BackboneOptions(**target.backbone)
    torch.manual_seed(target.seed)
    channels = asked.channels or (data.channels if data.channels != 3 else None)
    return Backbone(replace(asked, img_size=asked.img_size or data.image_size, channels=channels))


def _frozen_baseline(
    network: "Backbone | Pixels | KMeansPatches",
    target: Target,
    folder: Path,
    data: "Dataset",
    workers: int,
    device: str,
) -> "FeatureExtractor":
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor

    identity = {"method": target.baseline, "branch": target.baseline}
    return FeatureExtractor(network, data.mean, data.std, identity, folder / "features", device, num_workers=workers)
