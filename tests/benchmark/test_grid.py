"""A grid that several commands share: every job once, none lost, whoever is killed."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from paths import ROOT

from ssl_bench.benchmark import grid as grids
from ssl_bench.benchmark.executors.executor import Executor, State, Task, last_line, run_until_free
from ssl_bench.benchmark.executors.local import LocalExecutor
from ssl_bench.benchmark.grid import Grid
from ssl_bench.benchmark.job import Job
from ssl_bench.benchmark.watch import counts, drawn
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.claim import NAME, claimed, living_holder, take
from ssl_bench.records.run import DataRecord, RunInfo, write_run

# What a run is here: it takes the claim of its folder, as `fit` does, works for some milliseconds, and is finished.
WORK = """
import json, os, random, sys, time
from pathlib import Path
from ssl_bench.errors import Taken
from ssl_bench.records.claim import claimed
def work(folder, attempts):
    try:
        with claimed(folder):
            if (folder / "run.json").exists():
                return 0
            time.sleep(random.uniform(0, 0.02))
            with open(attempts / folder.name, "a") as file:
                file.write("x")
            (folder / "new").write_text(os.environ["RUN"])
            os.replace(folder / "new", folder / "run.json")
            return 0
    except Taken:
        return 75
"""

# A machine of 8 slots: forks a worker for each job, so that hundreds take seconds. Killed with its workers.
MACHINE = (
    WORK
    + """
from ssl_bench.benchmark import grid
from ssl_bench.benchmark.executors.executor import Executor, State
from ssl_bench.benchmark.job import Job
grid.LOOK_SECONDS = 0.3
class Forks(Executor):
    every, slots = 0.005, 8
    def __init__(self, attempts):
        self.attempts, self.children = attempts, {}
    def submit(self, tasks):
        for task in tasks:
            child = os.fork()
            if child == 0:
                os._exit(work(Path(task.argv[0]), self.attempts))
            self.children[task.name] = child
        return [""] * len(tasks)
    def states(self):
        found = {}
        for name, child in list(self.children.items()):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                del self.children[name]
                code = os.waitstatus_to_exitcode(status)
                found[name] = State("ended", None if code < 0 else code)
            else:
                found[name] = State("running")
        return found
    def stop(self):
        return ""
    def detach(self, argv, logs):
        return ""
runs, attempts, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
jobs = []
for i in range(count):
    after = runs / f"r{i // 10}" if i >= 10 else None
    jobs.append(Job(f"run {i}", (str(runs / f"r{i}"),), f"r{i}", runs / f"r{i}", after))
failed = grid.Grid(jobs, runs / "logs", Forks(attempts), retry_failed=True).run()
print(len(failed))
"""
)
INFO = RunInfo("finished", "pretrained", "mae", DataRecord("digits"))


class Scripted(Executor):
    """Tasks run as long as a test lets them, and end with the exit codes that it names."""

    every = 0.001

    def __init__(self, codes: dict[str, int | None] | None = None, slots: int | None = None) -> None:
        self.codes, self.slots = codes or {}, slots
        self.now: list[Task] = []
        self.submitted: list[list[str]] = []
        self.adopted: list[str] = []

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        self.now += tasks
        self.submitted.append([task.name for task in tasks])
        return [""] * len(tasks)

    def states(self) -> dict[str, State]:
        ended, self.now = self.now, []
        for task in ended:
            task.log.write_text(f"{task.name} says\nits last line\n")
        return {task.name: State("ended", self.codes.get(task.name, 0)) for task in ended}

    def adopt(self, task: Task, job: str) -> bool:
        if job:
            self.now.append(task)
            self.adopted.append(job)
        return bool(job)

    def stop(self) -> str:
        return "stopped"

    def detach(self, argv: Sequence[str], logs: Path) -> str:
        return "detached"


def jobs_of(tmp_path: Path, *names: str) -> list[Job]:
    return [Job(name, (name,), name) for name in names]


def test_everything_that_is_ready_is_submitted_together(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    jobs = [Job("a", (), "a", a), Job("b", (), "b", b), Job("of a", (), "of-a", after=a), Job("pixels", (), "pixels")]
    executor = Scripted()
    assert Grid(jobs, tmp_path / "logs", executor).run() == {}
    assert executor.submitted == [["a", "b", "pixels"], ["of-a"]]
    one = Scripted(slots=1)
    assert Grid(jobs, tmp_path / "other", one).run() == {} and [len(batch) for batch in one.submitted] == [1] * 4


def test_two_jobs_that_write_into_one_run_follow_each_other(tmp_path: Path) -> None:
    a = tmp_path / "a"
    write_run(a, INFO)
    executor = Scripted()
    jobs = [Job("a", (), "a", a), Job("on one", (), "one", after=a), Job("on other", (), "other", after=a)]
    jobs += jobs_of(tmp_path, "pixels")
    assert Grid(jobs, tmp_path / "logs", executor).run() == {}
    assert executor.submitted == [["one", "pixels"], ["other"]]


def test_what_another_command_does_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grids, "LOOK_SECONDS", 0.02)
    a, logs, executor = tmp_path / "a", tmp_path / "logs", Scripted()
    theirs = take(logs / "a.claim")
    assert theirs is not None
    looks: list[str] = []

    class Ends(grids.Watch):
        def show(self, grid: Grid) -> None:
            looks.append(counts(grid))
            if len(looks) == 40:
                write_run(a, INFO)
                theirs.release()

    jobs = [Job("a", (), "a", a), Job("of a", (), "of-a", after=a)]
    assert Grid(jobs, logs, executor).run(Ends()) == {}
    assert executor.submitted == [["of-a"]] and looks[0].startswith("1 waiting, 0 running, 1 in other hands, 0 done")
    said = capfd.readouterr().err
    assert said.count("a: taken by process") == 1 and "[1/2] a  done before, or by another command" in said


def test_a_run_that_a_fit_has_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "LOOK_SECONDS", 0.02)
    a, executor = tmp_path / "a", Scripted()
    hold = claimed(a)
    hold.__enter__()

    class Ends(grids.Watch):
        looks = 0

        def show(self, grid: Grid) -> None:
            self.looks += 1
            if self.looks == 40:
                hold.__exit__(None, None, None)

    assert Grid([Job("a", (), "a", a)], tmp_path / "logs", executor).run(Ends()) == {}
    assert executor.submitted == [["a"]]


def test_a_job_that_finds_its_run_taken_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "LOOK_SECONDS", 0.02)
    executor = Scripted({"a": 75})

    class Ends(grids.Watch):
        def show(self, grid: Grid) -> None:
            if len(executor.submitted) == 3:
                executor.codes = {}

    assert Grid(jobs_of(tmp_path, "a"), tmp_path / "logs", executor).run(Ends()) == {}
    assert len(executor.submitted) >= 3


def test_a_batch_systems_job_is_followed_by_the_next_command(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    theirs = take(logs / "a.claim")
    assert theirs is not None
    theirs.hand_to("SLURM job 7_1")
    executor = Scripted()
    assert Grid(jobs_of(tmp_path, "a", "b"), logs, executor).run() == {}
    assert executor.adopted == ["SLURM job 7_1"] and executor.submitted == [["b"]]
    assert not list(logs.glob("*.claim"))


def test_what_ends_without_a_word_has_failed_unless_its_run_is_finished(tmp_path: Path) -> None:
    a = tmp_path / "a"
    write_run(a, replace(INFO, status="running"))
    executor = Scripted({"a": None, "b": None})

    class Finishes(grids.Watch):
        def show(self, grid: Grid) -> None:
            write_run(a, INFO)

    failed = Grid([Job("a", (), "a", a), *jobs_of(tmp_path, "b")], tmp_path / "logs", executor).run(Finishes())
    (tail,) = failed.values()
    assert [job.title for job in failed] == ["b"] and "its last line" in tail and "ended without a word" in tail


def test_a_failure_elsewhere_counts_and_is_not_repeated(tmp_path: Path) -> None:
    logs, jobs = tmp_path / "logs", jobs_of(tmp_path, "a")
    late = Grid(jobs, logs, Scripted(), retry_failed=True)
    time.sleep(0.02)
    assert len(Grid(jobs, logs, Scripted({"a": 1})).run()) == 1
    assert [job.title for job in late.run()] == ["a"] and late.executor.submitted == []  # type: ignore[attr-defined]
    time.sleep(0.02)
    assert Grid(jobs, logs, Scripted(), retry_failed=True).run() == {}


def test_an_interrupt_stops_the_executor_and_frees_the_claims(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Interrupts(grids.Watch):
        def show(self, grid: Grid) -> None:
            assert living_holder(tmp_path / "logs" / "a.claim") is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Grid(jobs_of(tmp_path, "a"), tmp_path / "logs", Scripted()).run(Interrupts())
    assert "stopped" in capfd.readouterr().err and not list((tmp_path / "logs").glob("*.claim"))


def test_the_table_shows_what_runs_and_what_failed(tmp_path: Path) -> None:
    from rich.console import Console

    class Runs(Scripted):
        def states(self) -> dict[str, State]:
            broken = {task.name: State("ended", 1) for task in self.now if task.name == "broken"}
            self.now = [task for task in self.now if task.name not in broken]
            return broken | {task.name: State("running") for task in self.now}

    executor = Runs()
    grid = Grid([*jobs_of(tmp_path, "mae", "broken"), Job("later", (), "later", after=tmp_path)], tmp_path, executor)
    grid._start()
    (tmp_path / "mae.log").write_text("hello\nepoch 3/100  loss 0.9  512 images/s  1:20 left\n")
    (tmp_path / "broken.log").write_text("loading\nerror: no such folder\n")
    grid._follow(grids.Watch())
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(drawn(grid))
    text = console.export_text()
    assert "1 waiting, 1 running, 0 done, 1 failed of 3" in text
    assert "512 images/s  1:20 left" in text and "error: no such folder" in text and "broken" in text


def test_the_last_line_of_a_bar_is_what_it_shows(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 9000 + b"\nfirst\n 10%|#| 1:00\r 20%|##| 0:50 \xff\n\n")
    assert last_line(log) == "20%|##| 0:50 \ufffd" and last_line(tmp_path / "none") == ""


def test_here_there_is_no_cluster_to_leave_it_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--executor slurm or ray"):
        LocalExecutor(1).detach([], tmp_path)


def test_a_run_of_a_lost_machine_is_tried_until_its_claim_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_bench.benchmark.executors.executor.AGAIN_SECONDS", 0.05)
    count = tmp_path / "count"
    program = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); n = len(p.read_text()) if p.exists() else 0"
    program += "; p.write_text('x' * (n + 1)); print('attempt', n); sys.exit(75 if n < 2 else 3)"
    monkeypatch.setattr(Task, "command", property(lambda task: [sys.executable, "-c", program, *task.argv]))
    begun: list[object] = []
    task = Task((str(count),), Path("a.log"), Path("a.claim"), tmp_path)
    assert run_until_free(task, os.environ, begun.append) == 3 and len(begun) == 3
    assert (tmp_path / "a.log").read_text() == "attempt 0\nattempt 1\nattempt 2\n"


def test_a_cancelled_task_asks_its_process_to_end_and_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: (print('saved'), sys.exit(143)))"
    program += "; print('up', flush=True); time.sleep(60)"
    monkeypatch.setattr(Task, "command", [sys.executable, "-c", program])
    task = Task((), Path("a.log"), Path("a.claim"), tmp_path)

    def cancel(child: "subprocess.Popen[bytes]") -> None:
        poll = child.poll

        def cancelled() -> int | None:
            if "up" in (tmp_path / "a.log").read_text():
                child.poll = poll  # type: ignore[method-assign]
                raise KeyboardInterrupt
            return None

        child.poll = cancelled  # type: ignore[method-assign]

    with pytest.raises(KeyboardInterrupt):
        run_until_free(task, os.environ, cancel)
    assert (tmp_path / "a.log").read_text() == "up\nsaved\n"


def simulated(tmp_path: Path, machines: int, count: int, kills: int) -> None:
    """Machines of eight workers share a grid; machines and workers are killed all the while, and begun again."""
    runs, attempts, chance = tmp_path / "runs", tmp_path / "attempts", random.Random(0)
    attempts.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUN": json.dumps(asdict(INFO))}
    command = [sys.executable, "-c", MACHINE, str(runs), str(attempts), str(count)]

    def begun() -> "subprocess.Popen[str]":
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    alive = [begun() for _ in range(machines)]
    finished = lambda: sum((runs / f"r{i}" / "run.json").exists() for i in range(count))  # noqa: E731
    killed = 0
    while killed < kills and finished() < count * 0.9:
        time.sleep(0.05)
        if finished() > (killed + 1) * count // (2 * kills):
            victim = chance.randrange(machines)
            workers = Path(f"/proc/{alive[victim].pid}/task/{alive[victim].pid}/children")
            children = workers.read_text().split() if workers.exists() else []
            if killed % 2 and children:
                os.kill(int(chance.choice(children)), signal.SIGKILL)  # a worker; its machine says that it failed
            else:
                alive[victim].kill()
                alive[victim].communicate()
                alive[victim] = begun()
            killed += 1
    outputs = [process.communicate(timeout=240)[0] for process in alive]
    last = begun()  # what a killed worker had is taken up by the same command
    assert last.communicate(timeout=240)[0].strip() == "0", outputs
    assert finished() == count and killed == kills
    times = {file.name: len(file.read_text()) for file in attempts.iterdir()}
    assert len(times) == count
    again = sum(n - 1 for n in times.values())
    say(f"{count} jobs, {killed} kills, {again} begun twice")
    assert again <= kills  # only what was killed between its work and its record
    claims = [*runs.glob(f"r*/{NAME}"), *(runs / "logs").glob("*.claim")]
    assert all(living_holder(claim) is None for claim in claims), "only those of what was killed are left"


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_small_simulated_cluster(tmp_path: Path) -> None:
    simulated(tmp_path, machines=2, count=40, kills=2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_64_workers_do_500_jobs_once_while_they_are_killed(tmp_path: Path) -> None:
    simulated(tmp_path, machines=8, count=500, kills=20)
