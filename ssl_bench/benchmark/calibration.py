"""Seconds that runs will take, from a few of their steps: `python -m ssl_bench.benchmark.calibration < FILE.json`."""

import json
import sys
import time
from statistics import median
from typing import Any, final

import pytorch_lightning as pl
import torch

from ssl_bench.config.options import TrainerOptions
from ssl_bench.errors import UserError
from ssl_bench.pretraining.building import build
from ssl_bench.pretraining.trainer import prepare_process
from ssl_bench.runtime.acceleration import compile_blocks, effective_precision

STEPS = 10
FIRST = 4  # steps that warm up


@final
class Clock(pl.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def seconds(config: dict[str, Any]) -> float:
    """Of the whole run: loading and a step, measured, times its steps; without the online probe."""
    begin = time.perf_counter()
    data, method, module = build(config)
    options = TrainerOptions(**config["trainer"])
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=STEPS,
        accelerator=options.accelerator,
        devices=options.devices,
        precision=effective_precision(options.precision, options.accelerator),  # type: ignore[arg-type]
        accumulate_grad_batches=options.accumulate_grad_batches,
        callbacks=[clock],
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    if options.compile:
        compile_blocks(method)
    trainer.fit(method, datamodule=module)
    batches = max(1, len(data.pretrain) // (config["data"]["batch_size"] * trainer.world_size)) * options.max_epochs
    if options.max_steps > 0:
        batches = min(batches, options.max_steps * options.accumulate_grad_batches)
    steps = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    step = median(steps[FIRST:] or steps or [time.perf_counter() - begin])
    return clock.times[0] - begin + step * batches


def main() -> None:
    """A line of JSON for each configuration: its seconds, or why they are unknown."""
    prepare_process()
    started = time.process_time()  # what importing took, which every run's process does again
    for config in json.load(sys.stdin):
        try:
            pl.seed_everything(config["seed"], verbose=False)
            found: dict[str, Any] = {"seconds": started + seconds(config)}
        except UserError as error:
            found = {"error": str(error)}
        except Exception as error:  # no memory for this kind says nothing of the others
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        print(json.dumps(found), flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
