"""A run's identity and folder. Torch-free.

The identity is a hash of the configuration and of the content of someone's own images: the same command again finds the
same folder, and resumes or is done; by whatever path the images are reached.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

# Options that say where or how fast, not what: two runs that differ in these alone are the same run.
NOT_IDENTITY = (
    ("data", "num_workers"),
    ("data", "download"),
    ("trainer", "accelerator"),
    ("trainer", "compile"),
    ("trainer", "log_every_n_steps"),
    ("trainer", "checkpoint_minutes"),
    ("trainer", "requeue"),
    ("trainer", "loggers"),
    ("trainer", "profiler"),
    ("trainer", "checkpoint_activations"),
    ("trainer", "deterministic"),
    ("trainer", "benchmark"),
    ("trainer", "detect_anomaly"),
    ("trainer", "enable_model_summary"),
)

OWN = (
    "folder",
    "parquet",
    "arrow",
    "table",
    "hf",
    "webdataset",
    "array",
    "image-masks",
)  # sets that are someone's own images


def identity(config: dict[str, Any], content: str | None = None) -> str:
    """Eight hex digits of the configuration's sha256.

    Args:
        config: Of the run.
        content: A hash of its images, when they are someone's own (`ssl_bench.data.files.content`); it stands for
            their path. The path of a named set is where its files are, and says nothing of the run.
    """
    what = json.loads(json.dumps(config))
    data = what.get("data", {})
    if content is not None or data.get("name") not in OWN:
        data.pop("root", None)
    if content is not None:
        data["content"] = content
    if data.get("value_range") == "auto":
        del data["value_range"]
    if what.get("init"):
        what["init"] = Path(what["init"]).name  # has a hash of its own, wherever the folder is
    if weights := what.get("backbone", {}).get("weights"):
        what["backbone"]["weights"] = _content_of_weights(Path(weights))
    for option in ("tokenizer", "teacher"):  # likewise
        run = what.get("method", {}).get(option)
        if isinstance(run, str):
            what["method"][option] = Path(run).name
    for group, option in NOT_IDENTITY:
        what.get(group, {}).pop(option, None)
    for options in (what, *(group for group in what.values() if isinstance(group, dict))):
        for option in [name for name, value in options.items() if value is None]:
            del options[option]  # so that an option added later, and left alone, makes no new run of an old one
    canonical = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _content_of_weights(path: Path) -> str:
    """The name of a run's folder, or a hash of a file, wherever it is; of one that is gone, its name."""
    file = path if path.is_file() else path / "model.safetensors"
    if (path / "run.json").is_file() or not file.is_file():
        return path.name
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def data_title(data: dict[str, Any]) -> str:
    """What to call the images: the set's name, or the folder's for someone's own."""
    if data["name"] in OWN and data.get("root"):
        return Path(data["root"]).resolve().name
    return str(data["name"])


def run_folder(runs: Path, config: dict[str, Any], content: str | None = None) -> Path:
    """`runs/mae-cifar10-vit_tiny_patch16_224-s0-1a2b3c4d`; `runs/dvae-cifar10-s0-1a2b3c4d`.

    Args:
        runs: Where run folders live.
        config: Of the run.
        content: As for `identity`.
    """
    method = config["method"]["name"].rpartition(".")[2]
    backbone = [config["backbone"]["name"]] if "backbone" in config else []  # a tokenizer's run has none
    parts = (method, data_title(config["data"]), *backbone, f"s{config['seed']}")
    safe = (re.sub(r"[^\w.+-]+", "_", part)[:60] for part in parts)
    return runs / "-".join((*safe, identity(config, content)))


def folder_identity(folder: Path) -> str:
    """The hash that a run folder's name ends in; of a folder named by its user, one of the name."""
    found = re.search(r"-([0-9a-f]{8})$", folder.name)
    return found[1] if found else hashlib.sha256(folder.name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
