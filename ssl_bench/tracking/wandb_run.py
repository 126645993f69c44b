"""A W&B run that can do no harm: opened and closed within bounds, on disk whole, one warning if W&B fails. Torch-free.

W&B's client writes rows into a folder before it sends them, so whatever happens to key, network or server, `wandb sync`
of that folder brings them later. Tables, pictures and artifacts it asks the server about first: what fails there is
written once more, offline, at the end.
"""

import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from ssl_bench.config.options import WandbOptions
from ssl_bench.console import say
from ssl_bench.tracking.wandb_client import PROBE_SECONDS, Identity, one_line, open_run

CALL_SECONDS = 10.0  # for what the client asks the server while we wait
BYTES_PER_SECOND = 10 * 2**20  # of an artifact, to be read and copied


@final
class WandbRun:
    """What is logged to, or nothing. No call raises; the first failure is kept in `error`.

    Args:
        run: The client's run; None for nothing.
    """

    def __init__(self, run: Any = None) -> None:
        self._run = run
        self._stuck = False
        self.error = ""

    @property
    def on(self) -> bool:
        """Whether anything is logged at all."""
        return self._run is not None

    @property
    def online(self) -> bool:
        """Whether it is sent as it is logged."""
        return self.on and not self._run.offline

    @property
    def folder(self) -> Path:
        """Where the client keeps it."""
        return Path(self._run.dir).parent

    @property
    def url(self) -> str:
        """Its page; empty where it is not online."""
        return str(self._run.url or "") if self.online else ""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """A row of history; the client leaves out one that the server has of an earlier process."""
        self._safely(lambda: self._run.log(dict(values), step=step))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Numbers of the whole run, in the place of earlier ones of the same names."""
        self._safely(lambda: self._run.summary.update(dict(values)))

    def media(self, make: Callable[[Any], Mapping[str, Any]], step: int = 0) -> None:
        """A row of pictures, tables, pages, at a step or after what W&B has.

        Args:
            make: Makes them of the module `wandb`, and may fail.
            step: Where in the history.
        """

        def act() -> None:
            import wandb

            row = dict(make(wandb))
            if row:
                self._run.log(row, step=max(step, self._run.step, self._run.starting_step))

        self._within(CALL_SECONDS, act)

    def artifact(self, name: str, kind: str, files: Mapping[str, Path]) -> None:
        """A version of an artifact; the same content again makes no new one.

        Args:
            name: Of the artifact.
            kind: Its type.
            files: Name in the artifact -> file.
        """
        try:
            size = sum(path.stat().st_size for path in files.values())
        except OSError as error:
            self.error = self.error or one_line(error)
            return

        def act() -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind)
            for inside, path in files.items():
                artifact.add_file(str(path), name=inside)
            self._run.log_artifact(artifact)

        self._within(CALL_SECONDS + size / BYTES_PER_SECOND, act)

    def send(self, everything: "Callable[[WandbRun], None]") -> None:
        """All that there is, by a function that may fail, for it reads files."""
        self._safely(lambda: everything(self))

    def finish(self, exit_code: int = 0) -> None:
        """Send the rest, as long as that takes no longer than it may."""
        self._safely(lambda: self._run.finish(exit_code=exit_code))

    def _within(self, seconds: float, act: Callable[[], None]) -> None:
        """Act, in a thread of its own that is left behind if it takes longer: then nothing like it is tried again."""
        if not self.on or self._stuck:
            return
        if not self.online:
            self._safely(act)
            return
        start = time.monotonic()
        thread = threading.Thread(target=self._safely, args=(act,), daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.error = self.error or f"the server took longer than {seconds:.0f} s"
        self._stuck = bool(self.error) and time.monotonic() - start > PROBE_SECONDS

    def _safely(self, act: Callable[[], None]) -> None:
        if not self.on:
            return
        try:
            act()
        except Exception as error:
            self.error = self.error or one_line(error)


@contextmanager
def wandb_run(
    options: WandbOptions, identity: Identity, folder: Path, send: Callable[[WandbRun], None]
) -> Iterator[WandbRun]:
    """A W&B run for the length of a block: nothing if it is off, offline if it cannot be online.

    Args:
        options: Whether and where.
        identity: Of the run.
        folder: Where W&B may write: `folder/wandb`.
        send: Logs all there is when the block has ended well; once more, offline, if it could not be sent.
    """
    if options.mode == "off" or _rank() != 0:
        yield WandbRun()
        return
    # Artifacts wait for their upload beside the run that they belong to, not in the user's home.
    with _environment(WANDB_DATA_DIR=str((folder / "wandb" / "staged").absolute()), WANDB_SILENT="true"):
        run = WandbRun(open_run(options, identity, folder))
        if run.url:
            say(f"W&B: {run.url}")
        exit_code = 1
        try:
            yield run
            exit_code = 0
        finally:
            _end(run, exit_code, options, identity, folder, send)


def _end(
    run: WandbRun,
    exit_code: int,
    options: WandbOptions,
    identity: Identity,
    folder: Path,
    send: Callable[[WandbRun], None],
) -> None:
    if not run.on:
        return
    online, parts = run.online, [run.folder]
    if exit_code == 0:
        run.send(send)
    run.finish(exit_code)
    if online and run.error and exit_code == 0:
        again = WandbRun(open_run(replace(options, mode="offline"), identity, folder))
        if again.on:
            parts.append(again.folder)
            again.send(send)
            again.finish(exit_code)
    command = shlex.join(["wandb", "sync", *(["--no-skip-online"] if online else []), *map(str, parts)])
    if run.error:
        say(f"warning: W&B: {run.error}; nothing else is affected, and this uploads it later: {command}")
    elif not online:
        say(f"W&B: to upload it: {command}")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    loud, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk fails the client's log at every line
    try:
        yield
    finally:
        logging.raiseExceptions = loud
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or 0)
