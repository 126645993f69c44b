"""Is there a valid result already? Torch-free.

A result is valid for what is asked if it agrees with it in all of IDENTITY. Which images and which weights there are is
known once they are loaded, or without that from `input_files` as long as no file has changed: `evaluate` answers from
records alone where these say everything. A plan, which has not looked, takes images to be those that the run saw.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssl_bench.config.class_constants import class_constant
from ssl_bench.config.options import BackboneOptions, DataOptions
from ssl_bench.console import say
from ssl_bench.data.files.content import content_of, find_run_folder
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import Evaluate
from ssl_bench.evaluation.input_files import (
    Inputs,
    images_files,
    images_key,
    network_files,
    read_inputs,
    refusal_key,
    with_left_out,
)
from ssl_bench.evaluation.targets import (
    IMAGES,
    PUBLISHED,
    Measurement,
    Target,
    baselines_folder,
    measurements,
    several_data_sets,
)
from ssl_bench.records.result import Result, read_result, recorded_stem
from ssl_bench.records.run import DataRecord, RunInfo, read_run
from ssl_bench.runtime.launch import several_processes

# Results that agree in these are of the same number.
IDENTITY = ("protocol", "version", "options", "data", "splits", "geometry", "branch", "backbone")
PLANNED = ("protocol", "version", "options", "data", "branch")  # of them, what a plan knows
Answer = Result | str | None  # a result, why there cannot be one, or neither


@dataclass(frozen=True)
class Recorded:
    """What is recorded of a target on its images.

    Args:
        folder: Of its run.
        answers: Branch -> protocol -> answer; the default one first.
    """

    folder: Path
    answers: dict[str, dict[str, Answer]]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be evaluated."""
        return all(answer is not None for protocols in self.answers.values() for answer in protocols.values())


def valid_result(run_dir: Path, wanted: Result, same: Sequence[str] = IDENTITY) -> Result | None:
    """The result of the same number, if it is there with its predictions.

    Args:
        run_dir: The run's folder.
        wanted: What is known of a result before it is.
        same: In what the two must agree.
    """
    stem = recorded_stem(run_dir, read_run(run_dir), wanted)
    path = run_dir / "results" / f"{stem}.json"
    if not path.is_file() or not (run_dir / "predictions" / f"{stem}.parquet").is_file():
        return None
    try:
        found = read_result(path)
    except UserError as error:
        say(f"{error}; evaluating again")
        return None
    return found if all(_agree(getattr(found, name), getattr(wanted, name)) for name in same) else None


def _agree(one: Any, other: Any) -> bool:
    return one.same_images(other) if isinstance(one, DataRecord) else bool(one == other)


def remaining(given: Evaluate) -> list[str]:
    """Names of the protocols that some network of some target has no result of, as far as a plan can tell."""
    if given.force:
        return list(given.protocols)
    found = [_planned(given, each) for each in measurements(given.targets, given.data)]
    return [name for name in given.protocols if not all(each and _has(each, name) for each in found)]


def answer_from_records(given: Evaluate) -> Iterator[str] | None:
    """The lines of an `evaluate` that has nothing to evaluate, each folder when it is said; None if it has.

    Nothing is loaded: files that are the same as when the results were made are known by their digests.
    """
    if several_processes():  # which would have to agree
        return None
    found = _complete(given)
    return None if found is None else _said(given, measurements(given.targets, given.data), found)


def all_recorded(given: Evaluate) -> bool:
    """Whether an `evaluate` has nothing to evaluate: every result is there, and no file has changed since."""
    return _complete(given) is not None


def _complete(given: Evaluate) -> list[Recorded] | None:
    """What is recorded, if nothing is left to be evaluated."""
    if given.force:
        return None
    try:
        found = [_unchanged(given, each) for each in measurements(given.targets, given.data)]
    except UserError:
        return None  # whatever it is, evaluating says it
    whole = [each for each in found if each is not None and each.complete]
    return whole if len(whole) == len(found) else None


def _said(given: Evaluate, measured: Sequence[Measurement], found: Sequence[Recorded]) -> Iterator[str]:
    from ssl_bench.tracking.wandb_results import logged

    if line := several_data_sets(measured):
        say(line)
    for number, (each, recorded) in enumerate(zip(measured, found, strict=True), 1):
        say(f"[{number}/{len(measured)}] {each.target.name}")
        for place, (branch, answers) in enumerate(recorded.answers.items()):
            if place > 0:
                say(f"{branch}:")
            for protocol, answer in answers.items():
                if isinstance(answer, Result):
                    say(f"{protocol}: {in_words(answer)}, recorded before")
                    warn_of_boundary(answer)
                else:
                    say(f"{protocol}: left out: {answer}")
        with logged(recorded.folder, given.wandb):
            pass
        yield str(recorded.folder)


def in_words(result: Result) -> str:
    """A result's number with its interval, or what it diagnosed."""
    if result.value is None or result.interval is None:
        return ", ".join(f"{name} {value:.4g}" for name, value in result.diagnostics.items())
    low, high = result.interval
    return f"{100 * result.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({result.primary})"


def warn_of_boundary(result: Result) -> None:
    """Say so where a wider grid may give more."""
    if result.selected.at_grid_boundary and not result.selected.boundary_tied:
        say(f"{result.protocol}: {result.selected.chosen} lies at the end of its grid: widen it")


def _has(found: Recorded, protocol: str) -> bool:
    return all(answers[protocol] is not None for answers in found.answers.values() if protocol in answers)


def _planned(given: Evaluate, measured: Measurement) -> Recorded | None:
    """What is recorded if images and weights are those that the run saw; None where it was never evaluated on these."""
    folder = _folder(given, measured)
    if folder is None:
        return None
    info = read_run(folder)
    own, asked = info.options.get("data", {}), asdict(measured.data)
    if any(asked[name] != own.get(name) for name in IMAGES):
        return None  # other images than those whose content its record tells
    answers: dict[str, dict[str, Answer]] = {}
    for branch, protocol, wanted in _wanted(given, measured.target, folder, info, info.data):
        answers.setdefault(branch, {})[protocol] = valid_result(folder, wanted, PLANNED)
    return Recorded(folder, answers)


def _unchanged(given: Evaluate, measured: Measurement) -> Recorded | None:
    """What is recorded, if no file has changed since; None where that cannot be said."""
    folder = _folder(given, measured)
    inputs = read_inputs(folder) if folder else Inputs()
    images = inputs.images.get(images_key(measured.data))
    if folder is None or images is None or images.files != with_left_out(images_files(measured.data), folder):
        return None
    info = read_run(folder)
    answers: dict[str, dict[str, Answer]] = {}
    for branch, protocol, wanted in _wanted(given, measured.target, folder, info, images.data):
        files = network_files(measured.target, branch, info.branch)
        network = images.networks.get(branch)
        answer: Answer = None
        if files is not None:
            answer = images.refusals.get(refusal_key(protocol, wanted.version, wanted.options, files))
        if network is not None and network.files == files:
            whole = replace(wanted, splits=images.splits, geometry=network.geometry, backbone=network.backbone)
            answer = valid_result(folder, whole) or answer
        answers.setdefault(branch, {})[protocol] = answer
    return Recorded(folder, answers)


def _wanted(
    given: Evaluate, target: Target, folder: Path, info: RunInfo, data: DataRecord
) -> Iterator[tuple[str, str, Result]]:
    """Branch, protocol, and what is known of its result from options alone."""
    for place, branch in enumerate(_branches(folder, target, info.branch, given.branch)):
        for protocol, options in given.protocols.items():
            found = given.classes[protocol]
            if place == 0 or not class_constant(found, "trains", False):
                number = class_constant(found, "version", 1)
                plain = json.loads(json.dumps(options))  # tuples become lists, as they do in the file
                yield branch, protocol, Result(protocol, number, plain, "", None, None, 0, data, branch=branch)


def _branches(folder: Path, target: Target, main: str, wanted: str | None) -> Iterator[str]:
    """Names of the networks that are evaluated, as results have them; the default one first."""
    if target.baseline:
        yield target.baseline
    elif wanted and main:
        yield wanted
    else:
        yield main or "encoder"
        yield from (file.stem.removeprefix("backbone-") for file in sorted(folder.glob("backbone-*.safetensors")))


def _folder(given: Evaluate, measured: Measurement) -> Path | None:
    """A target's folder, if there is a record in it."""
    folder = measured.target.folder or _baseline_folder(given.runs, measured.target, measured.data)
    return folder if folder is not None and (folder / "run.json").exists() else None


def _baseline_folder(runs: Path, target: Target, data: DataOptions) -> Path | None:
    """Where a baseline's results are, if it was evaluated; its network may have taken its size from the images."""
    config: dict[str, Any] = {"method": {"name": target.baseline}, "backbone": {"name": "none"}, "seed": target.seed}
    config["data"] = asdict(data)
    try:
        content = content_of(data)
    except UserError:
        return None  # its images are not there: an evaluation says so
    runs = baselines_folder(target, runs)
    if target.baseline == PUBLISHED:
        return None  # whose folder is named after weights that must be read first
    if target.backbone is None:
        return find_run_folder(runs, config, content)
    config["backbone"] = asdict(BackboneOptions(**target.backbone))
    start = find_run_folder(runs, config, content).name[: -len("01234567")]
    for record in runs.glob("*/run.json"):
        if record.parent.name.startswith(start):
            size = read_run(record.parent).options["backbone"]["img_size"]
            config["backbone"]["img_size"] = target.backbone.get("img_size") or size
            if find_run_folder(runs, config, content).name == record.parent.name:
                return record.parent
    return None
