"""Methods x data x backbones x seeds: pretrain what is missing, evaluate all, make the leaderboard. Torch-free.

Each run is a process of its own, `ssl-bench fit ...`: one that fails does not stop the others, one that is done is
skipped, and after a kill the same command goes on.

A method's entry may have followers, `then: [...]`: runs on the same images, network and seed that start from its run
(`--init`), or hand its folder to an option of theirs (`method: {teacher: $previous}`), and may have followers too.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench import registry
from ssl_bench.configuration import Parser, common_arguments, flatten, parse_fit, read_yaml, say, split_argv
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.table import checked_by
from ssl_bench.results import read_run
from ssl_bench.run_folder import run_folder

DEFAULT = "demo"
DEFAULT_PROTOCOLS = ("knn", "linear")
KEYS = ("methods", "data", "backbones", "seeds", "fit", "evaluate", "baselines", "by")
PREVIOUS = "$previous"  # as an option's value: the folder of the run before


@dataclass(frozen=True)
class Job:
    """One process.

    Args:
        title: For people.
        argv: Its arguments after `ssl-bench`.
        folder: The run folder it fills; None for an evaluation.
        after: The run folder that it needs finished, if any.
        network: What tells the network that it starts with from others'.
    """

    title: str
    argv: tuple[str, ...]
    folder: Path | None
    after: Path | None = None
    network: str = ""

    @property
    def done(self) -> bool:
        """Whether its run is finished."""
        return self.folder is not None and _finished(self.folder)


@dataclass(frozen=True)
class Stage:
    """An entry of `methods`.

    Args:
        options: Flat, as flags are.
        then: What starts from its run.
    """

    options: dict[str, Any]
    then: "tuple[Stage, ...]" = ()


@dataclass(frozen=True)
class Benchmark:
    """A parsed `benchmark` command.

    Args:
        fits: What to pretrain.
        evaluations: What to evaluate when that is done, a process per data set.
        runs: Where run folders live.
        jobs: Processes at a time.
        dry_run: Only print the plan.
        by: Budget that a block of the leaderboard shares.
    """

    fits: list[Job]
    evaluations: list[Job]
    runs: Path
    jobs: int
    dry_run: bool
    by: str


def parse_benchmark(argv: Sequence[str]) -> Benchmark:
    """Plan of a `benchmark` command line.

    Raises:
        UserError: The file is missing, or names something there is not.
    """
    files, _, flags = split_argv(argv)
    parser = Parser(prog="ssl-bench benchmark", description=(__doc__ or "").partition("\n")[0])
    common_arguments(parser)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; they share the CPU's cores")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", dest="dry_run", help="print the plan and stop")
    given = parser.parse_args(flags)
    if given.jobs < 1:
        raise UserError(f"--jobs {given.jobs}: at least 1")
    tree: dict[str, Any] = {}
    for file in files or [find_file(DEFAULT)]:
        tree |= read_yaml(find_file(str(file)))
    runs = Path(given.runs)
    wandb = () if given.wandb == "off" else ("--wandb", given.wandb, "--wandb_project", given.wandb_project)
    fits, evaluations = plan(tree, runs, wandb)
    by = checked_by(str(tree.get("by", "views")))
    return Benchmark(fits, evaluations, runs, given.jobs, given.dry_run, by)


def find_file(name: str) -> Path:
    """A benchmark file by path, or one of ours by name."""
    folder = registry.folder("configs") / "benchmarks"
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    ours = {file.stem: file for file in folder.glob("*.yaml")}
    if name not in ours:
        raise UserError(f"no benchmark {name!r}{near(name, ours)}: a path ending in .yaml, or one of {', '.join(ours)}")
    return ours[name]


def plan(tree: Mapping[str, Any], runs: Path, extra: Sequence[str] = ()) -> tuple[list[Job], list[Job]]:
    """Jobs of a benchmark file: what to pretrain, and what to evaluate afterwards.

    Raises:
        UserError: A key, method, option or evaluation that there is not.
    """
    for key in tree:
        if key not in KEYS:
            raise UserError(f"a benchmark file has no key {key!r}{near(key, KEYS)} ({', '.join(KEYS)})")
    methods, data = _stages(_list(tree, "methods", None)), _entries(tree, "data")
    backbones, seeds = _entries(tree, "backbones"), _list(tree, "seeds", [0])
    shared = flatten(tree.get("fit") or {}, "fit")
    fits: list[Job] = []
    evaluations: list[Job] = []
    for images in data:
        jobs: dict[Path | None, Job] = {}
        for stage, backbone, seed in itertools.product(methods, backbones, seeds):
            given = {**shared, **images, **backbone, "seed": seed, "runs": str(runs)}
            for job in _jobs(stage, given, runs, extra, None):
                jobs.setdefault(job.folder, job)  # two chains may begin with the same run
        fits += jobs.values()
        evaluations.append(_evaluation(tree, images, list(jobs.values()), runs))
    return fits, evaluations


def _jobs(
    stage: Stage, given: Mapping[str, Any], runs: Path, extra: Sequence[str], before: Job | None
) -> Iterator[Job]:
    """A stage's job and its followers'."""
    if "backbone.name" in stage.options:
        given = {name: value for name, value in given.items() if not name.startswith("backbone.")}
    options = {**given, **stage.options}
    network = {name: value for name, value in options.items() if name.startswith("backbone.")}
    method = options["method.name"]
    previous = None if before is None else str(before.folder)
    if previous is not None and PREVIOUS not in options.values():
        options["init"] = previous
    options = {name: previous if value == PREVIOUS else value for name, value in options.items()}
    argv = tuple(f"--{key}={value}" for key, value in options.items() if value is not None)
    config = parse_fit(argv).config
    if "backbone" not in config:
        what = f"methods: {method} makes a tokenizer, which is not evaluated"
        raise UserError(f"{what}: run `ssl-bench fit` for it first, and name its folder as a tokenizer")
    title = f"{method}  {config['data']['name']}  {config['backbone']['name']}  seed {config['seed']}"
    if before is not None:
        own = [f"{name}={value}" for name, value in stage.options.items() if name.startswith("data.")]
        title = "  ".join([title, *own, f"after {before.folder.name if before.folder else ''}"])
    start = json.dumps([config["backbone"], config["seed"]], sort_keys=True)
    after = None if before is None else before.folder
    job = Job(title, ("fit", *argv, *extra), run_folder(runs, config), after, start)
    yield job
    for follower in stage.then:
        yield from _jobs(follower, {**given, **network}, runs, extra, job)


def _evaluation(tree: Mapping[str, Any], images: Mapping[str, Any], jobs: Sequence[Job], runs: Path) -> Job:
    """One process for all runs on the same images, the random networks they started from, and the pixels."""
    subjects = [str(job.folder) for job in jobs]
    first = {job.network for job in jobs if job.after is None}  # a follower on such a network adds none
    networks = [str(job.folder) for job in jobs if job.after is None or job.network not in first]
    options = dict(tree.get("evaluate") or {})
    protocols = options.pop("protocols", DEFAULT_PROTOCOLS)
    for protocol in protocols:
        registry.find("evaluations", protocol)
    baselines: list[str] = []
    for baseline in _list(tree, "baselines", ["random", "pixels"]):
        if baseline not in ("random", "pixels"):
            raise UserError(f"no baseline {baseline!r}{near(str(baseline), ['random', 'pixels'])} (random, pixels)")
        baselines += [f"random:{run}" for run in networks] if baseline == "random" else ["pixels"]
    flags = [f"--{key}={value}" for key, value in {**images, **flatten(options, "evaluate")}.items()]
    argv = ("evaluate", *subjects, *baselines, f"--protocols={','.join(protocols)}", f"--runs={runs}", *flags)
    return Job(f"evaluate {', '.join(protocols)} on {images['data.name']}", argv, None)


def run_benchmark(benchmark: Benchmark) -> int:
    """Carry out a plan; 1 if something failed."""
    waiting = [job for job in benchmark.fits if not job.done]
    say(f"{len(benchmark.fits)} runs, {len(benchmark.fits) - len(waiting)} of them done; then:")
    for job in benchmark.evaluations:
        say(f"  {job.title}")
    if benchmark.dry_run:
        for job in benchmark.fits:
            print(f"{'done' if job.done else 'todo'}  {job.title}  {job.folder}")
        return 0
    start = time.monotonic()
    failed: list[tuple[Job, str]] = []
    while ready := [job for job in waiting if job.after is None or _finished(job.after)]:
        failed += _run_all(ready, benchmark)
        waiting = [job for job in waiting if job not in ready]
    failed += [(job, f"  not begun: {job.after} is not finished") for job in waiting]
    done = {job.folder for job in benchmark.fits if job.done}
    for job in benchmark.evaluations:
        missing = {f"{kind}{j.folder}" for j in benchmark.fits if j.folder not in done for kind in ("", "random:")}
        job = Job(job.title, tuple(a for a in job.argv if a not in missing), None)
        failed += _run_all([job], benchmark)
    from ssl_bench.files import write_text
    from ssl_bench.leaderboard.render import leaderboard

    page = benchmark.runs / "leaderboard.html"
    write_text(page, leaderboard([benchmark.runs], "html", benchmark.by))
    print(leaderboard([benchmark.runs], "table", benchmark.by), end="", flush=True)
    say(f"{(time.monotonic() - start) / 60:.1f} minutes; the page: {page}")
    for job, tail in failed:
        say(f"\nfailed: {job.title}\n{tail}\n  again: ssl-bench {' '.join(job.argv)}")
    return 1 if failed else 0


def _finished(run: Path) -> bool:
    return (run / "run.json").exists() and read_run(run).status == "finished"


def _run_all(jobs: Sequence[Job], benchmark: Benchmark) -> list[tuple[Job, str]]:
    """Run jobs, so many at a time; those that failed, with the last lines of their logs."""
    environment = dict(os.environ)
    at_a_time = max(1, min(benchmark.jobs, len(jobs)))
    threads = max(1, (os.cpu_count() or 1) // at_a_time)
    if at_a_time > 1:
        environment["OMP_NUM_THREADS"] = str(threads)
    logs = benchmark.runs / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []

    def run(numbered: tuple[int, Job]) -> tuple[Job, str] | None:
        number, job = numbered
        name = job.folder.name if job.folder else "evaluate"
        path = logs / f"{name}.log"
        begin = time.monotonic()
        with open(path, "wb") as log:
            command = [sys.executable, "-m", "ssl_bench", *job.argv]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            processes.append(process)
            code = process.wait()
        minutes = (time.monotonic() - begin) / 60
        verdict = "done" if code == 0 else f"FAILED ({code}), log: {path}"
        say(f"[{number}/{len(jobs)}] {job.title}  {verdict}  {minutes:.1f} min")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return None if code == 0 else (job, "\n".join(f"  {line}" for line in lines[-5:]))

    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            return [failure for failure in pool.map(run, enumerate(jobs, 1)) if failure]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


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
    return entries


def _list(tree: Mapping[str, Any], key: str, default: list[Any] | None) -> list[Any]:
    value = tree.get(key, default)
    if not isinstance(value, list) or not value:
        raise UserError(f"a benchmark file needs `{key}: [...]`")
    return value
