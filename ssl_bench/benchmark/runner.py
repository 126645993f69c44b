"""`ssl-bench benchmark`: pretrain what is missing, evaluate all, make the leaderboard. Torch-free.

Each run is a process of its own, `ssl-bench fit ...`, and so is its evaluation: one that fails does not stop the
others, one that is done is skipped, and after a kill the same command goes on.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

from jsonargparse import Namespace

import ssl_bench
from ssl_bench.benchmark.plan import Job, plan
from ssl_bench.config import class_paths, registry
from ssl_bench.config.constraints import PositiveInt
from ssl_bench.config.layers import read_yaml, split_argv
from ssl_bench.config.parser import Parser, common_arguments, wandb_options
from ssl_bench.console import say
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.table import DEFAULT_BY, checked_by
from ssl_bench.records.benchmark import BenchmarkInfo, write_benchmark
from ssl_bench.records.files import write_json, write_text
from ssl_bench.runtime.watchdog import marked_child

DEFAULT = "demo"
USUAL = ("config", "jobs", "dry_run", "estimate", "retry_failed", "runs", "wandb", "help", "help_all")
EXAMPLES = """
examples:
  ssl-bench benchmark                                  the demo: all methods on embedded images
  ssl-bench benchmark -c cifar10-minutes --dry-run     the plan, and how long it will take here
  ssl-bench benchmark -c my.yaml --jobs 2              a file of your own (docs/benchmarks.md)
"""
SHOWN_LINES = 5  # of a failed job's log


@dataclass(frozen=True)
class Benchmark:
    """A parsed `benchmark` command.

    Args:
        jobs: What to pretrain, then what to evaluate.
        runs: Where run folders live.
        slots: Processes at a time.
        dry_run: Only print the plan.
        estimate: With the time it will take, from a few steps of each kind of run.
        retry_failed: Take up what failed before.
        by: Budget that a block of the leaderboard shares.
        argv: Of the command.
    """

    jobs: list[Job]
    runs: Path
    slots: int
    dry_run: bool
    estimate: bool
    retry_failed: bool
    by: str
    argv: tuple[str, ...] = ()

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
    files, _, flags = split_argv(argv)
    parser = Parser(
        prog="ssl-bench benchmark",
        description="Pretrain, evaluate and rank what a file lists: methods x data x backbones x seeds x any option."
        " What is done is skipped, so the same command goes on where it was stopped.",
        usage="ssl-bench benchmark [-c FILE] [--jobs N] [--dry-run] [--runs DIR]",
    )
    parser.usual, parser.examples = USUAL, EXAMPLES
    common_arguments(parser)
    parser.add_argument(
        "--jobs", type=PositiveInt, default=1, help="processes at a time; they share the CPU's cores or GPUs"
    )
    parser.add_argument("--dry-run", "--dry_run", action="store_true", dest="dry_run", help="print the plan and stop")
    without = (
        "with --dry-run: the plan alone, at once; otherwise a few steps of each kind of run tell how long it takes"
    )
    parser.add_argument("--no-estimate", "--no_estimate", action="store_false", dest="estimate", help=without)
    retry = "take up what failed when this benchmark was run before"
    parser.add_argument("--retry-failed", "--retry_failed", action="store_true", dest="retry_failed", help=retry)
    classes = "classes of yours that the file names (package.module.Class), with commas: their code will run"
    parser.add_argument("--classes", default="", metavar="CLASS,...", help=classes)
    given = parser.parse_args(flags)
    tree: dict[str, Any] = {}
    for file in files or [find_file(DEFAULT)]:
        tree |= read_yaml(find_file(str(file)))
    runs = Path(given.runs)
    wandb_options(given)  # one that is wrong is found now
    named = [name.strip() for name in given.classes.split(",") if name.strip()]
    class_paths.name_classes(*named)
    jobs = plan(tree, runs, () if given.wandb == "off" else _wandb_flags(given), named)
    by = checked_by(str(tree.get("by", DEFAULT_BY)))
    return Benchmark(jobs, runs, given.jobs, given.dry_run, given.estimate, given.retry_failed, by, tuple(argv))


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
    start = time.monotonic()
    command = ["ssl-bench", "benchmark", *benchmark.argv]
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    write_benchmark(benchmark.runs, BenchmarkInfo(benchmark.by, command, started, ssl_bench.__version__))
    with _stopped_by_sigterm():
        failed = Grid(benchmark).run()
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

        print("\n".join(estimated(benchmark.jobs, protocols, benchmark.runs, benchmark.slots)))


def _leaderboard(benchmark: Benchmark) -> Path:
    """Print the table of all runs and write its page, with the pictures of the runs beside it; the page's path."""
    from ssl_bench.leaderboard.page.page import html
    from ssl_bench.leaderboard.render import rendered, tabled

    page = benchmark.runs / "leaderboard.html"
    found = tabled([benchmark.runs])  # grouped as benchmark.json says
    write_text(page, html(*found, "beside", benchmark.runs / "leaderboard-images"))
    print(rendered(*found, "table"), end="", flush=True)
    return page


@final
class Grid:
    """Jobs on slots, each begun when what it needs is finished.

    Args:
        benchmark: The plan.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.logs = benchmark.logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self.done = {job.folder for job in benchmark.jobs if job.done}
        waiting = [job for job in benchmark.jobs if job.folder not in self.done]
        self.failed: dict[Job, str] = {}
        if not benchmark.retry_failed:
            self.failed = {job: tail for job in waiting if (tail := self._failure(job)) is not None}
        self.waiting = [job for job in waiting if job not in self.failed]
        self.total, self.ended = len(self.waiting), 0
        self.slots = max(1, min(benchmark.slots, self.total))
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.slots):
            self.free.put(slot)
        self.gpus = _gpus() if self.slots > 1 else 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self) -> dict[Job, str]:
        """All jobs; those that failed, with the last lines of their logs."""
        running: dict[Future[int], Job] = {}
        with ThreadPoolExecutor(self.slots) as pool:
            try:
                while True:
                    left = {*self.waiting, *running.values()}
                    ready = [
                        job
                        for job in self.waiting
                        if (job.after is None or job.after in self.done) and job.behind not in left
                    ]
                    for job in ready[: self.slots - len(running)]:
                        self.waiting.remove(job)
                        running[pool.submit(self._process, job)] = job
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._note(running.pop(future), future.result())
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in self.processes:
                    process.terminate()
                raise
        return self.failed | {job: f"  not begun: {job.after} is not finished" for job in self.waiting}

    def _process(self, job: Job) -> int:
        """Exit code of a job's process."""
        slot = self.free.get()
        environment = marked_child(dict(os.environ))
        if self.slots > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.slots)))
        if self.gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self.gpus)
        begin = time.monotonic()
        with open(self._log(job), "wb") as log:
            command = [sys.executable, "-m", "ssl_bench", *job.argv]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            self.processes.append(process)
            code = process.wait()
        self.free.put(slot)
        self.ended += 1
        verdict = "done" if code == 0 else f"FAILED ({code}), log: {self._log(job)}"
        say(f"[{self.ended}/{self.total}] {job.title}  {verdict}  {(time.monotonic() - begin) / 60:.1f} min")
        return code

    def _note(self, job: Job, code: int) -> None:
        """Keep what became of a job, also for the next start."""
        if code == 0:
            self._mark(job).unlink(missing_ok=True)
            self.done |= {job.folder} if job.folder else set()
            return
        lines = self._log(job).read_text(encoding="utf-8", errors="replace").splitlines()
        self.failed[job] = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
        write_json(self._mark(job), {"argv": job.argv, "tail": self.failed[job]})

    def _failure(self, job: Job) -> str | None:
        """What the same command said when it failed, if it did."""
        mark = self._mark(job)
        found = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}
        return str(found["tail"]) if found.get("argv") == list(job.argv) else None

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job.log}.log"

    def _mark(self, job: Job) -> Path:
        return self.logs / f"{job.log}.failed"


def _gpus() -> int:
    """How many there are to share out; 0 where the user has chosen some."""
    if "CUDA_VISIBLE_DEVICES" in os.environ or shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A scheduler's signal ends the processes too, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
