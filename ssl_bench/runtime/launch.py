"""Processes that share a run: those that torchrun or srun started, or that this command starts itself. Torch-free.

torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) are the one
way in which a process knows its place; what srun says is put into them (`adopt_launcher`).
"""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ssl_bench.errors import UserError
from ssl_bench.runtime.watchdog import marked_child

GRACE_SECONDS = 30.0  # for the others to end by themselves once a process has failed
LOST_SECONDS = 4.0  # likewise, once one was killed: time for a record
STOPPED = (130, 143)  # exit codes of a process that was asked to stop, by SIGINT or SIGTERM
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Launch:
    """This process among those of a run.

    Args:
        rank: Its place, from 0.
        world_size: How many there are.
        local_rank: Its place among those of its machine.
        local_size: How many each machine has.
        launcher: What started them, for people.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    launcher: str

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.world_size // self.local_size


def adopt_launcher(environ: MutableMapping[str, str] = os.environ) -> Launch | None:
    """What a launcher says of this process, None without one; srun's tasks get torchrun's variables.

    Raises:
        UserError: The launcher's environment is incomplete, its processes are spread unevenly, or it is not known.
    """
    if "RANK" not in environ and int(environ.get("SLURM_NTASKS", 1)) > 1 and not _slurm_shell(environ):
        environ.update(_variables_of_srun(environ))
    if "RANK" not in environ and "LOCAL_RANK" in environ and int(environ.get("WORLD_SIZE", 1)) > 1:
        environ["RANK"] = environ["LOCAL_RANK"]  # Lightning's launcher, which a program has used, sets no other
    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        local_size = int(environ.get("LOCAL_WORLD_SIZE", world_size))
        local_rank = int(environ.get("LOCAL_RANK", rank % local_size))
        environ.setdefault("LOCAL_RANK", str(local_rank))
        if not 0 <= rank < world_size or world_size % local_size:
            raise UserError(
                f"RANK {rank} of WORLD_SIZE {world_size}, LOCAL_WORLD_SIZE {local_size}: processes must be "
                "numbered from 0, and every machine must have as many"
            )
        launcher = environ.get(LAUNCHER) or ("torchrun" if "TORCHELASTIC_RUN_ID" in environ else "the launcher")
        return Launch(rank, world_size, local_rank, local_size, launcher)
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if int(environ.get(variable, 1)) > 1:
            raise UserError(f"{variable} is {environ[variable]}: start the processes with torchrun or srun, not mpirun")
    return None


def several_processes(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started more than this process.

    Raises:
        UserError: As `adopt_launcher`.
    """
    launch = adopt_launcher(dict(environ))
    return launch is not None and launch.world_size > 1


LAUNCHER = "_SSL_BENCH_LAUNCHER"  # what has set torchrun's variables, if not torchrun


def _slurm_shell(environ: MutableMapping[str, str]) -> bool:
    """Whether SLURM gave this process tasks that it has not started: an interactive shell."""
    return environ.get("SLURM_JOB_NAME") in ("bash", "interactive") and "SLURM_STEP_ID" not in environ


def _variables_of_srun(environ: MutableMapping[str, str]) -> dict[str, str]:
    tasks = int(environ["SLURM_NTASKS"])
    if environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        raise UserError(f"SLURM has {tasks} tasks for this command, but it was started once: put srun in front of it")
    nodes = int(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or 1)
    each = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_NTASKS_PER_NODE") or ""
    counts = {int(count) for count in re.findall(r"(?:^|,)(\d+)", each)} or {tasks // nodes}
    if len(counts) > 1 or tasks % nodes or next(iter(counts)) * nodes != tasks:
        raise UserError(f"SLURM has {tasks} tasks on {nodes} nodes: give every node as many, with --ntasks-per-node")
    (local_size,) = counts
    rank = int(environ["SLURM_PROCID"])
    machines = next(
        (environ[v] for v in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if v in environ), ""
    )
    first = re.sub(r"\[(\w+)[^]]*\]", r"\1", machines).replace(" ", ",").split(",")[0]
    job, step = (int(re.sub(r"\D", "", environ.get(v, "")) or 0) for v in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environ.get("SLURM_LOCALID", str(rank % local_size)),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or (first if nodes > 1 and first else "127.0.0.1"),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(15000 + (job * 37 + step) % 17000),
        LAUNCHER: "srun",
    }


def requested_processes(devices: int | str, accelerator: str) -> int:
    """How many processes `--trainer.devices` asks of this machine."""
    text = str(devices).strip()
    if "," in text.strip("[]"):
        return len([part for part in text.strip("[]").split(",") if part.strip()])
    if text.isdigit():
        return int(text)
    if text not in ("auto", "-1") or accelerator not in ("auto", "gpu", "cuda") or shutil.which("nvidia-smi") is None:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def settled_devices(launch: Launch | None, devices: int | str, nodes: int, accelerator: str) -> tuple[int | str, int]:
    """Devices of this machine and number of machines: the launcher's, which the options may repeat but not contradict.

    Raises:
        UserError: They contradict it.
    """
    if launch is None:
        return devices, nodes
    asked = requested_processes(devices, accelerator)
    if str(devices) not in ("auto", "-1") and asked != launch.local_size:
        raise UserError(
            f"--trainer.devices {devices}: {launch.launcher} started {launch.local_size} processes on this machine; "
            "leave the option out, or start as many"
        )
    if nodes not in (1, launch.nodes):
        raise UserError(f"--trainer.num_nodes {nodes}: {launch.launcher} started processes on {launch.nodes}")
    chosen = "," in str(devices)
    return (devices if chosen else launch.local_size), launch.nodes


def run_processes(argv: Sequence[str], count: int, nodes: int = 1) -> int:
    """Start a command once for each device, pass signals on, and give one exit code for all.

    On several machines it is started on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set.
    """
    node = int(os.environ.get("NODE_RANK", 0))
    shared = marked_child(dict(os.environ)) | {LAUNCHER: "--trainer.devices"}
    shared |= {"WORLD_SIZE": str(count * nodes), "LOCAL_WORLD_SIZE": str(count)}
    shared.setdefault("MASTER_ADDR", "127.0.0.1")
    shared.setdefault("MASTER_PORT", str(_free_port()))
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    processes: list[subprocess.Popen[bytes]] = []
    with _passing_on(processes) as received:
        for local in range(count):
            own = shared | {"RANK": str(node * count + local), "LOCAL_RANK": str(local)}
            command = [*_this_program(), *argv]
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on once.
            processes.append(subprocess.Popen(command, env=own, start_new_session=True, preexec_fn=_deaf_to_usr1))
        try:
            rank, code = _first_failure(processes, received)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
    if code >= 0:
        return code  # which has said why
    if received:
        return 128 - code
    name = signal.Signals(-code).name
    print(
        f"ssl-bench: error: process {rank} of {count} was ended by {name}; the same command continues", file=sys.stderr
    )
    return 1


def _first_failure(processes: Sequence["subprocess.Popen[bytes]"], received: Sequence[int]) -> tuple[int, int]:
    """Rank and exit code of the process that failed first, once all have ended or had their time to; (0, 0) if none.

    A process that waits for one that is gone notices in seconds on a CPU, and on a GPU perhaps never.
    """
    first: tuple[int, int] | None = None
    deadline = math.inf
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if first is None and any(codes):
            first = next((rank, code) for rank, code in enumerate(codes) if code)
            if not (received and first[1] in STOPPED):
                grace = LOST_SECONDS if first[1] < 0 else GRACE_SECONDS if first[0] else 0.0
                deadline = time.monotonic() + grace
        if None not in codes:
            break
        time.sleep(0.05)
    return first or (0, 0)


@contextmanager
def _passing_on(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Signals go to the processes; the list is of those that asked them to end."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR1:
            received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _this_program() -> list[str]:
    """How to start ssl-bench as it was started here."""
    script = os.path.abspath(sys.argv[0])
    installed = os.path.basename(script) == "ssl-bench" and os.path.isfile(script)
    return [sys.executable, script] if installed else [sys.executable, "-m", "ssl_bench"]


def _deaf_to_usr1() -> None:
    """Until the command says what SIGUSR1 means to it: by default it ends a process."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
