"""All targets of one `evaluate` command through its protocols."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config import registry
from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.files.left_out import UnreadableImage, add_left_out, read_left_out
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import Evaluate
from ssl_bench.evaluation.input_files import (
    ImagesInput,
    NetworkInput,
    images_files,
    network_files,
    refusal_key,
    with_left_out,
    write_inputs,
)
from ssl_bench.evaluation.networks import prepare_target
from ssl_bench.evaluation.targets import Measurement, measurements, several_data_sets
from ssl_bench.records.run import read_run

if TYPE_CHECKING:
    from ssl_bench.data.dataset import Dataset
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor
    from ssl_bench.records.result import Result


def run_evaluate(given: Evaluate) -> Iterator[str]:
    """Evaluate all targets; yields each folder when it is done. Several processes, however started, share the work."""
    from ssl_bench.runtime.distributed import distributed_context, rank
    from ssl_bench.tracking.wandb_results import logged

    measured = measurements(given.targets, given.data)
    with distributed_context(given.device) as device:
        if line := several_data_sets(measured):
            say(line)
        opened: dict[str, Dataset] = {}
        for number, each in enumerate(measured, 1):
            say(f"[{number}/{len(measured)}] {each.target.name}")
            folder = _evaluate_one(given, each, opened, device, alone=len(measured) == 1)
            if rank() == 0:
                with logged(folder, given.wandb):  # all that the folder holds by now
                    pass
                yield str(folder)


def _evaluate_one(
    given: Evaluate, measured: Measurement, opened: "dict[str, Dataset]", device: str, alone: bool
) -> Path:
    """Evaluate the networks of a target on its images; gives its folder.

    Args:
        given: The command.
        measured: The target and its images.
        opened: Images that are open already; these are put there.
        device: Where networks run.
        alone: Whether it is all that was asked for: then it is an error if no protocol can be run on it.
    """
    from ssl_bench.runtime.distributed import rank

    target, options = measured.target, measured.data
    image_files, key = images_files(options), repr(options)  # looked at before they are read
    if key not in opened:
        opened[key] = _open(options)
    main = read_run(target.folder).branch if target.folder else ""
    folder, networks = prepare_target(target, opened[key], options, given, device)
    data = opened[key].without(read_left_out(folder))
    for place, frozen in enumerate(networks):
        branch = str(frozen.identity["branch"])
        digest = network_files(target, branch, main)
        evaluations = {name: instance(given, name) for name in given.protocols}
        if place > 0:
            say(f"{branch}:")
            evaluations = {name: each for name, each in evaluations.items() if not each.trains}
        refused = {name: why for name, each in evaluations.items() if (why := each.refusal(frozen)) is not None}
        if alone and evaluations and len(refused) == len(evaluations):
            name, why = next(iter(refused.items()))
            raise UserError(f"--protocols {name}: {target.name}: {why}")
        for name, why in refused.items():
            say(f"{name}: left out: {why}")
        accepted = {name: each for name, each in evaluations.items() if name not in refused}
        data, results = _evaluate_readable(frozen, data, accepted, folder, given.force)
        files = with_left_out(image_files, folder)
        if rank() == 0 and results and files and digest and digest == network_files(target, branch, main):
            first = results[0]
            refusals = {
                refusal_key(name, evaluations[name].version, evaluations[name].options(), digest): why
                for name, why in refused.items()
            }
            network = {branch: NetworkInput(digest, first.backbone, first.geometry)}
            write_inputs(folder, options, ImagesInput(files, first.data, first.splits, network, refusals))
    return folder


def _evaluate_readable(
    frozen: "FeatureExtractor", data: "Dataset", evaluations: dict[str, Any], folder: Path, force: bool
) -> "tuple[Dataset, list[Result]]":
    """Evaluate until no image turns out to be broken; each that does is left out.

    Returns:
        The data without them, and the results.
    """
    from ssl_bench.evaluation.runner import evaluate
    from ssl_bench.runtime.distributed import world_size

    while True:
        try:
            return data, evaluate(frozen, data, evaluations, folder, force=force)
        except UnreadableImage as found:
            if data.options.strict or world_size() > 1:  # other processes wait for this one
                raise
            say(f"{found.name} is left out: {found.why}")
            add_left_out(folder, found.name, found.why)
            data = data.without({found.name: found.why})


def _open(options: DataOptions) -> "Dataset":
    from ssl_bench.data.dataset import load_dataset

    data = load_dataset(options)
    data.require_labels()
    return data


def instance(given: Evaluate, name: str) -> Any:
    cls = registry.load(given.classes[name])
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.protocols[name].items()})
    except ValueError as error:
        raise UserError(f"--protocols {name}: {error}") from None
