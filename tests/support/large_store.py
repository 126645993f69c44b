"""A store of thousands of runs with predictions, written by the real writers: for what must stay fast and small."""

import itertools
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np

from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import EvaluationCost, Result, Score, SplitRecord, write_result
from ssl_bench.records.run import BackboneRecord, DataRecord, RunCost, RunInfo, write_run
from ssl_bench.statistics.intervals import wilson

METHODS = ("byol", "cae", "dino", "ibot", "mae", "simclr", "simclrv2", "simmim")
PROTOCOLS = (
    *("attentive", "fewshot", "finetune", "finetune-1pct", "finetune-10pct"),
    *("knn", "labels-1pct", "linear", "logistic", "ridge"),
)
CLASSES = 10


def write_store(
    root: Path,
    methods: int = 8,
    seeds: int = 10,
    backbones: int = 5,
    data_sets: int = 5,
    protocols: int = 10,
    n_test: int = 1000,
    evaluated_on: int = 1,
) -> None:
    """Write methods x seeds x backbones x data sets runs, each with a result and predictions for each protocol.

    Args:
        root: Folder of the runs.
        methods: Of them; more than eight differ in an option.
        seeds: Of each.
        backbones: Architectures.
        data_sets: Titles and hashes of images.
        protocols: Results of each run.
        n_test: Test images.
        evaluated_on: Data sets that each protocol is run on, pretraining's own the first.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(n_test) % CLASSES
    hardness = rng.random(n_test)
    with patch.object(os, "fsync", lambda descriptor: None):  # none of this has to outlive a power cut
        for data, backbone, method, seed in itertools.product(*map(range, (data_sets, backbones, methods, seeds))):
            _write_run(root, data, backbone, method, seed, protocols, evaluated_on, labels, hardness, rng)


def _write_run(
    root: Path,
    data: int,
    backbone: int,
    method: int,
    seed: int,
    protocols: int,
    evaluated_on: int,
    labels: np.ndarray,
    hardness: np.ndarray,
    rng: np.random.Generator,
) -> None:
    name = METHODS[method % len(METHODS)]
    images = _images(data)
    folder = root / f"{name}-data{data}-vit{backbone}-s{seed}-{len(list_of(root)):08x}"
    options = {"method": {"name": name, "mask_ratio": 0.5 + method // len(METHODS) / 1000}, "seed": seed}
    options |= {"data": {"name": f"data{data}", "batch_size": 256}, "optim": {"base_lr": 1e-3, "weight_decay": 0.05}}
    info = RunInfo(
        status="finished",
        kind="pretrained",
        method=name,
        data=images,
        options=options,
        backbone=BackboneRecord(f"vit{backbone}", {"img_size": 32, "depth": backbone + 1}, 10**6, 0.35, 65),
        seed=seed,
        epochs=20.0,
        steps=7000,
        views_per_image=2.0,
        images_seen=10**6,
        cost=RunCost(700.0 + 10 * method, 3e14, 10**9, "2 CPU cores"),
        created=f"2026-01-01T00:{seed:02d}:00+00:00",
        command=["ssl-bench", "fit", f"--method={name}", f"--seed={seed}"],
    )
    write_run(folder, info)
    n_test = len(labels)
    for protocol, other in itertools.product(PROTOCOLS[:protocols], range(evaluated_on)):
        level = 0.4 + 0.02 * method % 0.4 + 0.01 * rng.standard_normal()
        right = 0.7 * hardness + 0.3 * rng.random(n_test) < level
        given = np.where(right, labels, (labels + rng.integers(1, CLASSES, n_test)) % CLASSES)
        count = int((given == labels).sum())
        score = Score(count / n_test, wilson(count, n_test))
        grid = {"lr": [0.01, 0.03, 0.1, 0.3, 1.0], "weight_decay": [0.0, 1e-4]}
        result = Result(
            protocol=protocol,
            version=1,
            options={"k": 20, "iterations": 1000, "grid": grid},
            primary="chosen",
            value=score.value,
            interval=score.interval,
            n_test=n_test,
            data=_images(data + other),
            splits={"train": SplitRecord("train", 45_000), "test": SplitRecord("test", n_test)},
            variants={"chosen": score, "cls": score, "avg": score},
            curve={"step": [float(i) for i in range(20)], "validation accuracy": [0.4 + i / 100 for i in range(20)]},
            features=["cls", "avg"],
            geometry={"size": 32, "crop": 0.875},
            cost=EvaluationCost(50_000, 2e13, 40.0, 10**9),
            software={"torch": "2.13.0", "timm": "1.0.31", "numpy": "2.1.0"},
        )
        write_result(folder, result, Predictions([f"test/{i}" for i in range(n_test)], labels, {"chosen": given}))


def _images(data: int) -> DataRecord:
    """A data set of a number."""
    return DataRecord(f"data{data}", {"sha256": f"{data:08x}" * 8, "classes": [f"class {i}" for i in range(CLASSES)]})


def list_of(root: Path) -> list[str]:
    """Names in a folder; none where it is not there."""
    return os.listdir(root) if root.is_dir() else []
