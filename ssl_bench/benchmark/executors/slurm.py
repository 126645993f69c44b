"""SLURM: job arrays, submitted with submitit. Torch-free.

A job runs the ordinary command in a process of its own. Before its time is over, or where it is preempted with a
warning (`PreemptParameters=send_user_signal`), SLURM sends SIGUSR2: the run saves itself, and submitit has the job
queued again. Where SLURM requeues a preempted job by itself, the run gets SIGTERM, and saves itself, too.
"""

import getpass
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from ssl_bench.benchmark.executors.executor import Executor, State, Task, run_until_free
from ssl_bench.benchmark.executors.options import SlurmOptions
from ssl_bench.errors import RunFailed, UserError
from ssl_bench.records.claim import end_job_claim

PREFIX = "SLURM job "
LATE_SECONDS = 30.0  # for a file of another machine to be seen here, once its job has left the queue
MARGIN_SECONDS = 8.0  # between the end of a run that saved itself and the end of its time
KILLED_SECONDS = 120.0  # in which SLURM ends a job that it has sent SIGTERM
MOST_TIMEOUTS = 1000  # times that a job may be queued again: each continues from the last checkpoint
KEPT = ("SLURM_CONF",)  # which cluster it is
PHASES = {"PENDING": "waiting", "REQUEUED": "waiting", "REQUEUE_HOLD": "waiting", "SPECIAL_EXIT": "waiting"}


@final
class SlurmExecutor(Executor):
    """Jobs on a SLURM cluster; they go on when this command stops.

    Args:
        options: What each is asked for.
        logs: Folder of the logs, on a disk that the nodes share.
        slots: Jobs of an array that run at a time; None for no limit.
    """

    every = 5.0

    def __init__(self, options: SlurmOptions, logs: Path, slots: int | None = None) -> None:
        for program in ("sbatch", "squeue", "srun"):
            if shutil.which(program) is None:
                raise UserError(f"--executor slurm: there is no `{program}` here; start it on a node of the cluster")
        self.options, self.folder, self.parallel = options, (logs / "slurm").absolute(), slots
        self.jobs: dict[str, str] = {}  # name of a task -> its job
        self.unseen: dict[str, float] = {}  # job that has left the queue -> since when

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        submitted: list[str] = []
        for start in range(0, len(tasks), self.options.array_size):
            part = tasks[start : start + self.options.array_size]
            for task in part:
                task.log.unlink(missing_ok=True)
            jobs = self._sbatch([SlurmTask(task, self.options.signal) for task in part], self.options, self.parallel)
            self.jobs |= {task.name: job for task, job in zip(part, jobs, strict=True)}
            submitted += [f"{PREFIX}{job}" for job in jobs]
        return submitted

    def _sbatch(self, functions: "Sequence[SlurmTask]", o: SlurmOptions, parallel: int | None) -> list[str]:
        submitit = _submitit()
        executor = submitit.SlurmExecutor(self.folder / "%j", max_num_timeout=MOST_TIMEOUTS)
        given: dict[str, Any] = {"partition": o.partition, "account": o.account, "qos": o.qos}
        given |= {"constraint": o.constraint, "setup": list(o.setup) or None, "array_parallelism": parallel or 100_000}
        given |= {"mem": f"{round(o.memory * 1024)}MB" if o.memory else None, "gpus_per_node": o.gpus or None}
        requeue = {"requeue": True, "open-mode": "append"}
        executor.update_parameters(
            job_name="ssl-bench",
            time=o.time,
            nodes=1,
            ntasks_per_node=1,
            cpus_per_task=o.cpus,
            signal_delay_s=o.signal,
            stderr_to_stdout=True,
            additional_parameters=requeue,
            **{name: value for name, value in given.items() if value is not None},
        )
        try:
            kept = {name: os.environ[name] for name in KEPT if name in os.environ}
            with submitit.helpers.clean_env(), executor.batch():  # this may be a job itself
                os.environ.update(kept)
                jobs = [executor.submit(function) for function in functions]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise RunFailed(f"sbatch: {reason}; `--executor.*` says what is asked for") from None
        return [str(job.job_id) for job in jobs]

    def states(self) -> dict[str, State]:
        queue = _squeue() if self.jobs else {}
        found: dict[str, State] = {}
        if queue is None:
            return {name: State("waiting") for name in self.jobs}  # slurmctld does not answer for now
        for name, job in list(self.jobs.items()):
            if job in queue:
                self.unseen.pop(job, None)
                found[name] = State("waiting" if PHASES.get(queue[job]) else "running")
                continue
            code = self._exit_code(job)
            gone = time.monotonic() - self.unseen.setdefault(job, time.monotonic())
            if code is None and gone < LATE_SECONDS:
                found[name] = State("running")
                continue
            del self.jobs[name], self.unseen[job]
            found[name] = State("ended", code)
        return found

    def _exit_code(self, job: str) -> int | None:
        """What the job's function gave back, as submitit keeps it."""
        folder = self.folder / job.partition("_")[0]
        try:
            with open(folder / f"{job}_0_result.pkl", "rb") as file:
                how, what = pickle.load(file)
        except (OSError, EOFError):
            return None
        return int(what) if how == "success" else None

    def adopt(self, task: Task, job: str) -> bool:
        if not job.startswith(PREFIX):
            return False
        self.jobs[task.name] = job.removeprefix(PREFIX)
        return True

    def stop(self) -> str:
        if not self.jobs:
            return ""
        jobs = sorted({job.partition("_")[0] for job in self.jobs.values()})
        return (
            f"{len(self.jobs)} jobs are left to SLURM; the same command follows them, `scancel {' '.join(jobs)}` ends"
            " them"
        )

    def detach(self, argv: Sequence[str], logs: Path) -> str:
        task = Task(tuple(argv), logs / "benchmark.log", logs / "benchmark.claim")
        options = replace(self.options, gpus=0, cpus=1, memory=None)  # it waits and looks
        (job,) = self._sbatch([SlurmTask(task, options.signal)], options, None)
        return f"SLURM job {job} carries on; it says how far it is in {task.log}"


@final
class SlurmTask:
    """What a SLURM job does; submitit sends it there as a pickle.

    Args:
        task: The ordinary command.
        warning: Seconds between SIGUSR2 and the end of the job.
    """

    def __init__(self, task: Task, warning: float) -> None:
        self.task, self.warning = task, warning
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Exit code of the command."""
        code = run_until_free(self.task, os.environ, self._started)
        if code == 128 + signal.SIGTERM:  # SLURM ends this job: it may be queued again, so it has not ended
            time.sleep(KILLED_SECONDS)
        end_job_claim(self.task.cwd / self.task.claim, f"{PREFIX}{_own_job()}")
        return code

    def _started(self, child: "subprocess.Popen[bytes]") -> None:
        self.child = child

    def checkpoint(self) -> Any:
        """Called on SIGUSR2: save, and have submitit queue the job again."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            end = time.monotonic() + self.warning - MARGIN_SECONDS
            while self.child.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
        return _submitit().helpers.DelayedSubmission(SlurmTask(self.task, self.warning))


def _own_job() -> str:
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def _squeue() -> dict[str, str] | None:
    """Job -> state of all of this user's; None where SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={getpass.getuser()}"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split() for line in found.splitlines() if len(line.split()) == 2)


def _submitit() -> Any:
    try:
        import submitit
        import submitit.helpers
    except ImportError:
        raise UserError('--executor slurm needs submitit: pip install "ssl-bench[slurm]"') from None
    return submitit
