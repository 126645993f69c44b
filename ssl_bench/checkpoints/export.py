"""`ssl-bench export`: the backbone of a run as a folder that others load by themselves, with a model card."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ssl_bench.checkpoints.export_formats import check_with_transformers, write_onnx, write_torchscript
from ssl_bench.checkpoints.export_paths import checked_paths
from ssl_bench.checkpoints.model_card import model_card
from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.data.geometry import CROP, short_side
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.records.files import write_json, write_text, writing_folder
from ssl_bench.records.run import RunInfo, read_run
from ssl_bench.records.store import load_readable, say_unread

BY_TIMM = ("timm", "hf")  # formats whose network timm builds again


def export(run: Path, out: Path, format: str = "timm", license: str | None = None) -> None:
    """Write the network and README.md, whole or not at all, and check that it gives the same features when loaded.

    Args:
        run: A run's folder.
        out: The folder to make; one of an earlier export is replaced.
        format: timm, hf, torchscript or onnx.
        license: For the model card.

    Raises:
        UserError: There is no such run or backbone, the format cannot hold it, a library is missing, or the folder
            holds something else.
    """
    replaced = checked_paths(run, out)
    backbone, mean, std = load_backbone(run)
    if format in BY_TIMM and not backbone.timm_can_build:
        what = "its 3x3 first convolution" if getattr(backbone, "small_stem", False) else "some of its parts"
        text = f"timm has no argument for {what} ({backbone.options.name}, {backbone.img_size} px)"
        raise UserError(f"{run}: {text}, so no folder would load: --format torchscript or onnx, or docs/checkpoints.md")
    with writing_folder(out, over=replaced) as folder:
        info = read_run(run)
        config = timm_config(backbone, mean, std, evaluated_crop(info, backbone.img_size))
        if format in BY_TIMM:
            extra = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperModel"]} if format == "hf" else {}
            write_json(folder / "config.json", config | extra)
            weights = {name: tensor.contiguous() for name, tensor in backbone.model.state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            write_json(folder / "config.json", {**config["pretrained_cfg"], "num_features": backbone.dim})
            write = write_onnx if format == "onnx" else write_torchscript
            write(folder, plain_network(backbone), backbone.img_size, backbone.channels)
        (read,), unread = load_readable([run])
        say_unread(unread)
        write_text(folder / "README.md", model_card(read, backbone, mean, std, format, license))
        if format in BY_TIMM:
            _check(folder, backbone, out.absolute())
        if format == "hf":
            check_with_transformers(folder, plain_network(backbone), backbone.img_size, backbone.channels)


def plain_network(backbone: Backbone) -> nn.Module:
    """A network of (B, 3, s, s) images that gives the primary features by itself: timm's own where it can build it."""
    if not backbone.timm_can_build:
        network: nn.Module = backbone if backbone.is_vit or backbone.is_swin else backbone.model
        return network.eval()
    model: nn.Module = timm.create_model(backbone.architecture, pretrained=False, num_classes=0, **backbone.args)
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


def evaluated_crop(info: RunInfo, size: int) -> float:
    """Part of the short side that evaluations show: all of images that have the network's size, as their set says."""
    data = info.options.get("data")
    known = CATALOGUE.get(str(data.get("name"))) if isinstance(data, dict) else None
    whole = short_side(size) == size or (known is not None and known.image_size == size)
    return 1.0 if whole else CROP


def timm_config(backbone: Backbone, mean: tuple[float, ...], std: tuple[float, ...], crop: float) -> dict[str, Any]:
    """config.json in timm's layout."""
    known: Any = getattr(backbone.model, "pretrained_cfg", {})
    args = {name: value for name, value in backbone.args.items() if name != "drop_path_rate"}
    if not (backbone.is_resnet or backbone.is_pooled):
        args["img_size"] = backbone.img_size
    return {
        "architecture": backbone.architecture,
        "num_classes": 0,
        "num_features": backbone.dim,
        "global_pool": _pooling(backbone),
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [backbone.channels, backbone.img_size, backbone.img_size],
            "fixed_input_size": "img_size" in args,  # then timm gives the network this size
            "interpolation": "bicubic",
            "crop_pct": crop,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _pooling(backbone: Backbone) -> str | None:
    """timm's name of how features are pooled; None of a network whose own is left as it is."""
    if backbone.is_pooled:
        return None
    pooling: str | None = getattr(backbone.model, "global_pool", None) if backbone.is_vit else "avg"
    return pooling


@torch.no_grad()
def _check(folder: Path, backbone: Backbone, out: Path) -> None:
    """That timm gives the same features of an image."""
    image = torch.rand(
        1, backbone.channels, backbone.img_size, backbone.img_size, generator=torch.Generator().manual_seed(0)
    )
    expected = backbone.eval()(image)
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        same = torch.allclose(loaded(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        reason = "its features differ"
    except Exception as error:
        same, reason = False, str(error).partition("\n")[0]
    if not same:
        raise UserError(f"{out} is not written: timm {timm.__version__} does not load it ({reason}); try a newer one")
