"""Names that records and options had before, read as what they are called now. Torch-free."""

from collections.abc import Mapping
from typing import Any

FIELDS = {
    "headline": "primary",
    "monitors": "diagnostics",
    "on_edge": "at_grid_boundary",
    "edge_tied": "boundary_tied",
    "selection_split": "selected_on",
    "selection_equals_report": "selected_on_test",
}
OPTIONS = {
    "data.selection_fraction": "data.val_fraction",
    "fewshot.headline_shots": "fewshot.primary_shots",
    "knn.headline_k": "knn.primary_k",
    "linear.kinds": "linear.feature_types",
    "logistic.kinds": "logistic.feature_types",
    "ridge.kinds": "ridge.feature_types",
    "robustness.kinds": "robustness.feature_types",
}
# Protocol -> options that it has now and that its name alone said before.
ADDED_OPTIONS = {
    "labels-1pct": {"fraction": 0.01},
    "labels-10pct": {"fraction": 0.1},
    "finetune-1pct": {"fraction": 0.01},
    "finetune-10pct": {"fraction": 0.1},
}

GROUPS = {name.partition(".")[0] for name in OPTIONS}


def current(record: Any) -> Any:
    """A record as JSON gave it, with the names of today.

    Args:
        record: Of a run or a result.
    """
    if not isinstance(record, dict):
        return record
    record = {FIELDS.get(key, key): value for key, value in record.items()}
    if isinstance(record.get("selected"), dict):
        selected = {FIELDS.get(key, key): value for key, value in record["selected"].items()}
        if selected.get("selected_on") == "selection":
            selected["selected_on"] = "validation"
        record["selected"] = selected
    if isinstance(splits := record.get("splits"), dict) and isinstance(old := splits.get("selection"), dict):
        renamed = {**old, "name": str(old.get("name", "")).replace("selection", "validation", 1)}
        record["splits"] = {
            ("validation" if k == "selection" else k): (renamed if k == "selection" else v) for k, v in splits.items()
        }
    if isinstance(command := record.get("command"), list):
        record["command"] = [_current_flag(flag) if isinstance(flag, str) else flag for flag in command]
    if isinstance(data := record.get("data"), dict):
        record["data"] = _current_data(data)
    if isinstance(curve := record.get("curve"), dict):
        record["curve"] = {key.replace("selection accuracy", "validation accuracy"): v for key, v in curve.items()}
    if isinstance(options := record.get("options"), dict):
        protocol = str(record.get("protocol", ""))
        record["options"] = {**ADDED_OPTIONS.get(protocol, {}), **current_options(options, protocol)}
    return record


def _current_flag(flag: str) -> str:
    """`--data.selection_fraction=0.1`, with the name of today."""
    name, sign, value = flag.removeprefix("--").partition("=")
    return f"--{OPTIONS[name]}{sign}{value}" if flag.startswith("--") and name in OPTIONS else flag


def _current_data(data: dict[str, Any]) -> dict[str, Any]:
    """Images, whose counts have the names of their splits."""
    fingerprint = data.get("fingerprint")
    counts = fingerprint.get("images") if isinstance(fingerprint, dict) else None
    if not isinstance(counts, dict) or "selection" not in counts:
        return data
    renamed = {"validation" if name == "selection" else name: count for name, count in counts.items()}
    return {**data, "fingerprint": {**data["fingerprint"], "images": renamed}}


def current_options(options: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Options, nested or dotted, with the names of today."""
    if group:
        start = len(group) + 1
        return {OPTIONS.get(f"{group}.{key}", f"{group}.{key}")[start:]: value for key, value in options.items()}
    found: dict[str, Any] = {}
    for key, value in options.items():
        nested = isinstance(value, dict) and key in GROUPS
        found[OPTIONS.get(key, key)] = current_options(value, key) if nested else value
    return found
