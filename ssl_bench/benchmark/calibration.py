"""Seconds that runs will take, from a few of their steps: `python -m ssl_bench.benchmark.calibration < FILE.json`."""

import json
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from ssl_bench.config.options import TrainerOptions
from ssl_bench.errors import UserError
from ssl_bench.pretraining.building import build
from ssl_bench.pretraining.dry_run.measured_steps import take_steps
from ssl_bench.pretraining.trainer import prepare_process

STEPS = 10


def seconds(config: dict[str, Any]) -> float:
    """Of the whole run: loading and a step, measured, times its steps; without the online probe."""
    begin = time.perf_counter()
    data, method, module = build(config)
    options = TrainerOptions(**config["trainer"])
    clock = take_steps(options, method, module, STEPS)
    batches = max(1, len(data.pretrain) // (config["data"]["batch_size"] * clock.world_size)) * options.max_epochs
    if options.max_steps > 0:
        batches = min(batches, options.max_steps * options.accumulate_grad_batches)
    return clock.times[0] - begin + clock.seconds_each * batches


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
