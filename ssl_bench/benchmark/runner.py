"""`ssl-bench benchmark`: pretrain what is missing, evaluate all, make the leaderboard. Torch-free.

Each run is a process of its own, `ssl-bench fit ...`, and so is its evaluation: one that fails does not stop the
others, one that is done is skipped, and after a kill the same command goes on.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

import ssl_bench
from ssl_bench.benchmark.executors.executor import Executor
from ssl_bench.benchmark.executors.local import LocalExecutor
from ssl_bench.benchmark.executors.options import OPTIONS, RayOptions, SlurmOptions
from ssl_bench.benchmark.grid import Grid
from ssl_bench.benchmark.job import Job
from ssl_bench.benchmark.plan import plan
from ssl_bench.benchmark.sweep import is_sweep
from ssl_bench.benchmark.watch import watch
from ssl_bench.config import class_paths, registry
from ssl_bench.config.constraints import PositiveInt
from ssl_bench.config.layers import flatten, read_yaml, split_argv, stack
from ssl_bench.config.parser import Parser, common_arguments, wandb_options
from ssl_bench.console import say
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.table import DEFAULT_BY, checked_by
from ssl_bench.records.benchmark import BenchmarkInfo, write_benchmark
from ssl_bench.records.files import DAY, clear_temporary, write_text

DEFAULT = "demo"
USUAL = (
    *("config", "jobs", "executor.name", "detach", "dry_run", "estimate", "retry_failed"),
    *("runs", "wandb", "help", "help_all"),
)
EXAMPLES = """
examples:
  ssl-bench benchmark                                  the demo: all methods on embedded images
  ssl-bench benchmark -c cifar10-minutes --dry-run     the plan, and how long it will take here
  ssl-bench benchmark -c my.yaml --jobs 2              a file of your own (docs/benchmarks.md)
  ssl-bench benchmark -c my.yaml --executor slurm      on a cluster (docs/cluster.md; options: --executor slurm --help)
"""


@dataclass(frozen=True)
class Benchmark:
    """A parsed `benchmark` command.

    Args:
        jobs: What to pretrain, then what to evaluate.
        runs: Where run folders live.
        slots: Jobs at a time; None where `--jobs` does not say.
        dry_run: Only print the plan.
        estimate: With the time it will take, from a few steps of each kind of run.
        retry_failed: Take up what failed before.
        by: Budget that a block of the leaderboard shares.
        argv: Of the command.
        executor: Where jobs run.
        asked: Options of the executor.
        detach: Leave it to the cluster.
        reuse: Whether evaluations of which everything is recorded are done without a process.
        again: Makes the plan anew of what is finished by then; None where nothing follows from that.
    """

    jobs: list[Job]
    runs: Path
    slots: int | None
    dry_run: bool
    estimate: bool
    retry_failed: bool
    by: str
    argv: tuple[str, ...] = ()
    executor: str = "local"
    asked: dict[str, Any] = field(default_factory=dict)
    detach: bool = False
    reuse: bool = False
    again: Callable[[], list[Job]] | None = None

    @property
    def logs(self) -> Path:
        """Where each job's log is, and the mark of one that failed."""
        return self.runs / "logs"

    @property
    def fits(self) -> list[Job]:
        """What is pretrained."""
        return [job for job in self.jobs if job.folder is not None]


def parse_benchmark(argv: Sequence[str]) -> Benchmark:
    """Plan of a `benchmark` command line.

    Raises:
        UserError: The file is missing, or names something there is not.
    """
    files, named, flags = split_argv(argv)
    tree: dict[str, Any] = {}
    for file in files or [find_file(DEFAULT)]:
        tree |= read_yaml(find_file(str(file)))
    layers = stack([("the benchmark file", flatten({"executor": tree.pop("executor", {})}, "")), ("flags", named)])
    executor = str(layers.values.get("executor.name", "local"))
    parser = Parser(
        prog="ssl-bench benchmark",
        description="Pretrain, evaluate and rank what a file lists: methods x data x backbones x seeds x any option."
        " What is done is skipped, so the same command goes on where it was stopped.",
        usage="ssl-bench benchmark [-c FILE] [--jobs N] [--executor local|slurm|ray] [--dry-run] [--runs DIR]",
    )
    parser.usual, parser.examples, parser.shown_groups = USUAL, EXAMPLES, ["executor"]
    parser.origins = {option: origin for option, origin in layers.origins.items() if origin != "flags"}
    common_arguments(parser)
    parser.add_argument(
        "--jobs", type=PositiveInt, help="at a time: 1 here, where they share cores or GPUs; any number on a cluster"
    )
    where = "where jobs run: this machine, SLURM or Ray (docs/cluster.md)"
    parser.add_argument("--executor.name", type=Literal[tuple(OPTIONS)], default="local", help=where)
    if (options := OPTIONS.get(executor)) is not None:
        parser.add_class_arguments(options, "executor")
    parser.add_argument("--detach", action="store_true", help="have the cluster go on with it, and end")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", dest="dry_run", help="print the plan and stop")
    without = (
        "with --dry-run: the plan alone, at once; otherwise a few steps of each kind of run tell how long it takes"
    )
    parser.add_argument("--no-estimate", "--no_estimate", action="store_false", dest="estimate", help=without)
    retry = "take up what failed when this benchmark was run before"
    parser.add_argument("--retry-failed", "--retry_failed", action="store_true", dest="retry_failed", help=retry)
    classes = "classes of yours that the file names (package.module.Class), with commas: their code will run"
    parser.add_argument("--classes", default="", metavar="CLASS,...", help=classes)
    given = parser.parse_args([*layers.tokens(), *flags])
    asked = given.as_dict().get("executor", {})
    runs = Path(given.runs)
    wandb_options(given)  # one that is wrong is found now
    classes_named = class_paths.names_in(given.classes)
    class_paths.name_classes(*classes_named)

    def planned() -> list[Job]:
        return plan(tree, runs, () if given.wandb == "off" else _wandb_flags(given), classes_named)

    jobs = planned()
    return Benchmark(
        jobs,
        runs,
        given.jobs,
        given.dry_run,
        given.estimate,
        given.retry_failed,
        checked_by(str(tree.get("by", DEFAULT_BY))),
        tuple(argv),
        asked.pop("name"),
        asked,
        given.detach,
        reuse=given.wandb == "off",
        again=planned if is_sweep(tree) else None,
    )


def make_executor(benchmark: Benchmark) -> Executor:
    """Where jobs run.

    Raises:
        UserError: Its package or cluster is not here.
    """
    if benchmark.executor == "slurm":
        from ssl_bench.benchmark.executors.slurm import SlurmExecutor

        return SlurmExecutor(SlurmOptions(**benchmark.asked), benchmark.logs, benchmark.slots)
    if benchmark.executor == "ray":
        from ssl_bench.benchmark.executors.ray import RayExecutor

        return RayExecutor(RayOptions(**benchmark.asked), benchmark.slots)
    return LocalExecutor(benchmark.slots or 1)


def _wandb_flags(given: Namespace) -> list[str]:
    """The same options for every job."""
    options = {name: value for name, value in given.items() if name.startswith("wandb") and value is not None}
    return [f"--{name}={value}" for name, value in options.items()]


def find_file(name: str) -> Path:
    """A benchmark file by path, or one of ours by name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    ours = dict(registry.benchmarks())
    if name not in ours:
        raise UserError(
            f"no benchmark {name!r}{near(name, ours)}: a path ending in .yaml, or one of `ssl-bench list benchmarks`"
        )
    return ours[name]


def run_benchmark(benchmark: Benchmark) -> int:
    """Carry out a plan; 1 if something failed."""
    fits, evaluations = benchmark.fits, sum(job.asked is not None for job in benchmark.jobs)
    say(f"{len(fits)} runs, {sum(job.done for job in fits)} of them done; {evaluations} evaluations")
    if benchmark.dry_run:
        _show_plan(benchmark)
        return 0
    executor = make_executor(benchmark)
    if benchmark.detach:
        benchmark.logs.mkdir(parents=True, exist_ok=True)
        say(executor.detach(["benchmark", *(flag for flag in benchmark.argv if flag != "--detach")], benchmark.logs))
        return 0
    start = time.monotonic()
    command = ["ssl-bench", "benchmark", *benchmark.argv]
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    write_benchmark(benchmark.runs, BenchmarkInfo(benchmark.by, command, started, ssl_bench.__version__))
    benchmark.logs.mkdir(parents=True, exist_ok=True)
    for folder in (benchmark.runs, benchmark.logs):
        clear_temporary(folder, DAY, ".*.tmp")
    with _stopped_by_sigterm():
        grid = Grid(benchmark.jobs, benchmark.logs, executor, benchmark.retry_failed, benchmark.reuse)
        failed = grid.run(watch())
        while benchmark.again is not None and not failed:
            jobs = benchmark.again()
            if [job.argv for job in jobs] == [job.argv for job in benchmark.jobs]:
                break
            benchmark = replace(benchmark, jobs=jobs)
            failed = Grid(jobs, benchmark.logs, executor, benchmark.retry_failed, benchmark.reuse).run(watch())
    try:
        page = _leaderboard(benchmark)
        say(f"{(time.monotonic() - start) / 60:.1f} minutes; the page: {page}")
    except UserError as error:
        if not failed:
            raise
        say(f"no leaderboard: {error}")  # what failed says why
    for job, tail in failed.items():
        say(f"\nfailed: {job.title}\n{tail}\n  again: ssl-bench {' '.join(job.argv)}")
    if failed:
        say("\nonce the reason is gone, the same command with --retry-failed takes them up")
    return 1 if failed else 0


def _show_plan(benchmark: Benchmark) -> None:
    """Print what is done and what is not; how long that will take."""
    protocols = {job: job.left(benchmark.logs) for job in benchmark.jobs if job.asked is not None}
    for job in benchmark.jobs:
        drawn = job.after is not None and (job.after / "figures" / "state.json").is_file()
        done = not protocols[job] if job in protocols else job.done or drawn and job.folder is None
        print(f"{'done' if done else 'todo'}  {job.title}  {job.folder or ''}".rstrip())
    if benchmark.estimate:
        from ssl_bench.benchmark.estimate import estimated

        print("\n".join(estimated(benchmark.jobs, protocols, benchmark.runs, benchmark.slots or 1)))


def _leaderboard(benchmark: Benchmark) -> Path:
    """Print the table of all runs and write its page, with the pictures of the runs beside it; the page's path."""
    from ssl_bench.leaderboard.page.page import html
    from ssl_bench.leaderboard.render import rendered, tabled

    page = benchmark.runs / "leaderboard.html"
    found = tabled([benchmark.runs])  # grouped as benchmark.json says
    write_text(page, html(*found, "beside", benchmark.runs / "leaderboard-images"))
    print(rendered(*found, "table"), end="", flush=True)
    return page


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A scheduler's signal ends the processes too, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
