"""All targets of one `evaluate` command through its protocols."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config import registry
from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.files.left_out import UnreadableImage, add_left_out, read_left_out
from ssl_bench.errors import Taken, UserError
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
from ssl_bench.records.claim import claimed
from ssl_bench.records.files import DAY, clear_temporary
from ssl_bench.records.run import read_run

if TYPE_CHECKING:
    from ssl_bench.data.dataset import Dataset
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor
    from ssl_bench.records.result import Result


def run_evaluate(given: Evaluate) -> Iterator[str]:
    """Evaluate all targets; yields each folder when it is done. Several processes, however started, share the work.

    Raises:
        Taken: Other commands work on some of the targets; all others are evaluated before.
    """
    from ssl_bench.runtime.distributed import distributed_context, rank

    taken: list[str] = []
    measured = measurements(given.targets, given.data)
    with distributed_context(given.device) as device:
        if line := several_data_sets(measured):
            say(line)
        opened: dict[str, Dataset] = {}
        for number, each in enumerate(measured, 1):
            say(f"[{number}/{len(measured)}] {each.target.name}")
            try:
                with ExitStack() as held:
                    folder = _evaluate_one(given, each, opened, device, len(measured) == 1, held)
            except Taken as error:
                taken.append(str(error))
                continue
            if rank() == 0:
                yield str(folder)
    if taken:
        raise Taken("; ".join(taken))


def _hold(held: ExitStack, folder: Path, device: str) -> None:
    """Claim a run folder, for all processes of this command.

    Raises:
        Taken: Another command has it.
    """
    import torch

    from ssl_bench.runtime.distributed import all_reduce_sum, rank

    refusal = None
    if rank() == 0:
        try:
            held.enter_context(claimed(folder))
        except Taken as error:
            refusal = str(error)
    if float(all_reduce_sum(torch.tensor([float(refusal is not None)], device=device))) > 0:
        raise Taken(refusal or f"{folder} is taken, as the first process says")


def _evaluate_one(
    given: Evaluate, measured: Measurement, opened: "dict[str, Dataset]", device: str, alone: bool, held: ExitStack
) -> Path:
    """Evaluate the networks of a target on its images; gives its folder.

    Args:
        given: The command.
        measured: The target and its images.
        opened: Images that are open already; these are put there.
        device: Where networks run.
        alone: Whether it is all that was asked for: then it is an error if no protocol can be run on it.
        held: Gets the claim of the folder.
    """
    from ssl_bench.runtime.distributed import rank
    from ssl_bench.tracking.wandb_results import logged

    target, options = measured.target, measured.data
    image_files, key = images_files(options), repr(options)  # looked at before they are read
    if key not in opened:
        opened[key] = _open(options)
    asked = {name: instance(given, name) for name in given.protocols}
    lacking = {name: why for name, each in asked.items() if (why := opened[key].lacks(each.needs)) is not None}
    if asked and len(lacking) == len(asked):
        name, why = next(iter(lacking.items()))
        raise UserError(f"--protocols {name}: {why}")
    if target.folder:
        _hold(held, target.folder, device)
    main = read_run(target.folder).branch if target.folder else ""
    folder, networks = prepare_target(target, opened[key], options, given, device)
    if not target.folder:
        _hold(held, folder, device)
    if rank() == 0:
        clear_temporary(folder, elsewhere_after=DAY)
    data = opened[key].without(read_left_out(folder))
    for place, frozen in enumerate(networks):
        branch = str(frozen.identity["branch"])
        digest = network_files(target, branch, main)
        evaluations = asked
        if place > 0:
            say(f"{branch}:")
            evaluations = {name: each for name, each in asked.items() if not each.trains}
        refused = {n: why for n, why in lacking.items() if n in evaluations}
        refused |= {n: why for n, each in evaluations.items() if (why := each.refusal(frozen)) is not None}
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
    if rank() == 0:
        with logged(folder, given.wandb):  # all that the folder holds by now
            pass
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
