"""The last checkpoint of a run, and the one before it: whole, verified when read, on the disk when written."""

import os
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast, final

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins import CheckpointIO

from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.pretraining.metrics import MetricsFile
from ssl_bench.records.files import replacing, temporary_beside
from ssl_bench.runtime.distributed import Agreement, world_size
from ssl_bench.runtime.stopping import Signals, Stopped, Wish, requeue_job

LAST, BEFORE = "last.ckpt", "previous.ckpt"


def usable_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last, or the one before it if the last is damaged; None at first.

    Raises:
        UserError: There are some, and all are damaged.
    """
    damaged: list[str] = []
    for path in (folder / "checkpoints" / LAST, folder / "checkpoints" / BEFORE):
        if not path.exists():
            continue
        fault = fault_of(path)
        if fault is None:
            if damaged:
                say(f"warning: {damaged[0]}; going on from {path.name}, the one before it")
            return path
        damaged.append(f"{path} is damaged ({fault})")
    if damaged:
        raise UserError(f"{damaged[0]}: bring it back, or remove {folder}/checkpoints to begin this run anew")
    return None


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, if anything: torch writes an archive with a checksum of each entry."""
    if not path.is_file():
        return "it is no regular file"
    try:  # a damaged header may name a compression that zipfile lacks, for which it raises NotImplementedError
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
            return None if entry is None else f"{entry} does not match its checksum"
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:100]


@final
class _ToFile:
    """Takes what torch writes; an error is kept for later, since torch would make another of it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole checkpoint; the one that was there stays beside it as the one before.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            sink = _ToFile(file)
            torch.save(dict(content), cast(IO[bytes], sink))
            if sink.error is not None:
                raise sink.error
        if path.exists():
            spare = temporary_beside(path.with_name(BEFORE))
            try:
                os.link(path, spare)  # so that there is a last one at every moment
                os.replace(spare, path.with_name(BEFORE))
            except OSError:  # no such links here
                os.replace(path, path.with_name(BEFORE))


@final
class LocalCheckpointIO(CheckpointIO):
    """How Lightning reads and writes checkpoints: Lightning's own takes paths for addresses, and flushes nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


@final
class SaveLast(Checkpoint):
    """checkpoints/last.ckpt after each epoch, every few minutes, and when a signal asks for it.

    Within an epoch it is written after an optimiser step, when no gradient is half collected. All processes do so after
    the same step, and metrics.csv is written first: no kill can lose rows that training will not repeat.

    Args:
        folder: The run folder.
        config: Stored with the weights.
        data_sha256: Of the images; what every process must have.
        signals: What is asked of the run.
        minutes: Between checkpoints within an epoch; 0 for none.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], data_sha256: str, signals: Signals, minutes: float = 15.0
    ) -> None:
        self.path = folder / "checkpoints" / LAST
        self.config, self.data_sha256 = config, data_sha256
        self.signals, self.minutes = signals, minutes
        self._agreed = Agreement()
        self._saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._compare(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.resume(trainer.global_step)
        self._saved = time.monotonic()
        # Lightning answers SIGTERM with a collective in the handler, and asks every batch whether there was one.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.signals.install()
        self.signals.waits = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        ends = done >= trainer.num_training_batches or trainer.global_step == trainer.max_steps
        if ends or done % trainer.accumulate_grad_batches:
            return  # an epoch's end has a checkpoint of its own
        wish = self._agreed.later(self._wish(trainer))
        if wish:
            self._save(trainer)
            self._heed(trainer, Wish(wish))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        wish = self._agreed.now(self._wish(trainer))
        self._save(trainer)
        if trainer.current_epoch + 1 != trainer.max_epochs and trainer.global_step != trainer.max_steps:
            self._heed(trainer, Wish(wish))  # a run that is over ends as one

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.signals.waits = False

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ssl_bench"] = {"config": self.config, "world_size": trainer.world_size}

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        before = checkpoint.get("ssl_bench", {}).get("world_size", trainer.world_size)
        if before != trainer.world_size:
            raise UserError(
                f"{self.path.parent.parent} was trained on {before} devices and here are {trainer.world_size}: its "
                f"steps would have other images. Start it on {before}, or anew in another --runs"
            )

    def _wish(self, trainer: pl.Trainer) -> Wish:
        wish = self.signals.take()
        late = 0 < self.minutes * 60 < time.monotonic() - self._saved
        return max(wish, Wish.SAVE) if late and trainer.is_global_zero else wish

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved = time.monotonic()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.write()
        trainer.save_checkpoint(self.path)  # on every rank; rank 0 writes

    def _heed(self, trainer: pl.Trainer, wish: Wish) -> None:
        """Stop, if that was asked."""
        if wish is Wish.REQUEUE and trainer.is_global_zero:
            requeue_job()
        if wish.ends:
            raise Stopped(wish)

    def _compare(self, trainer: pl.Trainer) -> None:
        """Whether all processes have the same images and go on from the same step: their machines may differ."""
        if world_size() == 1:
            return
        found: list[Any] = [None] * world_size()
        dist.all_gather_object(found, (self.data_sha256, trainer.global_step))
        for what, values in zip(("images", "checkpoints"), zip(*found, strict=True), strict=True):
            if len(set(values)) > 1:
                raise UserError(
                    f"the processes of this run read different {what}: is {self.path.parent.parent} shared?"
                )


def remove_previous(folder: Path) -> None:
    """The checkpoint before the last, once a run is finished."""
    with suppress(OSError):
        (folder / "checkpoints" / BEFORE).unlink(missing_ok=True)
