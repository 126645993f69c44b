"""Is there a valid result already? Torch-free.

Two results that agree in SAME are of the same number. What is known before images and weights are read is BEFOREHAND: a
plan takes both to be those that the run saw, and `evaluate` then looks at them.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import Evaluate
from ssl_bench.evaluation.targets import Target, data_options
from ssl_bench.records.result import Result, read_result, recorded_stem
from ssl_bench.records.run import RunInfo, read_run
from ssl_bench.records.run_folder import run_folder

# Two results that agree in these are of the same number.
SAME = ("protocol", "version", "options", "data", "splits", "geometry", "branch", "backbone")
BEFOREHAND = ("protocol", "version", "options", "data", "branch")  # what is known before images and weights are read
IMAGES = ("name", "root", "image_size", "val_fraction", "split_seed")  # options that say which they are


def recorded(run_dir: Path, blank: Result, same: tuple[str, ...] = SAME) -> Result | None:
    """The result of the same number, if it is there with its predictions.

    Args:
        run_dir: The run's folder.
        blank: What is known of a result before it is.
        same: In what the two must agree.
    """
    stem = recorded_stem(run_dir, read_run(run_dir), blank)
    path = run_dir / "results" / f"{stem}.json"
    if not path.is_file() or not (run_dir / "predictions" / f"{stem}.parquet").is_file():
        return None
    try:
        found = read_result(path)
    except UserError as error:
        say(f"{error}; evaluating again")
        return None
    return found if all(getattr(found, name) == getattr(blank, name) for name in same) else None


def remaining(given: Evaluate) -> list[str]:
    """Names of the protocols that some network of some target has no result of."""
    seen = [None if given.force else _seen(given, target) for target in given.targets]
    return [name for name in given.protocols if not all(found and _is_recorded(given, name, *found) for found in seen)]


def _seen(given: Evaluate, target: Target) -> tuple[Path, RunInfo, list[str]] | None:
    """A target's folder, record and networks; None where it was never evaluated on these images."""
    folder = target.folder or _baseline_folder(target, given)
    if folder is None or not (folder / "run.json").exists():
        return None
    info = read_run(folder)
    own = info.options.get("data", {})
    asked = asdict(data_options(own, given.data))
    if any(asked[name] != own.get(name) for name in IMAGES):
        return None  # other images than those whose content its record tells
    return folder, info, list(_branches(folder, target, info.branch, given.branch))


def _is_recorded(given: Evaluate, protocol: str, folder: Path, info: RunInfo, branches: list[str]) -> bool:
    found = given.classes[protocol]
    version, trains = _constant(found, "version", 1), _constant(found, "trains", False)
    options = json.loads(json.dumps(given.protocols[protocol]))
    blanks = (
        Result(protocol, version, options, "", None, None, 0, info.data, branch=branch)
        for branch in branches[: 1 if trains else None]
    )
    return all(recorded(folder, blank, BEFOREHAND) for blank in blanks)


def _branches(folder: Path, target: Target, speaks: str, wanted: str | None) -> Iterator[str]:
    """Names of the networks that are evaluated, as results have them; the one that speaks for its run first."""
    if target.baseline:
        yield target.baseline
    elif wanted and speaks:
        yield wanted
    else:
        yield speaks or "encoder"
        yield from (file.stem.removeprefix("backbone-") for file in sorted(folder.glob("backbone-*.safetensors")))


def _baseline_folder(target: Target, given: Evaluate) -> Path | None:
    """Where a baseline's results are, if it was evaluated; its network may have taken its size from the images."""
    config: dict[str, Any] = {"method": {"name": target.baseline}, "backbone": {"name": "none"}, "seed": target.seed}
    config["data"] = asdict(data_options({}, given.data))
    if target.backbone is None:
        return run_folder(given.runs, config)
    config["backbone"] = asdict(BackboneOptions(**target.backbone))
    start = run_folder(given.runs, config).name[: -len("01234567")]
    for record in given.runs.glob("*/run.json"):
        if record.parent.name.startswith(start):
            size = read_run(record.parent).options["backbone"]["img_size"]
            config["backbone"]["img_size"] = target.backbone.get("img_size") or size
            if run_folder(given.runs, config).name == record.parent.name:
                return record.parent
    return None


@cache
def _constant(found: registry.Found, name: str, default: Any) -> Any:
    """A constant of a class or of one that it is made from, read from their text: importing them would take seconds."""
    source = registry.source_of(found.module)
    if source is None:
        return getattr(registry.load(found), name, default)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == found.class_name), None)
    for node in cls.body if cls else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return ast.literal_eval(node.value) if node.value else default
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    imported = {a.asname or a.name: n.module for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    for given in cls.bases if cls else ():
        base = given.value if isinstance(given, ast.Subscript) else given  # `Evaluation[Head]`
        module = imported.get(base.id) if isinstance(base, ast.Name) else None
        if isinstance(base, ast.Name) and module and module.startswith("ssl_bench"):
            value = _constant(registry.Found(found.name, module, base.id), name, None)
            if value is not None:
                return value
    return default
