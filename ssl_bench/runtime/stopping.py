"""What signals ask of a run: to save, to be queued again, to stop. Torch-free.

A handler only takes a note; training looks at it where everything is in a state that can be saved. Where there is
nothing to save yet, SIGINT and SIGTERM end the process at once.
"""

import enum
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final

from ssl_bench.console import say

IMPATIENT_SECONDS = 2.0  # after which another SIGINT or SIGTERM no longer waits


class Wish(enum.IntEnum):
    """What is asked of a run; of two processes' wishes the larger counts."""

    NOTHING = 0
    SAVE = 1  # and go on
    REQUEUE = 2  # save, have SLURM queue the job again, stop
    INTERRUPT = 3  # save and stop: SIGINT
    TERMINATE = 4  # likewise: SIGTERM

    @property
    def ends(self) -> bool:
        """Whether the run stops."""
        return self > Wish.SAVE


class Stopped(BaseException):
    """Ends a run that was asked to stop.

    Args:
        wish: What was asked.
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.name)
        self.wish = wish


@final
class Signals:
    """Notes SIGINT, SIGTERM and SIGUSR1.

    Args:
        requeue: Whether SIGUSR1 means that the job is to be queued again.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self.wish = Wish.NOTHING
        self.waits = False  # whether somebody will look at the wish soon
        self._first = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle them inside; nothing happens outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Make these the handlers; again after a library has set its own."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._note)

    def take(self) -> Wish:
        """What was asked since last taken; a wish to stop remains."""
        wish = self.wish
        if not wish.ends:
            self.wish = Wish.NOTHING
        return wish

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.wish = max(self.wish, Wish.REQUEUE if self.requeue else Wish.SAVE)
            return
        now = time.monotonic()
        again = self.wish.ends and now - self._first > IMPATIENT_SECONDS
        self._first = self._first or now
        self.wish = max(self.wish, Wish.INTERRUPT if number == signal.SIGINT else Wish.TERMINATE)
        if again or not self.waits:
            raise Stopped(self.wish)


def requeue_job(environ: "os._Environ[str]" = os.environ) -> None:
    """Have SLURM queue this job again; a line says if it does not."""
    job = environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not job:
        say("warning: --trainer.requeue: there is no SLURM job to queue again")
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    say(f"warning: scontrol requeue {job}: {reason}" if reason else f"job {job} is queued again")
