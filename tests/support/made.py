"""Made-up runs with everything that a page shows, written by the real writers: no number here was measured."""

import functools
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ssl_bench.config.fit_config import parse_fit
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import EvaluationCost, Result, Score, SplitRecord, write_result
from ssl_bench.records.run import BackboneRecord, DataRecord, RunCost, RunInfo, write_run
from ssl_bench.statistics.intervals import over_images

METHODS = ("byol", "cae", "dino", "ibot", "mae", "simclr", "simclrv2", "simmim")
CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DATA = DataRecord(
    "cifar10",
    {"sha256": "aa11bb22" * 8, "classes": CLASSES, "images": {"pretrain": 50000, "train": 45000, "test": 1000}},
)
VIT = BackboneRecord("vit_nano_patch4_32", {"img_size": 32}, 2_700_000, 0.351, 65)
RESNET = BackboneRecord("resnet_nano", {}, 700_000, 0.09)
LEVELS = {
    "knn": 0.42,
    "linear": 0.55,
    "logistic": 0.57,
    "ridge": 0.54,
    "attentive": 0.58,
    "fewshot": 0.35,
    "labels-1pct": 0.33,
    "labels-10pct": 0.46,
    "finetune-1pct": 0.36,
    "finetune-10pct": 0.5,
    "partial-finetune": 0.68,
    "finetune": 0.8,
}
VARIANTS = {
    "knn": {"k20": 0.0, "k1": -0.04},
    "linear": {"chosen": 0.0, "cls": -0.02, "avg": -0.01},
    "fewshot": {"10-shot": 0.0, "1-shot": -0.15, "5-shot": -0.05, "25-shot": 0.06},
    "labels-1pct": {"logistic": 0.0},
    "labels-10pct": {"logistic": 0.0},
    "partial-finetune": {"k4": 0.0, "k0": -0.13, "k0.5": -0.1, "k1": -0.06, "k2": -0.03, "all": 0.1},
}
SPLITS = {"train": SplitRecord("train", 45_000), "validation": SplitRecord("validation", 5000)}


def full_run(
    root: Path,
    method: str = "mae",
    seed: int = 0,
    skill: float = 0.0,
    protocols: Sequence[str] = tuple(LEVELS),
    n_test: int = 1000,
    pictures: bool = False,
    options: dict[str, Any] | None = None,
    folder: str = "",
    **info: Any,
) -> Path:
    """A run with results, predictions, curves, environment and, if asked for, figures."""
    name = (
        folder
        or f"{method}-cifar10-vit_nano_patch4_32-s{seed}-{zlib.crc32(repr((method, seed, options)).encode()):08x}"
    )
    path = root / name
    config: dict[str, Any] = {"method": {"name": method}, "data": {"name": "cifar10"}}
    if method in METHODS:
        config = json.loads(_configuration(method))
    config["seed"] = seed
    for key, value in (options or {}).items():
        group, _, option = key.partition(".")
        config.setdefault(group, {})[option] = value
    record: dict[str, Any] = {
        "status": "finished",
        "kind": "pretrained",
        "data": DATA,
        "backbone": VIT,
        "options": config,
        "seed": seed,
        "epochs": 20.0,
        "steps": 7000,
        "views_per_image": 2.0,
        "images_seen": 10**6,
        "version": "0.1.0",
        "cost": RunCost(700.0 * (1 + 0.5 * abs(zlib.crc32(method.encode()) % 7)), 3e14, 10**9, "2 CPU cores"),
        "command": ["ssl-bench", "fit", f"--method.name={method}", "--data.name=cifar10", f"--seed={seed}"],
    }
    write_run(path, RunInfo(method=method, **{**record, **info}))
    (path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {"ssl_bench": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.13.0", "timm": "1.0.31"}}
    environment |= {"device": "a CPU", "cpus": 2, "gpus": [], "git": {"commit": "0" * 40, "changed": False}}
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if record["kind"] == "pretrained":
        _write_metrics(path, skill, rng)
    for protocol in protocols:
        write_result(path, *_result(protocol, skill, n_test, rng))
    diagnostics = {"rankme": 90.0 + 100 * skill, "effective_rank": 45.0, "alpha": 1.1, "alignment": 0.4}
    blank = _result("knn", skill, 4, rng)[0]
    gone = {"primary": "", "value": None, "interval": None, "variants": {}}
    diagnostics = Result(**{**vars(blank), **gone, "protocol": "diagnostics", "diagnostics": diagnostics})
    write_result(path, diagnostics, Predictions([], [], {}))
    if pictures:
        for figure, size in (("reconstruction", (320, 120)), ("attention", (320, 160)), ("map", (240, 240))):
            file = path / "figures" / f"{figure}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png(*size))
    return path


@functools.cache
def _configuration(method: str) -> str:
    return json.dumps(parse_fit([f"--method.name={method}", "--data.name=cifar10"], {}).config)


def _result(protocol: str, skill: float, n_test: int, rng: np.random.Generator) -> tuple[Result, Predictions]:
    """Test images differ in how hard they are, the same for all runs: predictions of two runs go together."""
    labels = np.arange(n_test) % len(CLASSES)
    hardness = np.random.default_rng(7).random(n_test)
    variants = VARIANTS.get(protocol, {"chosen": 0.0})
    predictions, scores = {}, {}
    for name, more in variants.items():
        level = min(0.97, max(0.05, LEVELS[protocol] + more + skill + 0.01 * rng.standard_normal()))
        right = hardness + 0.25 * rng.standard_normal(n_test) < np.quantile(hardness, level)
        wrong = (labels + np.where(rng.random(n_test) < 0.5, 2, rng.integers(1, 10, n_test))) % len(CLASSES)
        predictions[name] = np.where(right, labels, wrong).tolist()
        value, interval = over_images(np.asarray(predictions[name]) == labels)
        scores[name] = Score(value, interval)
    primary = next(iter(variants))
    curve = {"k": [0.0, 0.5, 1.0, 2.0, 4.0, 12.0]} if protocol == "partial-finetune" else {}
    result = Result(
        protocol=protocol,
        version=1,
        options={},
        primary=primary,
        value=scores[primary].value,
        interval=scores[primary].interval,
        n_test=n_test,
        data=DATA,
        variants=scores,
        curve=curve,
        splits={**SPLITS, "test": SplitRecord("test", n_test)},
        geometry={"size": 32},
        cost=EvaluationCost(50_000, 2e13, 40.0, 10**9),
    )
    return result, Predictions([f"test/{i}" for i in range(n_test)], labels.tolist(), predictions)


def _write_metrics(path: Path, skill: float, rng: np.random.Generator) -> None:
    lines = ["step,feature_std,feature_rank,knn,linear,epoch,loss,lr,loss_epoch"]
    for epoch in range(21):
        grown = 1 - 0.5 ** (epoch / 5)
        knn, linear = (0.1 + (level - 0.1 + skill) * grown + 0.005 * rng.random() for level in (0.42, 0.55))
        probe = f"{0.3 + 0.3 * grown:.4f},{20 + 40 * grown:.3f},{knn:.4f},{linear:.4f}"
        loss = f"{3 - 2 * grown + 0.05 * rng.random():.4f}"
        lines.append(f"{350 * epoch},{probe},{epoch},,,{loss if epoch else ''}")
        lines += [f"{350 * epoch + 49},,,,,{epoch},{loss},0.001,"] if epoch < 20 else []
    (path / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def baselines(root: Path, protocols: Sequence[str] = ("knn", "linear", "fewshot"), n_test: int = 1000) -> None:
    """The random backbone and raw pixels."""
    full_run(root, "random", 0, -0.25, protocols, n_test, kind="baseline", folder="random-s0")
    full_run(root, "pixels", 0, -0.2, protocols, n_test, kind="baseline", backbone=None, folder="pixels-s0")


def many(root: Path, count: int, n_test: int = 1000) -> None:
    """So many pretrained runs: the eight methods, three seeds; then ViTs of other mask ratios, then ResNets."""
    made = 0
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}), ({}, {"backbone": RESNET})]
    kinds += [({"method.mask_ratio": ratio}, {"epochs": 10.0}) for ratio in (0.5, 0.6, 0.7, 0.8, 0.9)]
    for options, info in kinds:
        for number, method in enumerate(METHODS if not options else ("mae",)):
            for seed in range(3):
                if made == count:
                    return
                skill = 0.02 * ((number * 3) % 8 - 4) - 2 * (options.get("method.mask_ratio", 0.7) - 0.72) ** 2
                folder = f"{method}-{made:03d}-s{seed}"
                pictures = not made % 7
                full_run(root, method, seed, skill, tuple(LEVELS), n_test, pictures, options, folder, **info)
                made += 1


def png(width: int, height: int) -> bytes:
    """A small grey-scale picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((x * 255 // width + y) % 256 for x in range(width)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
