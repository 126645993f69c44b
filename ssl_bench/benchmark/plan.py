"""From a benchmark file to the processes it takes: what to pretrain, and what to evaluate after that. Torch-free.

A method's entry may have followers, `then: [...]`: runs on the same images, network and seed that start from its run
(`--init`), or hand its folder to an option of theirs (`method: {teacher: $previous}`), and may have followers too.
`axes: {method.mask_ratio: [0.5, 0.75]}` varies any option, `axes: [{...}, {...}]` one group of options after the other;
`axes: {random: 20, ...}` and `{optuna: 20, ...}` draw points instead (`sweep.py`).
A little above 300 lines, as one file format is read in one module.
"""

import copy
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssl_bench.benchmark.job import Job
from ssl_bench.benchmark.sweep import jobs_of_sweep, read_sweep
from ssl_bench.config import class_paths, registry
from ssl_bench.config.constraints import Seed, checked
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.layers import flatten
from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.content import Content, folder_of_run
from ssl_bench.data.files.location import located
from ssl_bench.data.image_summary import image_summary
from ssl_bench.errors import UserError, near
from ssl_bench.evaluation.evaluate_config import parse_evaluate
from ssl_bench.evaluation.targets import NETWORKLESS, Target, data_options, parse_target
from ssl_bench.records.run_folder import NOT_IDENTITY, run_folder

DEFAULT_PROTOCOLS = ("knn", "linear")
BASELINES = ("random", *NETWORKLESS)
KEYS = ("methods", "data", "backbones", "seeds", "axes", "fit", "evaluate", "baselines", "figures", "by")
PREVIOUS = "$previous"  # as an option's value: the folder of the run before


@dataclass(frozen=True)
class Stage:
    """An entry of `methods`.

    Args:
        options: Flat, as flags are.
        then: What starts from its run.
    """

    options: dict[str, Any]
    then: "tuple[Stage, ...]" = ()


def plan(
    tree: Mapping[str, Any], runs: Path, extra: Sequence[str] = (), named_classes: Sequence[str] = ()
) -> list[Job]:
    """Jobs of a benchmark file: what to pretrain, an evaluation for each run and each baseline, pictures if asked for.

    Args:
        tree: The file.
        runs: Where run folders live.
        extra: Flags of every job.
        named_classes: Class paths that the file may have, since the user named them.

    Raises:
        UserError: A key, method, option or evaluation that there is not, or a class that only the file names.
    """
    for key in tree:
        if key not in KEYS:
            raise UserError(f"a benchmark file has no key {key!r}{near(key, KEYS)} ({', '.join(KEYS)})")
    methods, data = _stages(_list(tree, "methods", None)), _entries(tree, "data")
    backbones, axes = _entries(tree, "backbones"), tree.get("axes") or {}
    sweep = read_sweep(axes) if isinstance(axes, Mapping) else None
    seeds = [{"seed": seed} for seed in _list(tree, "seeds", [0])]
    points = _points(tree) if sweep is None else seeds
    shared = flatten(tree.get("fit") or {}, "fit")
    fits: dict[Path | None, Job] = {}
    evaluations: dict[str, Job] = {}
    known: dict[DataOptions, Content | None] = {}  # images are looked at once
    parsed: dict[tuple[str, ...], dict[str, Any]] = {}
    for images in data:
        jobs: dict[Path | None, Job] = {}
        chosen: dict[Path | None, Job] = {}
        for stage, backbone in itertools.product(methods, backbones):
            given = {**shared, **images, **backbone, "runs": str(runs)}

            def chain(point: Mapping[str, Any], stage: Stage = stage, given: dict[str, Any] = given) -> list[Job]:
                for options in (given, point, *_options(stage)):
                    class_paths.check(options, dict.fromkeys(options, "the benchmark file"), named_classes)
                return list(_jobs(stage, given, point, runs, extra, None, known, parsed))

            if sweep is None:
                found = [job for point in points for job in chain(point)]
                chosen |= {job.folder: job for job in found if job.folder not in chosen}
            else:
                found, best = jobs_of_sweep(sweep, seeds, chain)
                chosen |= {job.folder: job for job in best}
            for job in found:
                jobs.setdefault(job.folder, job)  # two chains may begin with the same run
        _check_protocols(tree, named_classes)
        for job in _evaluations(tree, images, list(chosen.values()), runs, extra) if chosen else ():
            evaluations.setdefault(_target(job), job)  # two entries of `data` may be the same images
        fits |= {folder: job for folder, job in jobs.items() if folder not in fits}
    evaluated = _named_apart(list(evaluations.values()))
    drawn = tree.get("figures", False)
    if not isinstance(drawn, bool):
        raise UserError(f"a benchmark file's figures are true or false, not {drawn!r}")
    first = [job for job in fits.values() if job.config and job.config["seed"] == points[0]["seed"]]
    return [*fits.values(), *evaluated, *_figures(tree, first if drawn else [], evaluated, extra)]


def _options(stage: Stage) -> Iterator[dict[str, Any]]:
    """A stage's options and its followers'."""
    yield stage.options
    for follower in stage.then:
        yield from _options(follower)


def _check_protocols(tree: Mapping[str, Any], named: Sequence[str]) -> None:
    protocols = (tree.get("evaluate") or {}).get("protocols", DEFAULT_PROTOCOLS)
    class_paths.check_evaluations([str(name) for name in protocols], "the benchmark file", named)


def _named_apart(jobs: Sequence[Job]) -> list[Job]:
    """Evaluations of which no two have the same title, or write the same log."""
    times = Counter(job.log for job in jobs)
    apart = []
    for job in jobs:
        if times[job.log] > 1:
            own = [flag.removeprefix("--data.") for flag in job.argv if flag.startswith("--data.")]
            mark = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]
            job = replace(job, title=f"{job.title}  {' '.join(own)}", log=f"{job.log}-{mark}")
        apart.append(job)
    return apart


def _points(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every entry of `methods` is run with: each seed with each value of the axes."""
    groups = tree.get("axes") or {}
    points = []
    for axes in groups if isinstance(groups, list) else [groups]:
        if not isinstance(axes, Mapping):
            raise UserError("a benchmark file's axes are `option: [values]`, or a list of such groups")
        axes = {"seed": _list(tree, "seeds", [0]), **axes}
        for option, values in axes.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"axes: {option} needs a list of values, `{option}: [...]`")
        points += [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return points


def _jobs(
    stage: Stage,
    given: Mapping[str, Any],
    point: Mapping[str, Any],
    runs: Path,
    extra: Sequence[str],
    before: Job | None,
    known: dict[DataOptions, Content | None],
    parsed: dict[tuple[str, ...], dict[str, Any]],
) -> Iterator[Job]:
    """A stage's job and its followers'; what an axis varies is varied in the first, and in all if it is the seed's."""
    if "backbone.name" in stage.options:
        given = {name: value for name, value in given.items() if not name.startswith("backbone.")}
    own = point if before is None else {name: value for name, value in point.items() if name == "seed"}
    options = {**given, **stage.options, **own}
    network = {name: value for name, value in options.items() if name.startswith("backbone.")}
    method = options["method.name"]
    previous = None if before is None else str(before.folder)
    if previous is not None and PREVIOUS not in options.values():
        options["init"] = previous
    options = {name: previous if value == PREVIOUS else value for name, value in options.items()}
    argv = tuple(f"--{key}={_text(value)}" for key, value in options.items() if value is not None)
    config = _config(argv, options.get("seed"), parsed)
    if "backbone" not in config:
        what = f"methods: {method} makes a tokenizer, which is not evaluated"
        raise UserError(f"{what}: run `ssl-bench fit` for it first, and name its folder as a tokenizer")
    parts = [method, config["data"]["name"], config["backbone"]["name"], f"seed {config['seed']}"]
    parts += [f"{name}={_text(value)}" for name, value in own.items() if name != "seed"]
    if before is not None:
        parts += [f"{name}={value}" for name, value in stage.options.items() if name.startswith("data.")]
        parts.append(f"after {before.folder.name if before.folder else ''}")
    start = json.dumps([config["backbone"], config["seed"]], sort_keys=True)
    try:
        folder = folder_of_run(runs, config, known)
    except UserError:  # its images are not there: its process says so
        folder = run_folder(runs, config)
    after = None if before is None else before.folder
    job = Job("  ".join(parts), ("fit", *argv, *extra), folder.name, folder, after, start, config)
    yield job
    for follower in stage.then:
        yield from _jobs(follower, {**given, **network}, point, runs, extra, job, known, parsed)


def _config(argv: Sequence[str], seed: Any, parsed: dict[tuple[str, ...], dict[str, Any]]) -> dict[str, Any]:
    """Configuration of a run. Parsing takes 50 ms: runs that differ in their seed alone are parsed once."""
    but_seed = tuple(flag for flag in argv if not flag.startswith("--seed="))
    if but_seed in parsed and type(seed) is int:
        with suppress(ValueError):
            return {**copy.deepcopy(parsed[but_seed]), "seed": checked(Seed, seed)}
    parsed[but_seed] = parse_fit(argv, look=image_summary, locate=located).config
    return parsed[but_seed]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _evaluations(
    tree: Mapping[str, Any], images: Mapping[str, Any], jobs: Sequence[Job], runs: Path, extra: Sequence[str]
) -> list[Job]:
    """A process for each run, for each random network that some started from, for the pixels, and for k-means."""
    options = dict(tree.get("evaluate") or {})
    protocols = options.pop("protocols", DEFAULT_PROTOCOLS)
    for protocol in protocols:
        registry.find("evaluations", protocol)
    flags = [f"--{key}={_text(value)}" for key, value in {**images, **flatten(options, "evaluate")}.items()]
    flags = [f"--protocols={','.join(protocols)}", f"--runs={runs}", *flags, *extra]
    parsed = parse_evaluate(["pixels", *flags])  # a wrong option is found now, not after days of pretraining
    data_options({}, parsed.data)

    def evaluation(name: str, target: Target, *own: str) -> Job:
        title = f"evaluate {name} on {images['data.name']}"
        argv, log = ("evaluate", target.name, *own, *flags), title.replace(" ", "-").replace(":", "-")
        return Job(title, argv, log, after=target.folder, asked=replace(parsed, targets=[target]))

    found = [evaluation(job.log, Target(str(job.folder), job.folder)) for job in jobs]
    for baseline in _list(tree, "baselines", ["random", "pixels"], empty=True):
        if baseline not in BASELINES:
            raise UserError(f"no baseline {baseline!r}{near(str(baseline), BASELINES)} ({', '.join(BASELINES)})")
        if baseline == "pixels":
            found.append(evaluation("pixels", parsed.targets[0]))
            continue
        if baseline == "kmeans-patches":
            seeds = dict.fromkeys(int(json.loads(job.network)[1]) for job in jobs)
            found += [evaluation(name, parse_target(name, {}, 0)) for name in (f"{baseline}@{seed}" for seed in seeds)]
            continue
        for number, network in enumerate(dict.fromkeys(job.network for job in jobs), 1):  # each once
            backbone, seed = json.loads(network)
            own = [f"--backbone.{k}={_text(v)}" for k, v in backbone.items() if k != "name" and v is not None]
            target = Target(f"random:{backbone['name']}@{seed}", None, "random", backbone, seed)
            found.append(evaluation(f"random:{number}", target, *own))
    return found


def _figures(
    tree: Mapping[str, Any], runs: Sequence[Job], evaluations: Sequence[Job], extra: Sequence[str]
) -> list[Job]:
    """A process for the pictures of each run, once its evaluation has computed the features and is gone from W&B."""
    device = (tree.get("evaluate") or {}).get("device")
    flags = [*([f"--device={device}"] if device else []), *extra]
    behind = {job.after: job for job in evaluations}
    return [
        Job(
            f"figures of {run.log}",
            ("figures", str(run.folder), *flags),
            f"figures-of-{run.log}",
            after=run.folder,
            behind=behind[run.folder],
        )
        for run in runs
    ]


def _target(job: Job) -> str:
    """What tells an evaluation from others of a plan: of what, on which images."""
    assert job.asked is not None
    (target,) = job.asked.targets
    data = asdict(data_options({}, job.asked.data))
    images = {name: value for name, value in data.items() if ("data", name) not in NOT_IDENTITY}
    return json.dumps([target.name, target.backbone, images], sort_keys=True)


def _stages(entries: Sequence[Any]) -> list[Stage]:
    """Entries of `methods`, or of a `then`, with their followers."""
    stages = []
    for entry in entries:
        followers: list[Stage] = []
        if isinstance(entry, Mapping) and "then" in entry:
            followers = _stages(_list(entry, "then", None))
            entry = {name: value for name, value in entry.items() if name != "then"}
        (options,) = _entries({"methods": [entry]}, "methods")
        stages.append(Stage(options, tuple(followers)))
    return stages


def _entries(tree: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """`[mae, {name: simclr, optim: {base_lr: 1}}]` -> flat options of each entry."""
    group = {"methods": "method", "data": "data", "backbones": "backbone"}[key]
    entries: list[dict[str, Any]] = []
    for entry in _list(tree, key, [None] if key == "backbones" else None):
        if isinstance(entry, Mapping):
            options = dict(entry)
            if "name" not in options:
                raise UserError(f"{key}: an entry with options needs a name, {dict(entry)} has none")
            name = options.pop("name")
            options = options if key == "methods" else {group: options}
            entries.append({f"{group}.name": name, **flatten(options, key)})
        else:
            entries.append({} if entry is None else {f"{group}.name": entry})
    return [located(entry) for entry in entries]


def _list(tree: Mapping[str, Any], key: str, default: list[Any] | None, empty: bool = False) -> list[Any]:
    value = tree.get(key, default)
    if not isinstance(value, list) or not (value or empty):
        raise UserError(f"a benchmark file needs `{key}: [...]`")
    return value
