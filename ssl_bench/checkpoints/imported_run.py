"""The run folder that is made of a checkpoint."""

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import ssl_bench
from ssl_bench.checkpoints.checkpoint_file import CheckpointFile
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.checkpoints.official.layout import layout
from ssl_bench.checkpoints.report import Report
from ssl_bench.config.class_paths import TOKENIZER, is_class_path
from ssl_bench.config.fit_config import dump
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import describe_backbone, write_backbone
from ssl_bench.pretraining.checkpoint import write_backbones
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import default_branch
from ssl_bench.records.files import replacing, write_json, write_text, writing_folder
from ssl_bench.records.run import DataRecord, RunInfo, write_run
from ssl_bench.runtime.environment import describe


@dataclass(frozen=True)
class ImportedRun:
    """What goes into the folder.

    Args:
        backbone: The network that is evaluated.
        method: The whole state of pretraining; None for an encoder alone.
        config: That pretraining continues with.
        report: Of the names.
        kind: Of checkpoint.
        weights: Which were taken, where the file holds several; else empty.
        statistics: Mean and deviation that the network's input is normalised with.
    """

    backbone: Backbone
    method: Method | None
    config: dict[str, Any]
    report: Report
    kind: str
    weights: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]


def continuing(run: Path, config: dict[str, Any]) -> str:
    """The command that continues pretraining; a tokenizer's class is named again, since no file has code run."""
    tokenizer = config["method"].get("tokenizer")
    own = isinstance(tokenizer, str) and is_class_path(TOKENIZER, tokenizer)
    return f"ssl-bench fit -c {run}/config.yaml --init {run}{f' --{TOKENIZER} {tokenizer}' if own else ''}"


def write_imported(asked: Import, file: CheckpointFile, made: ImportedRun) -> None:
    """The run folder, whole or not at all."""
    name = made.config["backbone"]["name"]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    origin = {"file": asked.file.name, "format": asked.format, "kind": made.kind}
    info = RunInfo(
        status="finished",
        kind="imported",
        method=layout(asked.format).method,
        data=DataRecord(asked.data),
        options={"imported": origin, "backbone": made.config["backbone"]},
        backbone=describe_backbone(name, made.backbone),
        created=now,
        finished=now,
        command=["ssl-bench", "import", *asked.command],
        version=ssl_bench.__version__,
        branch=default_branch(made.method) if made.method else "",
    )
    use = f"to continue it: {continuing(asked.out, made.config)}" if made.method else "an encoder, to evaluate"
    account = {
        **origin,
        "bytes": file.path.stat().st_size,
        "sha256": _sha256(file.path),
        "epoch": file.entries.get("epoch") if isinstance(file.entries.get("epoch"), int) else None,
        "weights": made.weights,
        **asdict(made.report),
    }
    with writing_folder(asked.out) as folder:
        write_text(folder / "config.yaml", f"# Imported from {asked.file.name}: {use}.\n{dump(made.config)}")
        write_json(folder / "environment.json", describe())
        write_json(folder / "import.json", account)
        if made.method is None:
            write_backbone(folder, made.backbone, *made.statistics)
        else:
            write_backbones(folder, made.method, *made.statistics)
            with replacing(folder / "checkpoints" / "last.ckpt") as temporary:
                torch.save({"state_dict": made.method.state_dict(), "ssl_bench": {"config": made.config}}, temporary)
        write_run(folder, info)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
