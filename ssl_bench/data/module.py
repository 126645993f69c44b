"""The data module: batches of training images, and their views made on the device where training runs.

Shapes: B images of a batch, 3 x H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch

from ssl_bench.augment.executors import ColourOnDevice, CropInWorker, DeviceViews
from ssl_bench.augment.operations import apply_operations, load_operations
from ssl_bench.augment.views import Views
from ssl_bench.config.options import DataOptions
from ssl_bench.data.batch import Batch
from ssl_bench.data.dataset import Dataset
from ssl_bench.data.files.left_out import add_left_out, read_left_out
from ssl_bench.data.loaders import PhotographLoader, RawBatch, ResidentLoader
from ssl_bench.data.order import Order
from ssl_bench.data.pool import ResidentPool
from ssl_bench.runtime.seeds import derive


@final
class DataModule(pl.LightningDataModule):
    """Feeds pretraining; knows no method, only the description of its views.

    Args:
        data: The opened data set; pretraining uses all its training images.
        options: Batch size and workers; `batch_size` is lowered at setup to what there are images for.
        views: What a method wants to see of each image.
        seed: The run's.
        labels: Whether batches carry the labels of `data.pretrain`.
        operations: Names of operations of the user's on each view.

    Raises:
        UserError: There is no such operation.
    """

    def __init__(
        self,
        data: Dataset,
        options: DataOptions,
        views: Views,
        seed: int,
        labels: bool = False,
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.data, self.options, self.seed = data, options, seed
        self._views = views
        self._names, self._operations = operations, load_operations(operations)
        self.folder: Path | None = None  # of the run, which remembers images that are found broken
        self._resident = DeviceViews(views, data.mean, data.std)
        self._cropped = ColourOnDevice(views, data.mean, data.std)
        self._labels = torch.as_tensor(data.pretrain.labels) if labels else None  # (N,)
        self._loader: ResidentLoader | PhotographLoader | None = None

    def setup(self, stage: str) -> None:
        """Cut the training images into batches for this process."""
        trainer = self.trainer
        assert trainer is not None, "a trainer sets its data module up"
        order = Order(
            len(self.data.pretrain),
            self.options.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            epoch=lambda: trainer.current_epoch,
            first_batch=lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        )
        self.options = replace(self.options, batch_size=order.batch_size)
        pool = self.data.pretrain
        if isinstance(pool, ResidentPool):
            self._loader = ResidentLoader(pool, order)
        else:
            crop = CropInWorker(self._views)
            folder, given = self.folder, (self.options.num_workers, self.options.strict)
            known = read_left_out(folder) if folder is not None else {}
            remember = partial(add_left_out, folder) if folder is not None else None
            self._loader = PhotographLoader(pool, order, crop, *given, known, remember)

    def train_dataloader(self) -> ResidentLoader | PhotographLoader:
        assert self._loader is not None, "setup comes first"
        return self._loader

    def teardown(self, stage: str) -> None:
        """End the worker processes."""
        if isinstance(self._loader, PhotographLoader):
            self._loader.close()

    @property
    def broken(self) -> tuple[str, ...]:
        """Images that were found broken only while training decoded them."""
        return tuple(sorted(self._loader.broken)) if isinstance(self._loader, PhotographLoader) else ()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Views of a raw batch, drawn from (seed, epoch, batch, rank)."""
        if not isinstance(batch, RawBatch):
            return batch
        rank = self.trainer.global_rank if self.trainer is not None else 0
        generator = torch.Generator(batch.rows.device)
        generator.manual_seed(derive(self.seed, batch.epoch, batch.batch, rank))
        if isinstance(batch.images, torch.Tensor):
            views = self._resident(batch.images, generator)
        else:
            views = self._cropped(batch.images, generator)
        if self._operations:
            statistics = self.data.mean, self.data.std
            views = [apply_operations(self._operations, self._names, v, *statistics, generator) for v in views]
        return Batch(views, batch.rows, self._labels_of(batch.rows))

    def _labels_of(self, rows: torch.Tensor) -> torch.Tensor | None:
        if self._labels is None:
            return None
        self._labels = self._labels.to(rows.device)  # once, so that no step waits for the device
        return self._labels[rows]
