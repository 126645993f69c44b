"""The data module in Lightning's hands: views, epochs, ranks, and resuming in the middle of an epoch."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pictures import picture

from ssl_bench.augment.executors import ColourOnDevice, DeviceViews
from ssl_bench.augment.views import View
from ssl_bench.config.options import DataOptions
from ssl_bench.data.batch import Batch
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.loaders import RawBatch
from ssl_bench.data.module import DataModule
from ssl_bench.runtime.seeds import derive

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]
VIEWS = [View(size=8, count=2, jitter=(0.4, 0.4, 0.4, 0.1)), View(size=6, flip=0.0)]


class Watcher(pl.LightningModule):
    """Learns nothing; remembers each batch, and saves a checkpoint after some of them."""

    def __init__(self, save_after: tuple[int, ...] = (), folder: Path | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, Batch]] = []
        self.save_after, self.folder = save_after, folder

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, index, batch))
        return self.layer(torch.ones(1, 1)).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step in self.save_after:
            self.trainer.save_checkpoint(self.folder / f"{self.global_step}.ckpt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass
class Run:
    """A short training run on CPU."""

    data: Dataset
    options: DataOptions
    epochs: int = 3
    trainer: dict[str, Any] = field(default_factory=dict)

    def __call__(self, watcher: Watcher | None = None, resume: Path | None = None) -> Watcher:
        watcher = watcher or Watcher()
        module = DataModule(self.data, self.options, VIEWS, seed=11)
        trainer = pl.Trainer(
            max_epochs=self.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **self.trainer,
        )
        trainer.fit(watcher, datamodule=module, ckpt_path=resume, weights_only=True)
        return watcher


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.index, b.index) and all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


@pytest.fixture
def digits() -> Run:
    options = DataOptions(name="digits", batch_size=300)
    return Run(load_dataset(options), options)


@pytest.fixture
def photographs(tmp_path) -> Run:
    for row in range(10):
        picture(row, 100 + row, 120).save(tmp_path / f"{row}.png")
    options = DataOptions(name="folder", root=str(tmp_path), batch_size=3, num_workers=2)
    return Run(load_dataset(options), options, epochs=2)


def test_resident_batches_become_views(digits):
    seen = digits().seen
    assert [(epoch, index) for epoch, index, _ in seen] == [(e, i) for e in range(3) for i in range(4)]
    for epoch, index, batch in seen:
        assert isinstance(batch, Batch) and [tuple(view.shape) for view in batch.views] == [(300, 3, 8, 8)] * 2 + [
            (300, 3, 6, 6)
        ]
        generator = torch.Generator().manual_seed(derive(11, epoch, index, 0))
        expected = DeviceViews(VIEWS, digits.data.mean, digits.data.std)(
            digits.data.pretrain.images[batch.index], generator
        )
        assert all(torch.equal(view, wanted) for view, wanted in zip(batch.views, expected, strict=True))
    for epoch in range(3):
        rows = torch.cat([batch.index for e, _, batch in seen if e == epoch])
        assert len(set(rows.tolist())) == 1200
    assert not torch.equal(seen[0][2].index, seen[4][2].index)


def test_photographs_become_views_and_epochs_differ(photographs):
    seen = photographs().seen
    assert [(epoch, index) for epoch, index, _ in seen] == [(e, i) for e in range(2) for i in range(3)]
    sizes = [tuple(view.shape) for view in seen[0][2].views]
    assert sizes == [(3, 3, 8, 8)] * 2 + [(3, 3, 6, 6)] and seen[0][2].views[0].dtype == torch.float32
    again = photographs().seen
    assert all(equal(a[2], b[2]) for a, b in zip(seen, again, strict=True))
    assert not torch.equal(seen[0][2].index, seen[3][2].index)


def test_colour_of_photographs_follows_epoch_batch_and_rank(photographs):
    module = DataModule(photographs.data, photographs.options, VIEWS, seed=11)
    crops = [torch.randint(0, 256, (3, 3, s, s), dtype=torch.uint8) for s in (8, 8, 6)]
    raw = RawBatch(crops, torch.arange(3), epoch=4, batch=2)
    found = module.on_after_batch_transfer(raw, 0)
    generator = torch.Generator().manual_seed(derive(11, 4, 2, 0))
    expected = ColourOnDevice(VIEWS, photographs.data.mean, photographs.data.std)(crops, generator)
    assert all(torch.equal(view, wanted) for view, wanted in zip(found.views, expected, strict=True))
    other = module.on_after_batch_transfer(raw._replace(batch=3), 0)
    assert not torch.equal(found.views[0], other.views[0])
    assert module.on_after_batch_transfer("something else", 0) == "something else"


@pytest.mark.parametrize("kind", ["digits", "photographs"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.integration
def test_resuming_continues_with_the_next_batch(kind, steps, request, tmp_path):
    run: Run = request.getfixturevalue(kind)
    run.epochs = 2
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        whole = run(Watcher((steps,), tmp_path)).seen
        resumed = run(resume=tmp_path / f"{steps}.ckpt").seen
    rest = whole[steps:]
    assert [found[:2] for found in resumed] == [found[:2] for found in rest]
    assert all(equal(a[2], b[2]) for a, b in zip(resumed, rest, strict=True))


def test_fewer_images_than_a_batch(digits):
    digits.options = DataOptions(name="digits", batch_size=5000)
    module = DataModule(digits.data, digits.options, VIEWS, seed=0)
    module.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="1287 training images on 1 device"):
        module.setup("fit")
    assert module.options.batch_size == 1287 and len(module.train_dataloader()) == 1


def test_photographs_that_break_later_are_counted(photographs, tmp_path):
    assert DataModule(photographs.data, photographs.options, VIEWS, 0).broken == ()
    (tmp_path / "4.png").write_bytes(b"overwritten since")
    module = DataModule(photographs.data, photographs.options, VIEWS, seed=0)
    module.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    module.setup("fit")
    with pytest.warns(UserWarning, match="4.png cannot be decoded"):
        rows = [batch.rows for batch in module.train_dataloader()]
    assert module.broken in ((), ("4.png",)) and 4 not in torch.cat(rows)


def test_limit_on_batches_keeps_epochs_apart(digits):
    digits.trainer = {"limit_train_batches": 2}
    seen = digits().seen
    assert [(epoch, index) for epoch, index, _ in seen] == [(e, i) for e in range(3) for i in range(2)]
    digits.trainer = {}
    whole = {(e, i): batch for e, i, batch in digits().seen}
    assert all(equal(batch, whole[epoch, index]) for epoch, index, batch in seen)
