"""Commands tried one after another, each in a process of its own that begins with everything loaded.

`python trials.py` is that beginning: it imports what commands import, and forks for each order on standard input, so
that a trial takes as long as its command alone. An order may have its process killed, or the disk fail, at a chosen
change of the file system.
"""

import builtins
import contextlib
import ctypes
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import ROOT

CHANGES = ("open", "fsync", "chmod", "replace", "rename", "unlink", "mkdir", "rmdir")  # of `os`
MOST_MEMORY = 12 << 30  # bytes of addresses: what asks for all memory is refused it, and the machine lives
STOP_SECONDS = 60.0  # for a command that is asked to end
ENDS = (0, 1, 2, 75)  # exit codes that a command may have; 75: another command has claimed the run


@dataclass(frozen=True)
class Trial:
    """What a command did.

    Args:
        argv: Its arguments.
        code: Exit code; the signal, negative, that ended it.
        out: Standard output.
        err: Standard error.
        seconds: That it took.
        stopped: It ran longer than it was given, and was asked to end.
        changes: Of the file system, counted.
    """

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    stopped: bool
    changes: int

    @property
    def said(self) -> str:
        """Lines of the program itself about what went wrong."""
        return "\n".join(line for line in self.err.splitlines() if line.startswith("ssl-bench"))

    def fault(self) -> str | None:
        """What no command may do, whatever it was given; None if it behaved."""
        if "Traceback (most recent call last)" in self.err:
            return "traceback: " + self.err.strip().splitlines()[-1][:200]
        if self.code not in (*ENDS, *([143] if self.stopped else [])):
            return "hang: asked to end, and killed" if self.stopped else f"exit code {self.code}"
        if self.code and not self.said:
            return f"exit code {self.code} without a word"
        return None


class Trials:
    """The beginning that trials fork from.

    Args:
        cache: What commands remember of images.
    """

    def __init__(self, cache: Path) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SSL_BENCH_"))}
        search = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        own |= {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", "SSL_BENCH_CACHE": str(cache), "WANDB_MODE": "offline"}
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(
        self, argv: Sequence[str], folder: Path, seconds: float = 60.0, at: int = 0, error: int = 0, kill: float = 0.0
    ) -> Trial:
        """Try a command.

        Args:
            argv: Its arguments.
            folder: Where it runs.
            seconds: After which it is asked to end.
            at: The change of the file system, from 1, at which something happens; 0 for nothing.
            error: What then happens: this error, and at each later one too; 0 for SIGKILL.
            kill: Seconds after which the process is killed; 0 for never.
        """
        order = {"argv": list(argv), "folder": str(folder), "seconds": seconds, "at": at, "error": error, "kill": kill}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that trials fork from is gone"
        found = json.loads(answer)
        return Trial(tuple(argv), **found)

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def _serve() -> None:
    import pytorch_lightning  # noqa: F401
    import timm  # noqa: F401
    import torch

    import ssl_bench.cli.main
    import ssl_bench.evaluation.command
    import ssl_bench.figures.write
    import ssl_bench.pretraining.training  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_tried(json.loads(line))) + "\n")
        answers.flush()


def _tried(order: dict[str, Any]) -> dict[str, Any]:
    # Memory rather than files: whatever a command does to the disk, what it says is kept.
    files = [os.memfd_create(name) for name in ("out", "err", "changes")]
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(order, files)
    stopped, status = False, None
    while status is None:
        time.sleep(0.005)
        done, code = os.waitpid(pid, os.WNOHANG)
        passed = time.monotonic() - start
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif order["kill"] and passed > order["kill"] or passed > order["seconds"] + STOP_SECONDS:
            os.killpg(pid, signal.SIGKILL)
        elif passed > order["seconds"] and not stopped:
            stopped = True
            os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):  # what it has started and left
        os.killpg(pid, signal.SIGKILL)
    out, err, changes = (_content(file) for file in files)
    found = {"code": status, "out": out, "err": err, "seconds": time.monotonic() - start, "stopped": stopped}
    return found | {"changes": len(changes)}


def _content(file: int) -> str:
    with os.fdopen(file, "rb") as opened:
        opened.seek(0)
        return opened.read().decode(errors="replace")


def _run(order: dict[str, Any], files: Sequence[int]) -> None:
    """The forked process, which never returns."""
    code = 99
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the process that forked it
        null = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((null, *files[:2])):
            os.dup2(file, number)
        os.chdir(order["folder"])
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _watch_changes(files[2], order["at"], order["error"])
        from ssl_bench.cli.main import main

        code = main(order["argv"])
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch_changes(counter: int, at: int, error: int) -> None:
    """Count changes of the file system that this process makes; something happens just before one of them."""
    own, seen = os.getpid(), 0

    def watched(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def changed(*args: Any, **options: Any) -> Any:
            nonlocal seen
            if os.getpid() == own and _writes(name, args, options):
                seen += 1
                os.write(counter, b".")
                if at and seen >= at:
                    if not error:
                        os.kill(own, signal.SIGKILL)
                    if name != "unlink":  # which a full disk allows
                        raise OSError(error, os.strerror(error), *(args[:1] if isinstance(args[0], str) else ()))
            return real(*args, **options)

        return changed

    for name in CHANGES:
        setattr(os, name, watched(getattr(os, name), name))
    builtins.open = io.open = watched(io.open, "file")


def _writes(name: str, args: Sequence[Any], options: dict[str, Any]) -> bool:
    if name == "open":
        return bool(args[1] & (os.O_WRONLY | os.O_RDWR)) and args[0] != os.devnull
    mode = options.get("mode", args[1] if len(args) > 1 else "r") if name == "file" else ""
    return name != "file" or bool(set(mode) & set("wax+")) and isinstance(args[0], str | os.PathLike)


if __name__ == "__main__":
    _serve()
