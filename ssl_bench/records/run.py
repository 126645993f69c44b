"""`run.json`: what a run is and how far it came. Torch-free.

Unknown keys are ignored when reading: a record outlives its version.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ssl_bench.records.decoding import read_record
from ssl_bench.records.files import write_json

Status: TypeAlias = Literal["running", "finished", "failed", "interrupted"]
Kind: TypeAlias = Literal["pretrained", "baseline", "imported", "tokenizer"]


@dataclass(frozen=True)
class DataRecord:
    """Which images.

    Args:
        title: Name of the data set, or of the folder.
        fingerprint: Counts, classes and `sha256` of the content.
    """

    title: str
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str]:
        """Title and eight characters of the content's hash."""
        return self.title, str(self.fingerprint.get("sha256", ""))[:8]

    def same_images(self, other: "DataRecord") -> bool:
        """Whether both are of the same images in the same splits, whatever their folder is called."""
        what = ("sha256", "images", "classes", "test_is")
        return all(self.fingerprint.get(name) == other.fingerprint.get(name) for name in what)


@dataclass(frozen=True)
class BackboneRecord:
    """Which architecture.

    Args:
        name: As the user named it.
        args: What overrides the name's own architecture, resolved: no entry is left to a default that may move.
        params: Weights, in units of one.
        gflops_per_image: Of a forward pass over one image, a multiply-add counted as two.
        tokens: That a ViT's blocks see; 0 for a network without.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    params: int = 0
    gflops_per_image: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class RunCost:
    """What pretraining took.

    Args:
        seconds: Wall clock, of all sessions of a resumed run.
        flops: Of all devices.
        peak_memory_bytes: Largest of the devices'.
        device: In words.
    """

    seconds: float = 0.0
    flops: float = 0.0
    peak_memory_bytes: int = 0
    device: str = ""


@dataclass(frozen=True)
class RunInfo:
    """`run.json`: what a run is and how far it came.

    Args:
        status: A run whose process was killed says running.
        kind: Baselines (`random`, `pixels`, `kmeans-patches`) have no budget; a tokenizer has no features.
        method: As the user named it, or the name of the baseline.
        data: The images it was pretrained on; those it was evaluated on, for a baseline.
        options: Its configuration, nested or dotted: what tells two runs of a method apart in a table.
        backbone: None for baselines without a network, and tokenizers.
        seed: Of the whole run.
        epochs: Passes over the images so far, a fraction if steps ended it; None when unknown.
        steps: Optimiser steps so far.
        views_per_image: Views of an image per pass, each weighted by its area relative to the largest.
        images_seen: Images drawn so far, however many views each gave.
        cost: Of pretraining.
        created: ISO 8601 with offset.
        finished: Likewise, when it ended.
        command: Arguments that start it again.
        version: Of ssl-bench.
        branch: The default branch: which of a method's networks is evaluated unless told; empty where there is one.
        error: Last line of what went wrong.
    """

    status: Status
    kind: Kind
    method: str
    data: DataRecord
    options: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneRecord | None = None
    seed: int = 0
    epochs: float | None = None
    steps: int = 0
    views_per_image: float = 1.0
    images_seen: int = 0
    cost: RunCost = RunCost()
    created: str = ""
    finished: str | None = None
    command: list[str] = field(default_factory=list)
    version: str = ""
    branch: str = ""
    error: str | None = None


PRODUCTS = ("backbone", "tokenizer")  # what a finished run leaves: weights, and the JSON that describes them


def write_run(folder: Path, info: RunInfo) -> None:
    """Write `run.json`."""
    write_json(folder / "run.json", dataclasses.asdict(info))


def read_run(folder: Path) -> RunInfo:
    """Read `run.json`."""
    return read_record(RunInfo, folder / "run.json")


def is_finished(folder: Path) -> bool:
    """Whether a run has ended, and needs nothing written again: weights that are gone are in its checkpoint still."""
    if not (folder / "run.json").exists() or read_run(folder).status != "finished":
        return False
    left = any(all((folder / f"{name}.{end}").exists() for end in ("safetensors", "json")) for name in PRODUCTS)
    return left or not (folder / "checkpoints" / "last.ckpt").exists()
