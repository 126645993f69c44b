"""What `run.json` says of a run: what it is, how far it came, what it took."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

import ssl_bench
from ssl_bench.data.dataset import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models.saved_backbone import describe_backbone
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.progress import Progress
from ssl_bench.records.run import DataRecord, RunCost, RunInfo, Status, read_run
from ssl_bench.runtime.environment import describe


def describe_run(config: dict[str, Any], data: Dataset, method: Method, command: Sequence[str]) -> RunInfo:
    views = method.views()
    pretrains = method.product == "backbone"
    return RunInfo(
        status="running",
        kind="pretrained" if pretrains else "tokenizer",
        method=config["method"]["name"],
        data=DataRecord(data.title, data.fingerprint),
        options=options_of(config) | ({"start": dict(method.start)} if method.start else {}),
        backbone=describe_backbone(config["backbone"]["name"], method.backbone) if pretrains else None,
        seed=config["seed"],
        views_per_image=sum(v.count * v.size**2 for v in views) / max(v.size**2 for v in views),
        created=now(),
        command=list(command),
        version=ssl_bench.__version__,
        branch=default_branch(method, bool(config["trainer"].get("ema"))) if pretrains else "",
    )


def default_branch(method: Method, averaged: bool = False) -> str:
    """The default of a method's networks, where there are several; an average of the weights is another."""
    return next(iter(method.branches)) if averaged or len(method.branches) > 1 else ""


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its seed; nor with those of the runs it starts from, so that seeds stay one row."""
    options = {**config, "method": dict(config["method"])}
    del options["seed"]
    for group, name in ((options, "init"), (options["method"], "teacher"), (options["method"], "tokenizer")):
        run = group.get(name)
        if isinstance(run, str) and (Path(run) / "run.json").is_file():
            earlier = read_run(Path(run))
            stage = hashlib.sha256(json.dumps(earlier.options, sort_keys=True).encode()).hexdigest()[:8]
            group[name] = f"{earlier.method}-{stage}"
    return options


def training_flops(method: Method) -> float:
    """FLOPs of one image's forward and backward, counted on a copy with two random images."""
    copied = copy.deepcopy(method).train()
    generator = torch.Generator().manual_seed(0)
    channels = getattr(getattr(method, "backbone", None), "channels", 3)  # a tokenizer has no backbone
    views = [
        torch.rand(2, channels, v.size, v.size, generator=generator) for v in method.views() for _ in range(v.count)
    ]
    labels = {"labels": torch.zeros(2, dtype=torch.int64)} if method.needs_labels else {}
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        copied.loss(views, **labels).backward()
    return float(counter.get_total_flops()) / 2


def continued(info: RunInfo, folder: Path) -> RunInfo:
    """A record with what an earlier session of the same run has put into it."""
    try:
        earlier = read_run(folder)
    except (OSError, UserError):  # there is none, or it is damaged: this one takes its place
        return info
    there = (folder / "checkpoints").is_dir()
    done = replace(info, created=earlier.created or info.created)
    return replace(done, epochs=earlier.epochs, steps=earlier.steps, images_seen=earlier.images_seen) if there else done


def so_far(info: RunInfo, status: Status, trainer: pl.Trainer, flops_per_image: float, error: str | None) -> RunInfo:
    """A record of a run that is over, or is not but ends for now."""
    progress = next(c for c in trainer.callbacks if isinstance(c, Progress))  # type: ignore[attr-defined]
    batches = trainer.num_training_batches
    info = replace(info, status=status, error=error, finished=now() if status in ("finished", "failed") else None)
    if not progress.images_seen or not 0 < batches < float("inf"):
        return info  # it ended before it began
    device = str(describe()["device"])
    cost = RunCost(progress.seconds, flops_per_image * progress.images_seen, progress.peak_memory, device)
    return replace(
        info,
        epochs=round((trainer.fit_loop.epoch_loop.total_batch_idx + 1) / batches, 3),
        steps=trainer.global_step,
        images_seen=progress.images_seen,
        cost=cost,
    )


def now() -> str:
    """ISO 8601 with offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
