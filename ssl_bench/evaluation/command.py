"""All targets of one `evaluate` command through its protocols."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ssl_bench.config import registry
from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import Evaluate
from ssl_bench.evaluation.networks import prepare_target
from ssl_bench.evaluation.targets import Target, data_options
from ssl_bench.records.run import read_run

if TYPE_CHECKING:
    from ssl_bench.data.dataset import Dataset
    from ssl_bench.evaluation.feature_extractor import FeatureExtractor


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
            folder, networks = prepare_target(target, opened[key], options, given, device)
            for place, frozen in enumerate(networks):
                evaluations = {name: _instance(given, name) for name in given.protocols}
                if place > 0:
                    say(f"{frozen.identity['branch']}:")
                    evaluations = {name: each for name, each in evaluations.items() if not each.trains}
                evaluate(frozen, opened[key], _accepted(evaluations, frozen, given, target), folder, force=given.force)
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


def _open(options: DataOptions) -> "Dataset":
    from ssl_bench.data.dataset import load_dataset

    data = load_dataset(options)
    data.require_labels()
    return data


def _instance(given: Evaluate, name: str) -> Any:
    cls = registry.load(given.classes[name])
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.protocols[name].items()})
    except ValueError as error:
        raise UserError(f"--protocols {name}: {error}") from None
