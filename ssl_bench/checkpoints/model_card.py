"""The model card of an exported backbone: what it is, how to load it, how it was made, what it reached."""

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

import ssl_bench
from ssl_bench.checkpoints.export_paths import MADE
from ssl_bench.checkpoints.official.layout import FORMATS, layout
from ssl_bench.config import registry
from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.models.backbone import Backbone
from ssl_bench.records.result import Result
from ssl_bench.records.run import RunInfo
from ssl_bench.records.store import Run

LIBRARIES = {"timm": "timm", "hf": "transformers", "torchscript": "pytorch", "onnx": "onnx"}
LOADING = {
    "timm": """import timm

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image)[None])""",
    "hf": """from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("THIS_FOLDER").eval()
inputs = AutoImageProcessor.from_pretrained("THIS_FOLDER")(image, return_tensors="pt")
features = model(**inputs).pooler_output""",
    "torchscript": """import torch

model = torch.jit.load("THIS_FOLDER/model.pt").eval()
features = model(images)  # (B, 3, {size}, {size}), normalised""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx")
(features,) = session.run(None, {{"images": images}})  # (B, 3, {size}, {size}) float32, normalised""",
}


def model_card(
    run: Run,
    backbone: Backbone,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    format: str = "timm",
    license: str | None = None,
) -> str:
    """README.md.

    Args:
        run: With the results that are recorded.
        backbone: That was exported.
        mean: That its input has subtracted.
        std: That it is divided by.
        format: One of LIBRARIES.
        license: The hub's name of it, where its owner gives one.
    """
    info = run.info
    title, links = _method(info)
    size = backbone.img_size
    results = [r for r in run.results if r.branch in ("", "encoder", info.branch)]
    owners = "that of the weights is their owner's to give"
    licence = f"Licence: {license}." if license else f"No licence is stated here: {owners} (`--license`)."
    tags = _metadata(info, backbone, results, format, license)
    parts = [
        f"---\n{yaml.safe_dump(tags, sort_keys=False)}---",
        f"# {backbone.options.name}, pretrained with {title}",
        f"{MADE} {ssl_bench.__version__}. {_origin(info)}",
        f"{sum(p.numel() for p in backbone.parameters()):,} parameters, {size} x {size} pixels, "
        f"{backbone.dim} features. {licence}",
        "## Loading",
        f"```python\n{LOADING[format].format(size=size)}\n```",
        f"Input is normalised with mean {_numbers(mean)} and deviation {_numbers(std)}.",
        "## Pretraining",
        f"```yaml\n{yaml.safe_dump(_recipe(info), sort_keys=False, allow_unicode=True, width=100)}```",
        "## Results",
        _results(results),
        *(["## References", "\n".join(f"- {name}: {link}" for name, link in links.items())] if links else []),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(
    info: RunInfo, backbone: Backbone, results: Sequence[Result], format: str, license: str | None
) -> dict[str, Any]:
    """What hubs read: the card's metadata as huggingface.co/docs/hub/model-cards has them."""
    library = LIBRARIES[format]
    known: dict[str, Any] = {"license": license} if license else {}
    tags = dict.fromkeys(["image-feature-extraction", library, "timm", "self-supervised", info.method])
    known |= {"library_name": library, "pipeline_tag": "image-feature-extraction", "tags": list(tags)}
    source = str((info.options.get("start") or {}).get("source", ""))
    if source.startswith("timm:") and not re.search(r"hf-hub:|local-dir:", source):
        known["base_model"] = f"timm/{source.removeprefix('timm:')}"
    title = info.data.identity[0]
    if title in CATALOGUE:
        known["datasets"] = [title]
    ranked = [result for result in results if result.value is not None]
    if ranked:
        named = f"{info.method}-{backbone.options.name}"
        known["model-index"] = [{"name": named, "results": [_entry(result) for result in ranked]}]
    return known


def _entry(result: Result) -> dict[str, Any]:
    """A result in a model index; its 95 % interval stands with the metric."""
    assert result.value is not None
    low, high = (round(100 * end, 2) for end in result.interval or (result.value, result.value))
    data = result.data.title
    return {
        "task": {"type": "image-classification", "name": f"{result.protocol} ({result.primary})"},
        "dataset": {"type": data, "name": data, "split": "test"},
        "metrics": [
            {
                "type": "accuracy",
                "value": round(100 * result.value, 2),
                "name": f"accuracy in %, 95 % interval {low:g} to {high:g}",
                "args": {"interval": [low, high], "confidence": 0.95, "images": result.n_test},
            }
        ],
    }


def _method(info: RunInfo) -> tuple[str, dict[str, str]]:
    """A method's title, and links."""
    origin = info.options.get("imported", {})
    if origin.get("format") in FORMATS:
        known = layout(origin["format"])
        links = {"Paper": known.paper, "Weights from": known.source}
        return known.title, {name: link for name, link in links.items() if link}
    source = None
    if info.method in registry.names("methods"):
        source = registry.source_of(registry.names("methods")[info.method].module)
    text = source.read_text(encoding="utf-8") if source else ""
    title = re.match(r'"""([^:\n]+):', text)
    links = {}
    for name in ("Paper", "Reference code"):
        if found := re.search(rf"{name}: (https://\S+?)\.?\s", text):
            links[name] = found[1]
    return title[1] if title else info.method, links


def _origin(info: RunInfo) -> str:
    title, short = info.data.identity
    data = "images not recorded" if title == "unknown" else title + (f" (sha256 {short})" if short else "")
    if info.kind == "imported":
        origin = info.options.get("imported", {})
        return f"Imported from {origin.get('file')}, {origin.get('kind')}; pretrained by others, on {data}."
    epochs = "" if info.epochs is None else f" for {info.epochs:g} epochs"
    return f"Pretrained on {data}{epochs}, seed {info.seed}."


def _recipe(info: RunInfo) -> dict[str, Any]:
    """Options that say what was done, without those that are left alone and places on a machine."""
    wanted = ("imported", "method", "backbone", "data", "optim", "trainer")
    recipe: dict[str, Any] = {}
    for group in wanted:
        options = info.options.get(group)
        if isinstance(options, dict):
            recipe[group] = {k: v for k, v in options.items() if v is not None and k not in ("root", "download")}
    return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]


def _results(results: Sequence[Result]) -> str:
    ranked = [(result, result.value, result.interval) for result in results if result.value is not None]
    if not ranked:
        return "None yet: `ssl-bench evaluate`."
    lines = ["| protocol | test images | variant | accuracy, % | 95 % interval |", "|---|---|---|---:|---:|"]
    for result, value, interval in ranked:
        low, high = (f"{100 * end:.1f}" for end in interval or ())
        data = f"{result.data.title} ({result.n_test:,})"
        lines.append(f"| {result.protocol} | {data} | {result.primary} | {100 * value:.1f} | {low} to {high} |")
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
