"""What tells blocks, rows and columns of a table apart."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ssl_bench.leaderboard.table import DEFAULT_BY, By, Key, checked_by
from ssl_bench.records.benchmark import BenchmarkInfo
from ssl_bench.records.result import Result
from ssl_bench.records.store import Run

# Options that block and column show already, or of where a run happened rather than what it was. A batch is of one
# device, so their number is part of what a run was: `_devices` counts them.
NOT_IN_NAMES = (
    *("seed", "method.name", "backbone", "data.name", "data.root", "data.download", "data.num_workers", "data.strict"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.log_every_n_steps"),
    *("trainer.checkpoint_minutes", "trainer.requeue", "trainer.loggers", "trainer.profiler"),
    *("trainer.checkpoint_activations", "trainer.deterministic", "trainer.benchmark"),
    *("trainer.detect_anomaly", "trainer.enable_model_summary"),
    *("probe", "runs", "wandb"),
)


def architecture_of(run: Run) -> str | None:
    backbone = run.info.backbone
    return None if backbone is None else key_of(backbone.name, set_options(backbone.args))


def budget_of(run: Run, by: By) -> float | None:
    info = run.info
    if info.epochs is None or by == "nothing":
        return None
    return float(f"{info.epochs * (info.views_per_image if by == 'views' else 1):.4g}")


def budget_text(budgets: Collection[float | None], by: By) -> str:
    """The budgets of what was pretrained, in words."""
    if not budgets:
        return "no pretraining"
    if by == "nothing" and (len(budgets) > 1 or None in budgets):
        return "budgets not matched" if len(budgets) > 1 else "unknown budgets"
    (budget,) = budgets
    if budget is None:
        return "unknown budget: budgets may differ, so nothing is ranked"
    return f"{budget:g} epochs" if by == "epochs" else f"{budget:g} epochs x views"


def row_key(run: Run) -> str:
    """Equal for runs of one row; an option that is not given is one that an older run does not have yet."""
    return key_of(run.info.kind, run.info.method, set_options(row_options(run)))


def row_options(run: Run, backbone: bool = False) -> dict[str, Any]:
    """Options that tell a run from others of its method, flat: none that say where it ran, nor its seed.

    Args:
        run: The run, with the results of one of its networks.
        backbone: Whether those of the backbone count: within a block they are all the same.
    """
    if run.info.kind == "baseline":
        return {}
    branch = run.results[0].branch
    elsewhere = [name for name in NOT_IN_NAMES if not (backbone and name == "backbone")]
    options = {
        name: value
        for name, value in flat(run.info.options).items()
        if not any(name == other or name.startswith(f"{other}.") for other in elsewhere)
    }
    devices = _devices(run)
    return options | ({"branch": branch} if branch else {}) | ({"devices": devices} if devices else {})


def _devices(run: Run) -> int | None:
    """On how many the run was pretrained: as it was asked for, or as many as its images make; None when unknown."""
    known = flat(run.info.options)
    asked = known.get("trainer.devices")
    nodes = known.get("trainer.num_nodes", 1)
    if isinstance(asked, str) and "," in asked:  # "0,2" are two
        asked = len([name for name in asked.split(",") if name.strip()])
    asked = int(asked) if isinstance(asked, int | str) and re.fullmatch("[0-9]{1,9}", str(asked)) else 0
    if asked > 0 and isinstance(nodes, int):
        return asked * nodes
    batch, accumulated = known.get("data.batch_size"), known.get("trainer.accumulate_grad_batches", 1)
    if not (isinstance(batch, int) and isinstance(accumulated, int) and run.info.steps and run.info.images_seen):
        return None
    return max(1, round(run.info.images_seen / (run.info.steps * batch * accumulated or 1)))


def column_key(result: Result) -> Key:
    """What must agree for two numbers to stand in one column."""
    options = {name: value for name, value in column_options(result).items() if not name.startswith("geometry.")}
    common = key_of(result.protocol, result.data.identity, is_oracle(result), options)
    return common, key_of(result.primary, result.geometry)


def column_options(result: Result) -> dict[str, Any]:
    counts = {name: split.count for name, split in result.splits.items()}
    return flat({**result.options, "version": result.version, "geometry": result.geometry, "images": counts})


def is_oracle(result: Result) -> bool:
    return result.selected.selected_on_test


def key_of(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def set_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(options).items() if value is not None}


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{optim: {base_lr: 1}}` -> `{optim.base_lr: 1}`."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def row_names(firsts: Sequence[Run]) -> list[str]:
    """A name for each row, by one of its runs: the method, and the options in which it differs from its namesakes."""
    methods, options = [run.info.method for run in firsts], [row_options(run) for run in firsts]
    names = tell_apart(methods, options)
    if len(set(names)) == len(names):
        return names
    budgets = [{"epochs x views": budget_of(run, "views")} for run in firsts]
    return tell_apart(methods, [own | budget for own, budget in zip(options, budgets, strict=True)])


def chosen_by(by: str | None, benchmark: BenchmarkInfo | None) -> By:
    """How tables of runs are grouped: as asked for, or else as the benchmark that made them was, or by default.

    Raises:
        UserError: There is no such budget.
    """
    return checked_by(by if by is not None else benchmark.by if benchmark else DEFAULT_BY)


def tell_apart(names: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names, with in brackets the options in which those of the same name differ."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, values in zip(names, options, strict=True):
        groups[name].append(values)
    differing = {name: _differing(group) for name, group in groups.items()}
    return [
        name + bracketed({short: values[option] for option, short in differing[name].items() if option in values})
        for name, values in zip(names, options, strict=True)
    ]


def _differing(options: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Options that are not the same everywhere -> the last part of their name, where that is enough."""
    known = sorted({option for values in options for option in values})
    differing = [option for option in known if len({key_of(values.get(option)) for values in options}) > 1]
    last = [option.rpartition(".")[2] for option in differing]
    return {option: short if last.count(short) == 1 else option for option, short in zip(differing, last, strict=True)}


def bracketed(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in options.items())})" if options else ""
