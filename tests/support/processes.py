"""`ssl-bench fit` in processes of its own, and who runs because of it."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paths import ROOT

PROC = Path("/proc")
SECONDS = 240.0  # for anything to happen on a busy machine
OWN_PEAK = (  # an expression for `python -c`: MiB of this program alone; getrusage counts its parent's as well
    "next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1024"
)
FIT = (sys.executable, "-m", "ssl_bench", "fit")
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    "-m",
    "ssl_bench",
    "fit",
)


def started(
    flags: Sequence[str], command: Sequence[str] = FIT, **environment: str | Mapping[str, str]
) -> "subprocess.Popen[str]":
    """A command with its output to read; SIGINT reaches it even where tests run in the background."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SSL_BENCH_"))}
    return subprocess.Popen(
        [*command, *flags],
        env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """What it says on standard error up to a line that holds a text."""
    assert process.stderr is not None
    said, deadline = "", time.monotonic() + SECONDS
    while text not in said:
        assert time.monotonic() < deadline, said
        if select.select([process.stderr], [], [], 1.0)[0]:
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
    return said


def wait_until(
    happened: Callable[[], object], process: "subprocess.Popen[str] | None" = None, seconds: float = SECONDS
) -> None:
    """Until something is so, while a process lives."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes that another has started and that live."""
    found = []
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def running(pid: int) -> bool:
    """Whether a process lives."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
