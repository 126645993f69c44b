"""`ssl-bench export`: the backbone of a run as a folder that timm loads by itself, with a model card."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import save_file

import ssl_bench
from ssl_bench.checkpoints.official.layout import FORMATS, layout
from ssl_bench.config import registry
from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.data.geometry import CROP, short_side
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.records.files import write_json, write_text, writing_folder
from ssl_bench.records.result import Result
from ssl_bench.records.run import RunInfo, read_run
from ssl_bench.records.store import Run, load_runs

FILES = {"config.json", "model.safetensors", "README.md"}
MADE = "Made by `ssl-bench export`"


def export(run: Path, out: Path) -> None:
    """Write config.json, model.safetensors and README.md, whole or not at all, and check that timm loads them.

    Raises:
        UserError: There is no such run or backbone, timm cannot build it, or the folder holds something else.
    """
    if not (run / "run.json").is_file():
        raise UserError(f"{run} is no run folder: it has no run.json (`ssl-bench fit` prints the folder it made)")
    if read_run(run).kind == "tokenizer":
        raise UserError(f"{run} is a tokenizer's run, which has no backbone: export a run that was trained with it")
    backbone, mean, std = load_backbone(run)
    if not backbone.timm_can_build:
        what = "its 3x3 first convolution" if getattr(backbone, "small_stem", False) else "some of its parts"
        text = f"timm has no argument for {what} ({backbone.options.name}, {backbone.img_size} px)"
        raise UserError(f"{run}: {text}, so no folder would load; docs/checkpoints.md shows the lines that do")
    replaced = out.is_dir() and any(out.iterdir())
    if out.exists() and (not out.is_dir() or (replaced and not _own(out))):
        raise UserError(f"-o {out} holds something else: name a new folder")
    with writing_folder(out, over=replaced) as folder:
        info = read_run(run)
        write_json(folder / "config.json", timm_config(backbone, mean, std, evaluated_crop(info, backbone.img_size)))
        weights = {name: tensor.contiguous() for name, tensor in backbone.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_text(folder / "README.md", model_card(load_runs([run])[0], backbone, mean, std))
        _check(folder, backbone, out.absolute())


def evaluated_crop(info: RunInfo, size: int) -> float:
    """Part of the short side that evaluations show: all of images that have the network's size, as their set says."""
    data = info.options.get("data")
    known = CATALOGUE.get(str(data.get("name"))) if isinstance(data, dict) else None
    whole = short_side(size) == size or (known is not None and known.image_size == size)
    return 1.0 if whole else CROP


def timm_config(backbone: Backbone, mean: tuple[float, ...], std: tuple[float, ...], crop: float) -> dict[str, Any]:
    """config.json in timm's layout."""
    known: Any = backbone.model.pretrained_cfg
    args = {name: value for name, value in backbone.args.items() if name != "drop_path_rate"}
    if not backbone.is_resnet:
        args["img_size"] = backbone.img_size
    return {
        "architecture": backbone.architecture,
        "num_classes": 0,
        "num_features": backbone.dim,
        "global_pool": getattr(backbone.model, "global_pool", None) if backbone.is_vit else "avg",
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [3, backbone.img_size, backbone.img_size],
            "fixed_input_size": not backbone.is_resnet,
            "interpolation": "bicubic",
            "crop_pct": crop,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def model_card(run: Run, backbone: Backbone, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """README.md: what it is, how to load it, how it was made, what it reached."""
    info = run.info
    tags = {"library_name": "timm", "tags": ["image-feature-extraction", "timm", "self-supervised", info.method]}
    title, links = _method(info)
    size = backbone.img_size
    parts = [
        f"---\n{yaml.safe_dump(tags, sort_keys=False)}---",
        f"# {backbone.options.name}, pretrained with {title}",
        f"{MADE} {ssl_bench.__version__}. {_origin(info)}",
        f"{sum(p.numel() for p in backbone.parameters()):,} parameters, {size} x {size} pixels, "
        f"{backbone.dim} features. No licence is stated here: that of the weights is their owner's to give.",
        "## Loading",
        "```python\nimport timm\n\n"
        'model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "features = model(transform(image)[None])\n```",
        f"Input is normalised with mean {_numbers(mean)} and deviation {_numbers(std)}.",
        "## Pretraining",
        f"```yaml\n{yaml.safe_dump(_recipe(info), sort_keys=False, allow_unicode=True, width=100)}```",
        "## Results",
        _results([r for r in run.results if r.branch in ("", "encoder", run.info.branch)]),
        *(["## References", "\n".join(f"- {name}: {link}" for name, link in links.items())] if links else []),
    ]
    return "\n\n".join(parts) + "\n"


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


def _own(folder: Path) -> bool:
    """Whether a folder holds an earlier export and nothing else."""
    card = folder / "README.md"
    names = {path.name for path in folder.iterdir()}
    return names <= FILES and card.is_file() and MADE in card.read_text(encoding="utf-8", errors="replace")


@torch.no_grad()
def _check(folder: Path, backbone: Backbone, out: Path) -> None:
    """That timm gives the same features of an image."""
    image = torch.rand(1, 3, backbone.img_size, backbone.img_size, generator=torch.Generator().manual_seed(0))
    expected = backbone.eval()(image)
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        same = torch.allclose(loaded(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        reason = "its features differ"
    except Exception as error:
        same, reason = False, str(error).partition("\n")[0]
    if not same:
        raise UserError(f"{out} is not written: timm {timm.__version__} does not load it ({reason}); try a newer one")
