"""The contract of an executor, and the process that a job is, wherever it runs. Torch-free."""

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssl_bench.errors import Taken
from ssl_bench.records.claim import STALE_SECONDS
from ssl_bench.runtime.watchdog import marked_child

DEAF = 'trap "" USR2; exec "$@"'  # SLURM sends SIGUSR2 to all processes of a job, and it would end this one
STOP_SECONDS = 60.0  # in which a run saves itself
AGAIN_SECONDS = 10.0  # between attempts at a run that a machine had which is gone


@dataclass(frozen=True)
class Task:
    """A job, as an executor sees it.

    Args:
        argv: Arguments after `ssl-bench`.
        log: The file that gets what it says.
        claim: The file that says who has it.
        cwd: Where relative paths begin.
    """

    argv: tuple[str, ...]
    log: Path
    claim: Path
    cwd: Path = field(default_factory=Path.cwd)

    @property
    def name(self) -> str:
        """Unique within a folder of runs."""
        return self.log.stem

    @property
    def command(self) -> list[str]:
        """Of its process."""
        return [sys.executable, "-m", "ssl_bench", *self.argv]


@dataclass(frozen=True)
class State:
    """How far a submitted task is.

    Args:
        phase: An ended one is told once.
        code: Exit code of an ended one; None where it left none, as when its machine is gone.
    """

    phase: Literal["waiting", "running", "ended"]
    code: int | None = None


class Executor(ABC):
    """Starts tasks somewhere, and says what became of them.

    Args:
        slots: At most so many at a time; None for as many as there are.
    """

    every = 0.1  # seconds between two looks
    slots: int | None = None

    @abstractmethod
    def submit(self, tasks: Sequence[Task]) -> list[str]:
        """Start them, now or when there is room.

        Returns:
            For each the batch system's job that holds its claim from now on, or "" where this process goes on to.
        """

    @abstractmethod
    def states(self) -> dict[str, State]:
        """State of every task by its name."""

    @abstractmethod
    def stop(self) -> str:
        """What Ctrl-C means: end the tasks, or leave them to the cluster; a line that says so."""

    def adopt(self, task: Task, job: str) -> bool:
        """Follow a task that an earlier command submitted; False where its job is not of this executor."""
        return False

    @abstractmethod
    def detach(self, argv: Sequence[str], logs: Path) -> str:
        """Have the cluster run this `benchmark` command; a line that says how to follow it.

        Raises:
            UserError: There is no cluster to leave it to.
        """


def run_until_free(
    task: Task, environment: Mapping[str, str], started: "Callable[[subprocess.Popen[bytes]], None] | None" = None
) -> int:
    """Exit code of a task's process on a machine of a cluster.

    A run whose machine is gone stays that machine's until its claim is stale: it is tried again until then.

    Args:
        task: What to run.
        environment: Of its process.
        started: Told of the process.
    """
    end = time.monotonic() + STALE_SECONDS + 2 * AGAIN_SECONDS
    command = ["/bin/sh", "-c", DEAF, "sh", *task.command]
    while True:
        with open(task.cwd / task.log, "ab") as log:
            own = marked_child(dict(environment))
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own, cwd=task.cwd)
        if started is not None:
            started(child)
        try:
            while (code := child.poll()) is None:  # a signal's handler may look at it, too
                time.sleep(0.2)
        except BaseException:  # this attempt is cancelled
            end_gently([child])
            raise
        if code != Taken.exit_code or time.monotonic() > end:
            return code
        time.sleep(AGAIN_SECONDS)


def end_gently(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask processes to save and end, and wait for that."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def last_line(log: Path, most: int = 4096) -> str:
    """The last line that a task has said; of a progress bar, what it shows."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
