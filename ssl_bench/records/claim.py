"""Claims: of all processes on all machines that share a disk, one works on a run or a job. Torch-free.

A claim is a file, created with O_CREAT | O_EXCL, that says who has it. Its holder renews the time of the file every
BEAT_SECONDS; one that has not been renewed for STALE_SECONDS is nobody's, and at once so one of this machine whose
process is gone. Whoever takes over or gives up a claim first creates its gate, a file that carries the claim's token:
only one process ever opens the gate of a claim, so nobody removes a claim that another has just taken.

What is assumed of a network file system (true of NFS 3 and later, Lustre, GPFS): exclusive creation and renaming are
atomic, opening a file shows what was written before it was closed elsewhere, and times of files are the server's. No
two clocks are compared: a claim's age is counted from the time of a file that is created to ask.
"""

import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import final

from ssl_bench.console import say
from ssl_bench.errors import Taken
from ssl_bench.records.files import age, read_regular, temporary_beside
from ssl_bench.records.processes import born, machine, runs

NAME = "claim.json"  # in a run folder
BEAT_SECONDS = 20.0
STALE_SECONDS = 180.0  # longer than a beat and the minute for which NFS clients may remember a file's time
MOST_BYTES = 10_000  # of a claim


@dataclass(frozen=True)
class Holder:
    """Who has a claim.

    Args:
        host: Name of the machine.
        process: Number of the process there.
        born: When the process was started, in the kernel's ticks: numbers are given again.
        machine: Boot and process namespace: processes of two containers may have the same number.
        token: Of this claim alone.
        since: ISO 8601 with offset.
        job: Of a batch system, which knows whether it lives; such a claim is never stale.
    """

    host: str
    process: int
    born: str
    machine: str
    token: str
    since: str
    job: str = ""

    def __str__(self) -> str:
        return f"{self.job or f'process {self.process} on {self.host}'}, since {self.since}"

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine, and has ended."""
        if self.job or self.machine != machine():
            return False
        return not runs(self.process) or born(self.process) not in ("", self.born)


@final
class Claim:
    """One that this process holds, and renews until it is released.

    Args:
        path: Of its file.
        holder: This process.
        descriptor: Of the open file.
    """

    def __init__(self, path: Path, holder: Holder, descriptor: int) -> None:
        self.path, self.holder, self.descriptor = path, holder, descriptor
        _HEART.add(self)

    def release(self) -> None:
        """Give it up, unless it is another's by now."""
        self.abandon()
        with suppress(OSError), _gate(self.path, self.holder.token) as opened:
            if opened:
                self.path.unlink()

    def abandon(self) -> None:
        """Leave the file as it is, and renew it no longer."""
        if _HEART.remove(self):
            os.close(self.descriptor)

    def hand_to(self, job: str) -> None:
        """Let a batch system's job hold it: nobody renews it, and whoever ends the job removes it."""
        holder = Holder(**{**asdict(self.holder), "job": job})
        self.abandon()
        os.close(_replace(self.path, holder))

    def beat(self) -> bool:
        """Renew it; False where another process has taken it over."""
        with suppress(OSError):
            os.utime(self.descriptor)
        try:
            there, mine = os.stat(self.path), os.fstat(self.descriptor)
        except OSError as error:
            return error.errno != errno.ESTALE  # the disk may come back
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def take(path: Path) -> Claim | None:
    """The claim at a path, unless a living process has it.

    Raises:
        OSError: Its file cannot be written.
    """
    holder = _this_process()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = _create(path, holder)
        if descriptor is not None:
            return Claim(path, holder, descriptor)
        found = read_holder(path)
        if found is None:
            continue  # it was given up just now
        if not _is_stale(path, found):
            return None
        with _gate(path, found.token) as opened:
            if opened:
                return Claim(path, holder, _replace(path, holder))
            if read_holder(path) == found:
                return None  # another process takes it over


def end_job_claim(path: Path, job: str) -> None:
    """Remove the claim that a batch system's job has, once that has ended."""
    holder = read_holder(path)
    if holder is not None and holder.job == job:
        with suppress(OSError), _gate(path, holder.token) as opened:
            if opened:
                path.unlink()


def living_holder(path: Path) -> Holder | None:
    """Who has a claim; None where nobody has, or where the process that had it is gone or has been silent for long."""
    found = read_holder(path)
    return None if found is None or _is_stale(path, found) else found


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the claim of a run folder; this process ends at once if another takes it over.

    Raises:
        Taken: Another process has it.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    claim = take(folder / NAME)
    if claim is None:
        refuse_if_taken(folder)
        raise Taken(f"{folder}: another process has just taken it; the same command goes on when that has ended")
    try:
        yield
    finally:
        claim.release()
        with suppress(OSError):  # which says that something was written
            for path in new:
                path.rmdir()


def refuse_if_taken(folder: Path) -> None:
    """Stop before anything is loaded.

    Raises:
        Taken: Another process works on this run folder.
    """
    if (holder := living_holder(folder / NAME)) is not None:
        raise Taken(f"{folder} is taken by {holder}; the same command goes on when that has ended")


def read_holder(path: Path) -> Holder | None:
    """What a claim says, alive or not; None where there is none."""
    try:
        text = read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):  # it is being written, or its writer was killed meanwhile
        return Holder("an unknown machine", 0, "", "", "unwritten", "a moment ago")


def _this_process() -> Holder:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    process = os.getpid()
    return Holder(os.uname().nodename, process, born(process), machine(), os.urandom(8).hex(), now)


def _create(path: Path, holder: Holder) -> int | None:
    """Descriptor of the new file of a claim; None where there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return None
    os.write(descriptor, json.dumps(asdict(holder), indent=2).encode())
    os.fsync(descriptor)
    return descriptor


def _replace(path: Path, holder: Holder) -> int:
    """Put a claim in the place of another; descriptor of its file."""
    temporary = temporary_beside(path)
    descriptor = _create(temporary, holder)
    assert descriptor is not None
    os.replace(temporary, path)
    return descriptor


@contextmanager
def _gate(path: Path, token: str) -> Iterator[bool]:
    """Yield whether this process, alone, may remove or replace the claim with a token, and it is still there.

    One whose opener was killed stays; after STALE_SECONDS the next number counts.
    """
    token = re.sub(r"\W", "", token)[:40]
    passed: list[Path] = []
    for number in count():
        gate = path.with_name(f".{path.name}.{token}-{number}.gate")
        passed.append(gate)
        try:
            os.close(os.open(gate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            break
        except FileExistsError:
            if age(gate) < STALE_SECONDS:
                yield False
                return
    try:
        found = read_holder(path)
        yield found is not None and found.token == token
    finally:
        for gate in passed:
            gate.unlink(missing_ok=True)


def _is_stale(path: Path, holder: Holder) -> bool:
    return not holder.job and (holder.gone or age(path) > STALE_SECONDS)


@final
class _Heart:
    """A thread that renews all claims of this process."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.lock = threading.Lock()
        self.owner = 0  # process that the thread belongs to: a forked one has none

    def add(self, claim: Claim) -> None:
        with self.lock:
            self.claims.append(claim)
            if self.owner != os.getpid():
                self.owner = os.getpid()
                self.claims = [claim]
                threading.Thread(target=self._run, name="claims", daemon=True).start()

    def remove(self, claim: Claim) -> bool:
        """Whether it was there."""
        with self.lock:
            known = claim in self.claims
            self.claims = [each for each in self.claims if each is not claim]
            return known

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_SECONDS):
            with self.lock:
                lost = [claim for claim in self.claims if not claim.beat()]
            if lost:  # whatever this process would write now, it would write into another's work
                holder = read_holder(lost[0].path)
                say(f"ssl-bench: error: {lost[0].path.parent} is no longer this process's: it was silent for more than")
                say(f"{STALE_SECONDS:.0f} s, and {holder} has taken it; nothing more is written")
                os._exit(Taken.exit_code)


_HEART = _Heart()
