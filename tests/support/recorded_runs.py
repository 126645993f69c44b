"""Run folders made by the real writers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import Result, SplitRecord, write_result
from ssl_bench.records.run import BackboneRecord, DataRecord, RunCost, RunInfo, write_run
from ssl_bench.statistics.intervals import wilson

DATA = {
    "cifar10": DataRecord("cifar10", {"sha256": "aa11bb22" * 8}),
    "cifar100": DataRecord("cifar100", {"sha256": "cc33dd44" * 8}),
}
VIT = BackboneRecord("vit_nano_patch4_32", {"img_size": 32}, 2_700_000, 0.351, 65)
VARIANTS = {"knn": "k20", "linear": "cls+avg"}


class Runs:
    """Makes run folders under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def add(
        self,
        method: str = "mae",
        seed: int = 0,
        scores: Mapping[str, float] | None = None,
        backbone: BackboneRecord | None = VIT,
        n_test: int = 2000,
        folder: str | None = None,
        result: Mapping[str, Any] | None = None,
        **info: Any,
    ) -> Path:
        """One run with its results; a score's name is `protocol` or `protocol@data`. The rest is for the records."""
        self.count += 1
        path = self.root / (folder or f"{method}-s{seed}-{self.count:04d}")
        record: dict[str, Any] = {"status": "finished", "kind": "pretrained", "data": DATA["cifar10"]}
        if info.get("kind") != "baseline":
            record |= {"epochs": 20.0, "views_per_image": 2.0, "cost": RunCost(725.0, 3e14, 10**9, "2 CPU cores")}
        write_run(path, RunInfo(method=method, backbone=backbone, seed=seed, **{**record, **info}))
        for name, value in (scores or {}).items():
            made = score(name, value, n_test, **(result or {}))
            write_result(path, made, Predictions([], [], {made.primary: []}))
        return path

    def add_seeds(
        self, method: str = "mae", scores: Mapping[str, float] | None = None, seeds: int = 2, **more: Any
    ) -> None:
        """Runs that differ in their seeds alone, all with the same scores."""
        for seed in range(seeds):
            self.add(method, seed, scores, **more)

    def baselines(self, **scores: float) -> None:
        """`random` of two seeds, and `pixels` two points below."""
        self.add_seeds("random", scores, kind="baseline")
        below = {name: value - 0.02 for name, value in scores.items()}
        pixels = {"primary": "pixels", "geometry": {"size": 28}}
        self.add("pixels", scores=below, kind="baseline", backbone=None, result=pixels)


def score(name: str, value: float, n_test: int = 2000, **fields: Any) -> Result:
    """A record with the interval that belongs to its value."""
    protocol, _, data = name.partition("@")
    record: dict[str, Any] = {
        "version": 1,
        "options": {"k": 20} if protocol == "knn" else {},
        "primary": VARIANTS.get(protocol, "all"),
        "interval": wilson(round(value * n_test), n_test),
        "data": DATA[data or "cifar10"],
        "splits": {"train": SplitRecord("train", 45_000), "test": SplitRecord("test", n_test)},
        "geometry": {"size": 32},
    }
    return Result(protocol, value=value, n_test=n_test, **{**record, **fields})
