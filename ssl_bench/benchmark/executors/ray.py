"""Ray: a task per job, begun again on another node when its own is gone. Torch-free."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from ssl_bench.benchmark.executors.executor import STOP_SECONDS, Executor, State, Task, run_until_free
from ssl_bench.benchmark.executors.options import RayOptions
from ssl_bench.errors import RunFailed, UserError

OWN = ("SSL_BENCH_", "WANDB_")  # variables that a job needs


@final
class RayExecutor(Executor):
    """Jobs on a Ray cluster; they end with this command, unless it runs there itself (`--detach`).

    Args:
        options: What each is asked for.
        slots: Jobs at a time; None for as many as there is room for.
    """

    every = 0.5

    def __init__(self, options: RayOptions, slots: int | None = None) -> None:
        self.options, self.slots = options, slots
        self.ray = _ray()
        self.running: dict[str, tuple[Any, Task]] = {}

    def _connect(self) -> None:
        if self.ray.is_initialized():
            return
        try:
            self.ray.init(address=self.options.address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunFailed(
                f"--executor.address {self.options.address}: {reason}; `ray start --head` begins a cluster,"
                " `--executor.address local` one on this machine"
            ) from None

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        self._connect()
        o = self.options
        memory = {"memory": int(o.memory * 2**30)} if o.memory else {}
        own = {name: value for name, value in os.environ.items() if name.startswith(OWN)}  # workers do not inherit them
        remote = self.ray.remote(num_cpus=o.cpus, num_gpus=o.gpus, max_retries=o.restarts, **memory)(_run)
        for task in tasks:
            task.log.unlink(missing_ok=True)
            named = remote.options(name=task.name, runtime_env={"env_vars": own})
            self.running[task.name] = (named.remote(task), task)
        return [""] * len(tasks)

    def states(self) -> dict[str, State]:
        if not self.running:
            return {}
        references = {reference: name for name, (reference, _) in self.running.items()}
        ended, _ = self.ray.wait(list(references), num_returns=len(references), timeout=0)
        found: dict[str, State] = {}
        for reference, name in references.items():
            if reference not in ended:
                found[name] = State("running" if self.running[name][1].log.exists() else "waiting")
                continue
            del self.running[name]
            try:
                found[name] = State("ended", self.ray.get(reference))
            except self.ray.exceptions.RayError:  # its node is gone, as often as it may be
                found[name] = State("ended", None)
        return found

    def stop(self) -> str:
        references = [reference for reference, _ in self.running.values()]
        for reference in references:
            self.ray.cancel(reference)  # an exception in the task, which ends its process and waits for it
        if references:
            self.ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS)
        return f"{len(references)} jobs were stopped; each continues from its last checkpoint" if references else ""

    def detach(self, argv: Sequence[str], logs: Path) -> str:
        from ray.job_submission import JobSubmissionClient

        if self.options.address == "local":
            raise UserError("--detach leaves a benchmark to a cluster: `--executor.address auto` or `host:port`")
        log = logs.absolute() / "benchmark.log"
        command = shlex.join([sys.executable, "-m", "ssl_bench", *argv])
        entrypoint = f"cd {shlex.quote(os.getcwd())} && exec {command} > {shlex.quote(str(log))} 2>&1"
        try:
            job = JobSubmissionClient(self.options.address).submit_job(entrypoint=entrypoint)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            text = f"--detach: Ray's job server does not answer ({reason}); its head node runs it with the dashboard"
            raise RunFailed(text) from None
        return f"Ray job {job} carries on; it says how far it is in {log}; `ray job stop {job}` ends it"


def _run(task: Task) -> int:
    """What happens on a node: the ordinary command."""
    return run_until_free(task, os.environ)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError('--executor ray needs Ray: pip install "ssl-bench[ray]"') from None
    return ray
