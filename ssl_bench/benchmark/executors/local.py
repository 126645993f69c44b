"""Processes of this machine. Torch-free."""

import os
import queue
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import final

from ssl_bench.benchmark.executors.executor import Executor, State, Task, end_gently
from ssl_bench.errors import UserError
from ssl_bench.runtime.watchdog import marked_child


@final
class LocalExecutor(Executor):
    """Each task in a slot: its share of the cores, and a GPU where there are several.

    Args:
        slots: Processes at a time.
    """

    def __init__(self, slots: int) -> None:
        self.slots: int = slots
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self.free.put(slot)
        self.gpus = gpu_count() if slots > 1 else 0
        self.processes: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        for task in tasks:
            slot = self.free.get_nowait()
            with open(task.log, "wb") as log:
                own = self._environment(slot)
                process = subprocess.Popen(task.command, stdout=log, stderr=subprocess.STDOUT, env=own, cwd=task.cwd)
            self.processes[task.name] = (slot, process)
        return [""] * len(tasks)

    def _environment(self, slot: int) -> dict[str, str]:
        environment = marked_child(dict(os.environ))
        if self.slots > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.slots)))
        if self.gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self.gpus)
        return environment

    def states(self) -> dict[str, State]:
        found: dict[str, State] = {}
        for name, (slot, process) in list(self.processes.items()):
            code = process.poll()
            found[name] = State("running") if code is None else State("ended", code)
            if code is not None:
                del self.processes[name]
                self.free.put(slot)
        return found

    def stop(self) -> str:
        running = [process for _, process in self.processes.values()]
        end_gently(running)
        return f"{len(running)} jobs were stopped; each continues from its last checkpoint"

    def detach(self, argv: Sequence[str], logs: Path) -> str:
        raise UserError(
            "--detach leaves a benchmark to a cluster: --executor slurm or ray; here nohup or tmux keeps it"
        )


def gpu_count() -> int:
    """How many there are to share out; 0 where the user has chosen some."""
    if "CUDA_VISIBLE_DEVICES" in os.environ or shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())
