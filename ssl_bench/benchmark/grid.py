"""The jobs of a benchmark, each begun when what it needs is finished, and each once. Torch-free.

Any number of `benchmark` commands, on any machines that share the folder of runs, share a grid: a job belongs to the
command that takes its claim, `logs/NAME.claim`. What became of it is beside that: `NAME.log`, and `NAME.done` or
`NAME.failed`, whose times, by the disk's clock, say whether that was since a command began.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from ssl_bench.benchmark.executors.executor import Executor, Task, last_line
from ssl_bench.benchmark.job import Job
from ssl_bench.console import say
from ssl_bench.errors import Taken
from ssl_bench.evaluation.recorded_results import all_recorded
from ssl_bench.records.claim import NAME, Claim, end_job_claim, living_holder, read_holder, take
from ssl_bench.records.files import disk_time, read_regular, write_json

MOST_OF_A_MARK = 1 << 20  # bytes
SHOWN_LINES = 5  # of a failed job's log
LOOK_SECONDS = 15.0  # between two looks at what another command has taken
LOST = "  it ended without a word: its process was killed, or its machine is gone"


@dataclass
class Active:
    """A job that this command follows.

    Args:
        task: As its executor knows it.
        claim: Which this command holds; None where a batch system's job does.
        begun: By this machine's monotonic clock.
        running: Whether it has begun to run.
    """

    task: Task
    claim: Claim | None
    begun: float = field(default_factory=time.monotonic)
    running: bool = False


@final
class Grid:
    """The jobs of a plan, on an executor.

    Args:
        jobs: The plan.
        logs: Folder of logs, claims and marks.
        executor: Where they run.
        retry_failed: Take up what failed before this command began.
        reuse: Whether an evaluation of which everything is recorded needs no process.
    """

    def __init__(
        self, jobs: Sequence[Job], logs: Path, executor: Executor, retry_failed: bool = False, reuse: bool = True
    ) -> None:
        self.logs, self.executor, self.reuse = logs, executor, reuse
        logs.mkdir(parents=True, exist_ok=True)
        self.since = disk_time(logs / "since")
        self.done = {job.folder for job in jobs if job.done}
        waiting = [job for job in jobs if job.folder not in self.done]
        self.failed: dict[Job, str] = {}
        if not retry_failed:
            self.failed = {job: tail for job in waiting if (tail := self._failure(job, 0.0)) is not None}
        self.waiting = [job for job in waiting if job not in self.failed]
        self.active: dict[Job, Active] = {}
        self.elsewhere: dict[Job, tuple[str, float]] = {}  # who has it, and when to look again
        self.total, self.ended = len(self.waiting), 0

    def run(self, watch: "Watch | None" = None) -> dict[Job, str]:
        """All jobs; those that failed, with the last lines of their logs."""
        watch = watch or Watch()
        try:
            while True:
                self._start()
                if not self.active and not self.elsewhere:
                    break
                watch.show(self)
                time.sleep(self.executor.every)
                self._follow(watch)
        except BaseException:
            if line := self.executor.stop():
                say(line)
            raise
        finally:
            watch.close()
            for active in self.active.values():
                if active.claim is not None:
                    active.claim.release()
        return self.failed | {job: f"  not begun: {job.after} is not finished" for job in self.waiting}

    def ready(self) -> list[Job]:
        """Jobs that may begin: what they need is finished, what they come after has ended, their run has no other."""
        left, busy = {*self.waiting, *self.active}, {_place(job) for job in self.active} - {None}
        found = []
        for job in self.waiting:
            if (job.after is None or job.after in self.done) and job.behind not in left and _place(job) not in busy:
                busy |= {_place(job)} - {None}
                found.append(job)
        return found

    def _start(self) -> None:
        """Begin what is ready, and in nobody's hands, as far as there is room."""
        again = True
        while again:  # what is found done makes others ready
            again = False
            batch: dict[Job, Active] = {}
            for job in self.ready():
                if self.executor.slots is not None and len(self.active) + len(batch) >= self.executor.slots:
                    break
                before = len(self.waiting)
                if (active := self._take(job)) is not None:
                    batch[job] = active
                again = again or len(self.waiting) < before
            self._submit(batch)

    def _take(self, job: Job) -> Active | None:
        """The job with its claim, unless somebody has it, or there is nothing left to do."""
        if job in self.elsewhere and time.monotonic() < self.elsewhere[job][1]:
            return None
        task = Task(job.argv, self.logs / f"{job.log}.log", self.logs / f"{job.log}.claim")
        claim = take(task.claim)
        if claim is None:
            holder = living_holder(task.claim)
            if holder is not None and self.executor.adopt(task, holder.job):
                self._begin(job, Active(task, None))
            else:
                self._leave(job, str(holder or "another command"))
            return None
        self.elsewhere.pop(job, None)
        folder = _place(job)
        holder = living_holder(folder / NAME) if folder is not None else None
        has_ended, tail = self._has_ended(job), self._failure(job, self.since)
        if not has_ended and tail is None and holder is None:
            return Active(task, claim)
        claim.release()
        if has_ended:
            self.waiting.remove(job)
            self._succeeded(job, "done before, or by another command")
        elif tail is not None:
            self.waiting.remove(job)
            self.ended += 1
            self.failed[job] = tail
        else:
            self._leave(job, str(holder))
        return None

    def _leave(self, job: Job, holder: str) -> None:
        if self.elsewhere.get(job, ("", 0.0))[0] != holder:
            say(f"{job.title}: taken by {holder}")
        self.elsewhere[job] = (holder, time.monotonic() + LOOK_SECONDS)

    def _has_ended(self, job: Job) -> bool:
        """Whether there is nothing left to do, for whatever command has done it."""
        mark = self._mark(job, "done")
        if job.done or mark.exists() and mark.stat().st_mtime > self.since:
            return True
        return self.reuse and job.asked is not None and all_recorded(job.asked)

    def _submit(self, batch: dict[Job, Active]) -> None:
        if not batch:
            return
        try:
            jobs = self.executor.submit([active.task for active in batch.values()])
        except BaseException:
            for active in batch.values():
                if active.claim is not None:
                    active.claim.release()
            raise
        for (job, active), theirs in zip(batch.items(), jobs, strict=True):
            if theirs and active.claim is not None:
                active.claim.hand_to(theirs)
                active.claim = None
            self._begin(job, active)

    def _begin(self, job: Job, active: Active) -> None:
        self.elsewhere.pop(job, None)
        self.waiting.remove(job)
        self.active[job] = active

    def _follow(self, watch: "Watch") -> None:
        """Note what has begun to run, and what has ended."""
        states = self.executor.states()
        for job, active in list(self.active.items()):
            state = states.get(active.task.name)
            if state is None:
                continue
            if state.phase == "running" and not active.running:
                active.running, active.begun = True, time.monotonic()
            if state.phase == "ended":
                del self.active[job]
                self._note(job, active, state.code)
                watch.show(self)

    def _note(self, job: Job, active: Active, code: int | None) -> None:
        """Keep what became of a job, also for other commands and the next start."""
        if code == Taken.exit_code:  # by a command that is none of this grid's
            self.waiting.append(job)
            self._leave(job, last_line(active.task.log) or "another command")
        elif code == 0 or code is None and self._has_ended(job):
            write_json(self._mark(job, "done"), {"argv": job.argv})
            self._mark(job, "failed").unlink(missing_ok=True)
            self._succeeded(job, f"done  {(time.monotonic() - active.begun) / 60:.1f} min")
        else:
            lines = self._said(active.task.log)
            tail = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:] + ([LOST.strip()] if code is None else []))
            self.ended += 1
            self.failed[job] = tail
            write_json(self._mark(job, "failed"), {"argv": job.argv, "tail": tail})
            say(f"[{self.ended}/{self.total}] {job.title}  FAILED ({code}), log: {active.task.log}")
        if active.claim is not None:
            active.claim.release()
        elif (holder := read_holder(active.task.claim)) is not None and holder.job:
            end_job_claim(active.task.claim, holder.job)  # which was killed before it could

    def _succeeded(self, job: Job, how: str) -> None:
        self.ended += 1
        self.done |= {job.folder} if job.folder else set()
        say(f"[{self.ended}/{self.total}] {job.title}  {how}")

    def _said(self, log: Path) -> list[str]:
        return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []

    def _failure(self, job: Job, since: float) -> str | None:
        """What the same command said when it failed, if it did, and not before a time."""
        mark = self._mark(job, "failed")
        try:
            if mark.stat().st_mtime <= since:
                return None
            found = json.loads(read_regular(mark, MOST_OF_A_MARK))
            return str(found["tail"]) if found["argv"] == list(job.argv) else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None  # there is none, or it is damaged: the job is tried again

    def _mark(self, job: Job, what: str) -> Path:
        return self.logs / f"{job.log}.{what}"


def _place(job: Job) -> Path | None:
    """The run folder that a job writes into."""
    return job.folder or job.after


class Watch:
    """Shows a grid while it runs: here nothing but the lines that are said."""

    def show(self, grid: Grid) -> None:
        """Bring it up to date."""

    def close(self) -> None:
        """Leave the last state."""
