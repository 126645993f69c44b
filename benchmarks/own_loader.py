"""A loader and a Trainer of one's own against `ssl-bench fit`: processor time of a training step, same images.

    python benchmarks/own_loader.py [--method simclr] [--precision 32-true] [--rounds 8]

Both train the same network on the same uint8 images of 32 px in memory, in turns, so that whatever else the machine
does slows both. `fit` is measured with its loader, its views and its callbacks but the probe; the other path is
`create_method`, `DataLoader(TensorDataset(images))` and a plain `pl.Trainer`.

Measured with one thread on a machine that was busy with other work (AMD with AVX-512, torch 2.13): SimCLR 123 against
132 ms of processor time a step, ratio 1.07 (0.96 to 1.22 in six rounds).
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import ssl_bench
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.pool import ResidentPool

IMAGES, BATCH = 512, 64
BACKBONE = {"name": "vit_micro_patch4_32", "img_size": 32}


class Clock(pl.Callback):
    """Processor seconds of a step, over all steps but the first."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.since = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.seconds = (time.process_time() - self.since) / (trainer.num_training_batches - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        photos = write_images(Path(folder) / "photos")
        rounds = [one_round(given.method, given.precision, photos, Path(folder), n) for n in range(given.rounds + 1)]
    fit, own = zip(*rounds[1:], strict=True)  # the first warms up
    ratios = [b / a for a, b in rounds[1:]]
    milliseconds = [1000 * statistics.median(column) for column in (fit, own)]
    each = f"fit {milliseconds[0]:.1f} ms, own loader {milliseconds[1]:.1f} ms of processor time"
    print(f"{each} per step of {BATCH} images", end=": ")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds)")


def write_images(folder: Path) -> Path:
    folder.mkdir()
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels.numpy()):
        Image.fromarray(image).save(folder / f"{number:05}.png")
    return folder


def one_round(method: str, precision: str, photos: Path, runs: Path, seed: int) -> tuple[float, float]:
    """Seconds of a step by `fit`, and by one's own loader."""
    shared: dict[str, Any] = {"precision": precision, "accelerator": "cpu"}
    seconds, run = by_fit(method, photos, runs, seed, shared)
    return seconds, by_own_loader(run.config, photos, shared)


def by_fit(method: str, photos: Path, runs: Path, seed: int, shared: dict[str, Any]) -> tuple[float, ssl_bench.Run]:
    from ssl_bench.pretraining import training

    clock, make = Clock(), training.make_trainer

    def timed(*args: Any) -> pl.Trainer:
        trainer = make(*args)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        return trainer

    training.make_trainer = timed
    options: dict[str, Any] = {"optim": {"warmup_epochs": 0}, "probe": {"every_n_epochs": 0}, "trainer": shared}
    try:
        run = ssl_bench.fit(method, photos, BACKBONE, max_epochs=1, batch_size=BATCH, runs=runs, seed=seed, **options)
    finally:
        training.make_trainer = make
    return clock.seconds, run


def by_own_loader(config: dict[str, Any], photos: Path, shared: dict[str, Any]) -> float:
    """With the same options of the method and its optimiser."""
    pool = load_dataset(DataOptions("folder", str(photos))).pretrain
    assert isinstance(pool, ResidentPool)
    loader = DataLoader(TensorDataset(pool.images), batch_size=BATCH, shuffle=True)
    pl.seed_everything(config["seed"], verbose=False)
    options = dict(config["method"])
    made = ssl_bench.create_method(options.pop("name"), BACKBONE, optim=config["optim"], **options)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    clock = Clock()
    pl.Trainer(max_epochs=1, callbacks=[clock], enable_model_summary=False, **shared, **quiet).fit(made, loader)
    return clock.seconds


if __name__ == "__main__":
    main()
