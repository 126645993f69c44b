"""The command line. Torch-free until a command needs it: help, lists, plans and the leaderboard answer at once."""

import argparse
import errno
import importlib
import keyword
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

import ssl_bench
from ssl_bench.cli.commands import COMMANDS, refuse
from ssl_bench.errors import LostProcess, RunFailed, Taken, Terminated, UserError, near
from ssl_bench.runtime.watchdog import end_with_parent

# What the user can change at once: another place. The rest is a disk's or a network's trouble.
WRONG_PLACE = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LESS_MEMORY = "a smaller network, image size or --data.batch_size needs less"
# What all processes have to say, the first says, and whoever started them ends the others before they do; and whoever
# started them knows best which process is gone.
FIRST_FIRST_SECONDS, CAUSE_FIRST_SECONDS = 6.0, 6.0

EXAMPLES = """examples:
  ssl-bench list methods
  ssl-bench fit --method simclr              pretrain on embedded images; prints its run folder
  ssl-bench evaluate runs/simclr-... pixels  measure it, beside raw pixels
  ssl-bench leaderboard                      all results in one table
  ssl-bench COMMAND --help                   options and examples of a command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give its exit code: 0, 1 (failed), 2 (bad input), 75 (taken), 130 (Ctrl-C), 143 (SIGTERM)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end_with_parent()
    # A thread that waits for another gives its core away: where other jobs keep the cores busy, threads that spin
    # instead make a forward pass of two threads take 20 to 100 times as long. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _terminated_by_sigterm():
            return _dispatch(argv)
    except UserError as error:
        return _failed(str(error), 2)
    except LostProcess as error:
        return _failed(str(error), 1, CAUSE_FIRST_SECONDS)
    except Taken as error:
        return _failed(str(error), Taken.exit_code)
    except RunFailed as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return _stopped("interrupted", 130)
    except Terminated:
        return _stopped("ended by SIGTERM", 143)
    except BrokenPipeError:  # `ssl-bench list backbones | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _failed(*_about(error))
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        return _failed(f"there is not enough memory ({_first_line(error)}): {LESS_MEMORY}", 1)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2


def _dispatch(argv: list[str]) -> int:
    top = argparse.ArgumentParser(
        "ssl-bench",
        description="A benchmark of self-supervised visual pretraining: pretrain, evaluate, compare.",
        epilog=EXAMPLES,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=16, width=110),
        allow_abbrev=False,
    )
    top.error = refuse(top)  # type: ignore[method-assign]
    top.add_argument("--version", action="version", version=f"ssl-bench {ssl_bench.__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(f"no command {argv[0]!r}{near(argv[0], COMMANDS)} ({', '.join(COMMANDS)})")
    if not argv or argv[0] not in COMMANDS:
        top.parse_args(argv)
        top.print_help()
        return 0
    name = argv[0] + "_" * keyword.iskeyword(argv[0])
    code: int = importlib.import_module(f"ssl_bench.cli.{name}").main(argv[1:])
    return code


def _rank() -> int:
    """Of this process among those that share a command."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def _failed(text: str, code: int, wait: float = 0.0) -> int:
    """Say what went wrong, the first process at once, the others if nobody has ended them by then."""
    rank = _rank()
    time.sleep(max(wait, FIRST_FIRST_SECONDS if rank else 0.0))
    print(f"ssl-bench: error: {f'process {rank}: ' if rank else ''}{text}", file=sys.stderr)
    return code


def _stopped(how: str, code: int) -> int:
    if _rank() == 0:
        print(f"ssl-bench: {how}; the same command continues where this one stopped", file=sys.stderr)
    return code


def _about(error: OSError) -> tuple[str, int]:
    """What an error of the operating system means here, and its exit code."""
    what = f"{error.filename}: " if error.filename is not None else ""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if error.errno in WRONG_PLACE:
        return f"{what}{reason}; choose another place", 2
    if error.errno in NO_ROOM:
        return f"{what}{reason}; make room, and the same command goes on from what is there", 1
    if error.errno == errno.ENOENT:
        return f"{what}{reason}", 2
    return f"{what}{reason}; nothing that was written whole is lost, and the same command continues", 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:150]


def _lacks_memory(error: Exception) -> bool:
    """Whether memory is what an error is about, of the machine or of a GPU."""
    name = type(error).__name__  # torch's own, by name: this module does not load torch
    return name in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error)


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what it began to write goes, and a line is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
