"""Official checkpoints as run folders: against the official features and losses, and every way a file can be wrong."""

import argparse
import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_files import FOLDER, assert_close, load, weights
from torch import Tensor

from ssl_bench.checkpoints.import_checkpoint import import_checkpoint
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.checkpoints.official.layout import FORMATS, Given, layout, matching
from ssl_bench.checkpoints.official.networks import network
from ssl_bench.cli.main import main
from ssl_bench.config import registry
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.pretraining.checkpoint import start_from
from ssl_bench.pretraining.method import Method
from ssl_bench.records.run import read_run

CHECKPOINTS = FOLDER / "checkpoints"
Capture = pytest.CaptureFixture[str]


def imported(out: Path, file: Path | str, format: str, **given: Any) -> Path:
    """A run folder of a golden checkpoint."""
    import_checkpoint(Import(CHECKPOINTS / file, format, out, **given))
    return out


def opened(file: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(CHECKPOINTS / file, weights_only=True)
    return checkpoint


def saved(path: Path, checkpoint: Any) -> Path:
    torch.save(checkpoint, path)
    return path


def features(run: Path) -> Backbone:
    backbone, mean, std = load_backbone(run)
    assert mean == (0.485, 0.456, 0.406) and std == (0.229, 0.224, 0.225)
    return backbone.eval()


OWN = ("words64:Words64",)  # classes that the user names


def continued(run: Path) -> Method:
    """The method that `ssl-bench fit -c RUN/config.yaml --init RUN` begins with; no paths are dropped."""
    flags = ["-c", str(run / "config.yaml"), "--init", str(run), "--backbone.drop_path", "0"]
    config = parse_fit(flags, {}, named_classes=OWN).config
    given = dict(config["method"])
    cls = registry.load(registry.find("methods", given.pop("name")))
    optim = {name: tuple(v) if isinstance(v, list) else v for name, v in config["optim"].items()}
    method = cls(Backbone(BackboneOptions(**config["backbone"])), optim=Optim(**optim), **given)
    start_from(method, Path(config["init"]))
    assert isinstance(method, Method)
    return method


# Features of the official code


@pytest.mark.parametrize("kind", ["whole", "encoder"])
def test_mae_features(kind: str, tmp_path: Path) -> None:
    record, tensors = load("mae_features")
    if kind == "whole":
        run = imported(tmp_path / "run", "mae_pretrain.pth", "mae", heads=4, method={"decoder_heads": "4"})
    else:  # as the released files are
        state = opened("mae_pretrain.pth")["model"]
        encoder = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}
        run = imported(tmp_path / "run", saved(tmp_path / "encoder.pth", {"model": encoder}), "mae", heads=4)
        assert not (run / "checkpoints").exists()
    assert_close(features(run)(tensors["images"]), tensors["out.cls"], record["noise"]["cls"]["max_abs"])


@pytest.mark.parametrize("kind", ["whole", "asked", "encoder", "safetensors"])
def test_dino_features_at_every_size(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    record, tensors = load("dino_features")
    file: Path | str = "dino_full.pth"
    if kind in ("encoder", "safetensors"):
        teacher = weights(opened("dino_full.pth")["teacher"], "backbone.")
        file = tmp_path / ("encoder.pth" if kind == "encoder" else "encoder.safetensors")
        torch.save(teacher, file) if kind == "encoder" else save_file(teacher, file)
    backbone = features(imported(tmp_path / "run", file, "dino", heads=3, encoder_only=kind == "asked"))
    for size in (32, 16, 48, 36, "rect"):
        noise = record["noise"][f"cls.{size}"]["max_abs"]
        assert_close(backbone(tensors[f"images.{size}"]), tensors[f"cls.{size}"], noise)


@pytest.mark.parametrize("kind", ["whole", "asked", "encoder"])
def test_ibot_features(kind: str, tmp_path: Path) -> None:
    record, tensors = load("ibot_features")
    file: Path | str = "ibot_full.pth"
    if kind == "encoder":
        teacher = weights(opened("ibot_full.pth")["teacher"], "backbone.")
        file = saved(tmp_path / "encoder.pth", {"state_dict": teacher})
    run = imported(tmp_path / "run", file, "ibot", heads=3, encoder_only=kind == "asked")
    found = features(run).features(tensors["images"], ("cls", "cls+avg", "cls_4", "avg", "avg_raw"))
    found["cls_4, avg"] = torch.cat([found["cls_4"], found["avg"]], dim=1)
    theirs = {"cls": "n1.avg0", "avg_raw": "n1.avg1", "cls+avg": "n1.avg2", "cls_4": "n2.avg0", "cls_4, avg": "n2.avg2"}
    for name, case in theirs.items():  # of a network of two blocks
        assert_close(found[name], tensors[f"linear.{case}"], record["noise"][f"linear.{case}"]["max_abs"])


@pytest.mark.parametrize("only", [False, True], ids=["whole", "encoder"])
@pytest.mark.parametrize("network", ["vit", "swin"])
def test_simmim_latent(network: str, only: bool, tmp_path: Path) -> None:
    record, tensors = load(f"simmim_{network}")
    backbone = features(imported(tmp_path / "run", f"simmim_{network}.pth", "simmim", encoder_only=only))
    mask = tensors["mask"].bool().flatten(1)
    tokens = backbone.tokens(tensors["images"], mask=mask, mask_token=tensors["w.encoder.mask_token"])
    latent = tokens[:, backbone.prefix :].transpose(1, 2).unflatten(2, tensors["out.latent"].shape[2:])
    assert_close(latent, tensors["out.latent"], record["noise"]["latent"]["max_abs"])


@pytest.mark.parametrize("kind", ["whole", "asked", "file"])
def test_cae_features(kind: str, tmp_path: Path) -> None:
    record, tensors = load("cae_probe")
    if kind == "whole":
        run = imported(tmp_path / "run", "cae_pretrain.pth", "cae", heads=4, method=CAE_METHOD)
    elif kind == "asked":
        run = imported(tmp_path / "run", "cae_pretrain.pth", "cae", heads=4, encoder_only=True)
    else:
        encoder = weights(opened("cae_pretrain.pth")["model"], "encoder.")
        run = imported(tmp_path / "run", saved(tmp_path / "encoder.pth", {"model": encoder}), "cae", heads=4)
    backbone = features(run)
    assert_close(backbone.tokens(tensors["images"]), tensors["out.tokens"], record["noise"]["tokens"]["max_abs"])
    assert_close(backbone(tensors["images"]), tensors["lp.features_cls"], record["noise"]["tokens"]["max_abs"])


def test_moco_v3_features_give_the_official_predictions(tmp_path: Path) -> None:
    record, tensors = load("moco_v3")
    run = imported(tmp_path / "run", "moco_v3_vit.pth", "moco-v3", heads=4)
    found = features(run)(tensors["x1"])

    def norm(rows: Tensor, name: str) -> Tensor:
        affine = (tensors.get(f"w.{name}.weight"), tensors.get(f"w.{name}.bias"))
        return torch.nn.functional.batch_norm(rows, None, None, *affine, training=True)

    for part, layers in (("base_encoder.head", (0, 3, 6)), ("predictor", (0, 3))):
        for layer in layers:
            found = norm(found @ tensors[f"w.{part}.{layer}.weight"].T, f"{part}.{layer + 1}")
            found = found if layer == layers[-1] else found.relu()
    assert_close(found, tensors["out.q1"], record["noise"]["q1"]["max_abs"])
    assert read_run(run).method == "moco-v3"


@pytest.mark.parametrize("chunked", [False, True], ids=["flat", "chunked"])
@pytest.mark.parametrize("format", ["dinov2", "timm"])
def test_dinov2_features_at_every_size(format: str, chunked: bool, tmp_path: Path) -> None:
    record, tensors = load("dinov2_vit")
    state = weights(tensors, "w.")
    if chunked:  # blocks in chunks, as the official code nests them
        state = {k.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): v for k, v in state.items()}
    run = imported(tmp_path / "run", saved(tmp_path / "backbone.pth", state), format, heads=3)
    backbone = features(run)
    for size in (32, 48, 16):
        found = backbone.features(tensors[f"images.{size}"], ("cls", "avg"))
        for kind, theirs in (("cls", "cls"), ("avg", "patch_mean")):
            noise = record["noise"][f"{theirs}.{size}"]["max_abs"]
            assert_close(found[kind], tensors[f"{theirs}.{size}"], noise)
    found = backbone.features(tensors["images.32"], ("cls", "cls+avg", "cls_4", "avg"))
    found["cls_4, avg"] = torch.cat([found["cls_4"], found["avg"]], dim=1)
    inputs = {"cls": "n1.avg0", "cls+avg": "n1.avg1", "cls_4": "n2.avg0", "cls_4, avg": "n2.avg1"}
    for name, case in inputs.items():  # of its linear probe; two blocks are all there are
        assert_close(found[name], tensors[f"linear.{case}"], record["noise"][f"linear.{case}"]["max_abs"])


# Losses of the official code, from the imported state


CAE_METHOD = {"decoder_heads": "4", "tokenizer": "words64:Words64"}


def test_mae_loss(tmp_path: Path) -> None:
    record, tensors = load("mae_pretrain")
    given = {"decoder_heads": "4", "norm_pix": "true"}
    method = continued(imported(tmp_path / "run", "mae_pretrain.pth", "mae", heads=4, method=given))
    loss = method.loss([tensors["images"]], noise=tensors["noise"])
    assert_close(loss, record["results"]["norm_pix"]["loss_float64"])


def test_dino_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, tensors = load("dino_step")
    options = {"warmup_teacher_temp_epochs": "3", "local_views": "4"}
    method = continued(imported(tmp_path / "run", "dino_full.pth", "dino", heads=3, method=options))
    monkeypatch.setattr(type(method), "current_epoch", record["config"]["ep"])
    crops = [tensors[f"crop.{i}"] for i in range(6)]
    assert_close(method.loss(crops), record["loss_float64"])
    assert_close(method.centre.center, tensors["out.center_after"], record["noise"]["center_after"]["max_abs"])


def test_ibot_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, tensors = load("ibot_step")
    options = {"warmup_teacher_temp_epochs": "3", "teacher_patch_temp": "0.06", "local_views": "2"}
    method = continued(imported(tmp_path / "run", "ibot_full.pth", "ibot", heads=3, method=options))
    monkeypatch.setattr(type(method), "current_epoch", record["config"]["ep"])
    mask = torch.cat([tensors["mask.0"], tensors["mask.1"]]).bool().flatten(1)
    assert_close(method.loss([tensors[f"crop.{i}"] for i in range(4)], mask=mask), record["losses_float64"]["loss"])
    assert_close(method.centre2.center, tensors["out.center2_after"][0])


@pytest.mark.parametrize("network", ["vit", "swin"])
def test_simmim_loss(network: str, tmp_path: Path) -> None:
    record, tensors = load(f"simmim_{network}")
    method = continued(imported(tmp_path / "run", f"simmim_{network}.pth", "simmim"))
    loss = method.loss([tensors["images"]], mask=tensors["mask"].bool().flatten(1))
    assert_close(loss, record["loss_float64"])


def test_cae_loss(tmp_path: Path) -> None:
    record, tensors = load("cae_pretrain")
    given = CAE_METHOD | {"stale_target": "true"}
    run = imported(tmp_path / "run", "cae_pretrain.pth", "cae", heads=4, method=given)
    missing = json.loads((run / "import.json").read_text())["missing"]
    assert missing and all("starts as the encoder" in reason for reason in missing.values())
    method = continued(run)
    own = dict(method.backbone.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in method.teacher.named_parameters())
    with torch.no_grad():  # that of the golden file is older than its encoder
        for name, value in weights(tensors, "t.teacher.").items():
            method.teacher.model.get_parameter(name).copy_(value)
    loss = method.loss([tensors["images"]], mask=tensors["mask"].bool(), visual_tokens=tensors["token_ids"])
    assert_close(loss, record["losses_float64"]["loss"])


# Sizes and options unlike the golden ones: our own states under the official names


def as_official(method: Method, format: str) -> dict[str, Any]:
    """A method's state as the official code would save it."""
    state = method.state_dict()

    def part(prefix: str) -> dict[str, Tensor]:
        return weights(state, prefix)

    encoder = part("backbone.model.")
    if format == "mae":
        return {"model": encoder | {k: v for k, v in state.items() if not k.startswith("backbone.")}}
    if format == "cae":
        rest = {k: v for k, v in state.items() if not k.startswith(("backbone.", "teacher.", "tokenizer."))}
        return {"model": {f"encoder.{k}": v for k, v in encoder.items()} | rest}
    if format == "simmim":
        for i in (0, 1, 2):  # in this order, each moves one stage down
            moved = [k for k in encoder if k.startswith(f"layers.{i + 1}.downsample")]
            encoder |= {k.replace(f"layers.{i + 1}.", f"layers.{i}.", 1): encoder.pop(k) for k in moved}
        decoder = {f"decoder.0.{k}": v for k, v in part("decoder.").items()}
        decoder["decoder.0.weight"] = decoder["decoder.0.weight"][:, :, None, None]
        encoder["mask_token"] = state["mask_token"]
        return {"model": {f"encoder.{k}": v for k, v in encoder.items()} | decoder}
    students, teachers = (
        {f"backbone.{k}": v for k, v in part(f"{before}backbone.model.").items()}
        | {f"head.{k}": v for k, v in part(f"{before}head.").items()}
        for before in ("", "teacher.module.")
    )
    loss = {"center": state["centre.center"]}
    if format == "ibot":
        students["backbone.masked_embed"] = state["mask_token"]
        for head in (students, teachers):
            shared = {k.replace("last_layer", "last_layer2"): v for k, v in head.items() if "last_layer." in k}
            head |= {k: v for k, v in shared.items() if k not in head}
        loss["center2"] = state["centre2.center"][None]
    return {
        "student": {f"module.{k}": v for k, v in students.items()},
        "teacher": teachers,
        f"{format}_loss": loss,
        "epoch": 7,
    }


HEAD = {"prototypes": 24, "hidden_dim": 20, "bottleneck_dim": 12}
VIT = BackboneOptions("vit_pico_patch4_32", img_size=48, patch_size=8, width=72, depth=3, num_heads=6)
BEIT = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": False}
SWIN = {"depths": [2, 2, 2], "num_heads": [2, 2, 6], "window_size": 6, "mlp_ratio": 3.0}
OTHERS: list[tuple[str, BackboneOptions, dict[str, Any], dict[str, Any]]] = [
    ("mae", VIT, {"decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 2}, {"decoder_heads": 2}),
    ("dino", VIT, HEAD | {"local_views": 0}, {}),
    ("dino", BackboneOptions("resnet18", img_size=64, small_stem=False), HEAD | {"local_views": 0}, {}),
    ("ibot", VIT, HEAD, {}),
    ("ibot", VIT, HEAD | {"shared_head": False}, {}),
    ("ibot", VIT, HEAD | {"shared_head": False, "shared_head_teacher": False, "patch_prototypes": 40}, {}),
    ("simmim", BackboneOptions("beit_pico_patch4_32", img_size=48, patch_size=8, width=80, num_heads=5), {}, {}),
    ("simmim", BackboneOptions("beit_pico_patch4_32", timm_args=BEIT | {"use_rel_pos_bias": True}), {}, {}),
    ("simmim", BackboneOptions("beit_pico_patch4_32", timm_args=BEIT), {}, {}),
    ("simmim", BackboneOptions("swin_pico_patch2_32", img_size=96, patch_size=4, timm_args=SWIN), {}, {}),
    ("simmim", BackboneOptions("swin_pico_patch2_32", img_size=64, absolute_positions=True), {}, {}),
    (
        "cae",
        BackboneOptions("beit_pico_patch4_32", img_size=24, timm_args=BEIT | {"init_values": 0}),
        {"decoder_dim": 40, "regressor_depth": 3, "decoder_depth": 2, "decoder_heads": 5, "layer_scale": 0.0},
        {"decoder_heads": 5},
    ),
]


@pytest.mark.integration
@pytest.mark.parametrize(("format", "options", "given", "told"), OTHERS)
def test_other_sizes_and_options(
    format: str, options: BackboneOptions, given: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    method = registry.load(registry.find("methods", format))(Backbone(options), **given)
    for parameter in method.parameters():  # nothing at a value that a forgotten tensor would have too
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    checkpoint = as_official(method, format)
    file = saved(tmp_path / "checkpoint.pth", checkpoint)
    heads = getattr(getattr(method.backbone.model, "blocks", [None])[0], "attn", None)
    size = method.backbone.img_size
    told = {name: str(value) for name, value in told.items()}
    import_checkpoint(
        Import(file, format, tmp_path / "run", heads=heads and heads.num_heads, img_size=size, method=told)
    )
    again = continued(tmp_path / "run")
    assert again.backbone.model.state_dict().keys() == method.backbone.model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in method.state_dict().items())
    assert again.state_dict().keys() == method.state_dict().keys()
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = method.eval().evaluated(images)
        assert_close(features(tmp_path / "run")(images), expected)
    account = json.loads((tmp_path / "run" / "import.json").read_text())
    names = [*account["loaded"], *account["renamed"], *account["unused"]]
    assert len(names) == len(set(names)) and not account["missing"]


def test_newer_names_of_a_weight_norm(tmp_path: Path) -> None:
    checkpoint = opened("dino_full.pth")
    for part in ("student", "teacher"):
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            names = [name for name in checkpoint[part] if name.endswith(old)]
            for name in names:
                checkpoint[part][name.replace(old, f"parametrizations.weight.{new}")] = checkpoint[part].pop(name)
    run = imported(tmp_path / "run", saved(tmp_path / "new.pth", checkpoint), "dino", heads=3)
    old = imported(tmp_path / "old", "dino_full.pth", "dino", heads=3)
    one, two = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (run, old))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


# Which network it is


def shapes_of(name: str, **args: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **args)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


SHARED = {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}
FIXED = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": False, "init_values": 0.1}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("format", "name", "args", "expected"),
    [
        ("mae", "vit_base_patch16_224", {}, {}),
        ("mae", "vit_large_patch16_224", {}, {}),
        ("mae", "vit_huge_patch14_224", {}, {}),
        ("dino", "vit_small_patch8_224", {}, {}),
        ("dino", "vit_base_patch8_224", {}, {}),
        ("ibot", "vit_small_patch16_224", {}, {}),
        ("dino", "vit_small_patch16_224", {"img_size": 256}, {"img_size": 256}),
        ("moco-v3", "vit_small_patch16_224", {"num_heads": 12}, {"num_heads": 12}),
        ("moco-v3", "vit_base_patch16_224", {}, {}),
        ("mae", "vit_huge_patch14_224", {"patch_size": 16}, {"patch_size": 16}),
        ("timm", "vit_small_patch16_224", {"init_values": 1}, {"timm_args": {"init_values": 1e-5}}),
        ("simmim", "beit_base_patch16_224", SHARED, {"timm_args": SHARED}),
        ("cae", "beit_base_patch16_224", FIXED, {"timm_args": FIXED}),
        ("cae", "beit_large_patch16_224", FIXED, {"timm_args": FIXED}),
        (
            "cae",
            "beit_base_patch16_224",
            FIXED | {"embed_dim": 384, "num_heads": 12},
            {"width": 384, "timm_args": FIXED},
        ),
        ("simmim", "swin_base_patch4_window7_224", {}, {"img_size": 192}),
        ("simmim", "swin_large_patch4_window7_224", {"window_size": 12}, {"timm_args": {"window_size": 12}}),
        ("dino", "resnet50", {}, {"small_stem": False}),
        ("moco-v3", "resnet50", {}, {"small_stem": False}),
    ],
)
def test_standard_networks_are_known(format: str, name: str, args: dict[str, Any], expected: dict[str, Any]) -> None:
    given = Given(img_size=expected.get("img_size", 224))
    shapes = shapes_of(name, **args, **({"global_pool": "token"} if "beit" in name else {}))
    found = network(shapes, {}, given, layout(format).heads)
    if "img_size" in args or "swin" in name:
        expected = {"img_size": given.img_size} | expected
    exact = {"name": name, "img_size": 224} | expected
    assert found == exact


@pytest.mark.parametrize("size", [192, 224, 96])
def test_a_swins_image_size_is_in_its_masks(size: int) -> None:
    window, file = 6, {"encoder.layers.0.blocks.1.attn_mask": ((size // 24) ** 2, 36, 36)}
    found = network(shapes_of("swin_tiny_patch4_window7_224", window_size=window), file, Given(), {})
    assert found["img_size"] == size // 24 * 24 and found["timm_args"] == {"window_size": 6}


def test_what_shapes_leave_open_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a ViT 40 wide .* give --heads N"):
        imported(tmp_path / "run", "mae_pretrain.pth", "mae")
    with pytest.raises(UserError, match="--heads 3 does not divide the width 40"):
        imported(tmp_path / "run", "mae_pretrain.pth", "mae", heads=3)
    with pytest.raises(UserError, match="decoder 32 wide .* --method.decoder_heads N, or --encoder-only"):
        imported(tmp_path / "run", "mae_pretrain.pth", "mae", heads=4)
    with pytest.raises(UserError, match="one of 64 visual tokens: give their tokenizer, --method.tokenizer FILE"):
        imported(tmp_path / "run", "cae_pretrain.pth", "cae", heads=4)
    checkpoint = opened("simmim_swin.pth")
    plain = {k: v for k, v in checkpoint["model"].items() if "attn_mask" not in k and "_index" not in k}
    with pytest.raises(UserError, match="size of its images: give --img-size N"):
        imported(tmp_path / "run", saved(tmp_path / "swin.pth", {"model": plain}), "simmim")
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))


def test_options_stored_in_the_file_are_used(tmp_path: Path) -> None:
    checkpoint = opened("dino_full.pth")
    checkpoint["args"] = argparse.Namespace(
        arch="vit_small", teacher_temp=0.06, local_crops_number=4, local_crops_scale=(0.1, 0.3), norm_last_layer=True
    )
    checkpoint["optimizer"] = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    checkpoint["fp16_scaler"] = {"scale": 65536.0}
    run = imported(tmp_path / "run", saved(tmp_path / "file.pth", checkpoint), "dino", heads=3)
    method = parse_fit(["-c", str(run / "config.yaml")], {}).config["method"]
    assert (method["teacher_temp"], method["local_views"], method["norm_last_layer"]) == (0.06, 4, True)
    assert method["local_scale"] == [0.1, 0.3]
    assert parse_fit(["-c", str(run / "config.yaml")], {}).config["backbone"]["drop_path"] == 0.1  # the recipe's
    unused = json.loads((run / "import.json").read_text())["unused"]
    assert "continued run starts its own" in unused["optimizer"] and "options" in unused["args"]


def test_yacs_options_are_read_without_yacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):  # type: ignore[type-arg]
        def __init__(self, values: dict[str, Any]) -> None:
            super().__init__(values)
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__, module.CfgNode = "yacs.config", "CfgNode", CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = CfgNode({"DATA": CfgNode({"MASK_RATIO": 0.5, "MASK_PATCH_SIZE": 8}), "TAG": "x"})
    file = saved(tmp_path / "file.pth", opened("simmim_vit.pth") | {"config": config})
    monkeypatch.undo()
    run = imported(tmp_path / "run", file, "simmim")
    method = parse_fit(["-c", str(run / "config.yaml")], {}).config["method"]
    assert (method["mask_ratio"], method["mask_cell"]) == (0.5, 8)


# Every name is accounted for


GOLDEN = [
    ("mae_pretrain.pth", "mae", {"heads": 4, "method": {"decoder_heads": "4"}}),
    ("dino_full.pth", "dino", {"heads": 3}),
    ("ibot_full.pth", "ibot", {"heads": 3}),
    ("simmim_vit.pth", "simmim", {}),
    ("simmim_swin.pth", "simmim", {}),
    ("cae_pretrain.pth", "cae", {"heads": 4, "method": CAE_METHOD}),
    ("moco_v3_vit.pth", "moco-v3", {"heads": 4}),
]


def tensors_of(checkpoint: Any) -> int:
    if isinstance(checkpoint, Tensor):
        return 1
    return sum(map(tensors_of, checkpoint.values())) if isinstance(checkpoint, dict) else 0


@pytest.mark.parametrize(("file", "format", "given"), GOLDEN, ids=lambda v: v if isinstance(v, str) else "")
def test_every_name_is_in_the_report_once(file: str, format: str, given: dict[str, Any], tmp_path: Path) -> None:
    imported(tmp_path / "run", file, format, **given)
    account = json.loads((tmp_path / "run" / "import.json").read_text())
    checkpoint = opened(file)
    others = [name for name, value in checkpoint.items() if not tensors_of(value)]
    names = [*account["loaded"], *account["renamed"], *account["unused"]]
    assert len(names) == len(set(names)) == tensors_of(checkpoint) + len(others)
    assert all(account["unused"].values()) and set(others) <= account["unused"].keys()
    assert account["epoch"] == checkpoint["epoch"] and len(account["sha256"]) == 64


@pytest.mark.parametrize(("file", "format", "given"), GOLDEN, ids=lambda v: v if isinstance(v, str) else "")
def test_one_name_too_many_or_too_few(file: str, format: str, given: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = opened(file)
    state = checkpoint.get("model", checkpoint.get("state_dict", checkpoint.get("teacher")))
    state["surprise.weight"] = torch.zeros(2)
    with pytest.raises(UserError, match=r"explains .*surprise\.weight"):
        imported(tmp_path / "run", saved(tmp_path / "more.pth", checkpoint), format, **given)
    del state["surprise.weight"]
    name = next(name for name in state if name.endswith("norm1.bias") and "neck" not in name and "momentum" not in name)
    value = state.pop(name)
    with pytest.raises(UserError, match=r"lacks .*0\.norm1\.bias"):
        imported(tmp_path / "run", saved(tmp_path / "fewer.pth", checkpoint), format, **given)
    state[name] = value[:-1]
    with pytest.raises(UserError, match=r"norm1\.bias is \(\d+,\) in .*, \(\d+,\) here"):
        imported(tmp_path / "run", saved(tmp_path / "narrow.pth", checkpoint), format, **given)
    state[name] = value.clone().fill_(float("nan"))
    with pytest.raises(UserError, match="values that are no numbers"):
        imported(tmp_path / "run", saved(tmp_path / "nan.pth", checkpoint), format, **given)
    assert not (tmp_path / "run").exists()


def test_a_block_too_many_here_is_no_block_forgotten(tmp_path: Path) -> None:
    checkpoint = opened("mae_pretrain.pth")
    extra = {k.replace("blocks.1.", "blocks.2."): v for k, v in checkpoint["model"].items() if "blocks.1." in k}
    checkpoint["model"] |= {k: v for k, v in extra.items() if "mlp" not in k}
    with pytest.raises(UserError, match=r"lacks .*blocks\.2\.mlp\.fc1\.weight"):
        imported(tmp_path / "run", saved(tmp_path / "x.pth", checkpoint), "mae", heads=4, encoder_only=True)


@pytest.mark.parametrize("wrong", FORMATS)
@pytest.mark.parametrize(("file", "format", "given"), GOLDEN, ids=lambda v: v if isinstance(v, str) else "")
def test_another_layout_is_recognised(
    file: str, format: str, given: dict[str, Any], wrong: str, tmp_path: Path
) -> None:
    if wrong != format:
        with pytest.raises(UserError, match=f"no {wrong} checkpoint: it looks like --format {format}$"):
            imported(tmp_path / "run", file, wrong)


def test_fine_tuned_with_pooling_is_refused(tmp_path: Path) -> None:
    state = opened("mae_pretrain.pth")["model"]
    state = {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask"))}
    for format in ("mae", "timm"):
        with pytest.raises(UserError, match=r"fc_norm\.weight: fine-tuned with a norm after pooling"):
            imported(tmp_path / "run", saved(tmp_path / "x.pth", {"model": state}), format, heads=4)


# timm's own


@pytest.mark.integration
def test_a_timm_file_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10).eval()
    file = saved(tmp_path / "vit.pth", model.state_dict())
    import_checkpoint(Import(file, "timm", tmp_path / "run", backbone="vit_tiny_patch16_224"))
    images = torch.rand(2, 3, 64, 64)
    backbone, mean, _ = load_backbone(tmp_path / "run")
    with torch.no_grad():
        assert_close(backbone.eval()(images), model.forward_head(model.forward_features(images), pre_logits=True))
    assert mean == (0.5, 0.5, 0.5)  # as timm says of this name
    unused = json.loads((tmp_path / "run" / "import.json").read_text())["unused"]
    assert unused == dict.fromkeys(["head.weight", "head.bias"], "a classifier: not pretrained")


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("base_encoder.layer1.0.conv1.weight", "backbone.model.layer1.0.conv1.weight"),
        ("base_encoder.bn1.running_mean", "backbone.model.bn1.running_mean"),
        ("base_encoder.fc.0.weight", ""),
        ("base_encoder.fc.4.running_var", ""),
        ("momentum_encoder.layer1.0.conv1.weight", ""),
        ("predictor.3.weight", ""),
    ],
)
def test_names_of_moco_v3s_resnet(name: str, here: str) -> None:
    rule = matching(layout("moco-v3").kinds[0].rules, name)
    assert rule is not None and bool(rule.to or rule.reason)
    assert here == (re.sub(rule.pattern, rule.to, name) if rule.to else "")


# What is refused, and how


class Bomb:
    """A pickle that runs a command when it is opened as Python would."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {Path.cwd() / 'exploded'}",)


class Custom:
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("content", "named"), [(Bomb(), "system"), (Custom(), f"{Custom.__module__}.Custom")])
def test_a_pickle_that_needs_more_is_never_opened(
    content: Any, named: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pth"
    torch.save(opened("mae_pretrain.pth") | {"extra": content}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="only running its code would open") as refusal:
        imported(tmp_path / "run", file, "mae", heads=4)
    assert "torch.save({'model': c['model']}, NEW)" in str(refusal.value) and "\n" not in str(refusal.value)
    assert not zipped or named in str(refusal.value)
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing.pth", "--format", "mae", "-o", "RUN"], "no file missing.pth"),
        (["MAE", "--format", "mea", "-o", "RUN"], "no layout 'mea'; did you mean 'mae'?"),
        (["MAE", "--format", "dino", "-o", "RUN"], "looks like --format mae"),
        (["MAE", "--format", "mae", "-o", "FULL"], "exists: name a folder that does not"),
        (["MAE", "--format", "mae", "-o", "RUN", "--backbone", "vit_tiny_patch16_224"], "--backbone is for --format"),
        (["MAE", "--format", "mae", "-o", "RUN", "--heads", "0"], "--heads: 0 must be at least 1"),
        (["MAE", "--format", "mae", "-o", "RUN", "--haeds", "4"], "did you mean '--heads'?"),
        (
            ["--method.decoder_heads", "0", "MAE", "--format", "mae", "-o", "RUN", "--heads", "4"],
            "--method.decoder_heads: 0 must be at least 1",
        ),
        (["MAE", "--format", "mae", "-o", "RUN", "--method.decoder_heads"], "--method.decoder_heads needs a value"),
        (["MAE", "--format", "mae", "-o", "TEXT/run", "--encoder-only", "--heads", "4"], "cannot be written"),
        (["MAE", "--format", "mae", "-o", "RUN", "--encoder-only", "--heads", "4", "--img-size", "64"], "for 32 px"),
        (["MAE", "--format", "mae", "-o", "RUN", "--encoder-only", "--method.x", "1"], "only the encoder is imported"),
        (["MAE", "--format", "mae"], "-o/--output"),
        (["CUT", "--format", "mae", "-o", "RUN"], "is damaged or no checkpoint"),
        (["TEXT", "--format", "mae", "-o", "RUN"], "is damaged or no checkpoint"),
        (["SAFE", "--format", "mae", "-o", "RUN"], "is damaged or no checkpoint"),
        (["LIST", "--format", "mae", "-o", "RUN"], "holds a list, not tensors by name"),
        (["EMPTY", "--format", "mae", "-o", "RUN"], "it holds no tensors at all"),
        (["FULL", "--format", "timm", "-o", "RUN"], "a folder without config.json"),
        (["VIT", "--format", "timm", "-o", "RUN", "--backbone", "vit_tinny_patch16_224"], "did you mean"),
        (["VIT", "--format", "timm", "-o", "RUN", "--backbone", "vit_tiny_patch16_224"], "lacks blocks.2."),
        (["VIT", "--format", "timm", "-o", "RUN", "--backbone", "resnet18"], "the network here has no"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    whole = (CHECKPOINTS / "mae_pretrain.pth").read_bytes()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "x.safetensors").write_bytes(b"\x10")
    saved(tmp_path / "list.pth", [torch.zeros(1)])
    saved(tmp_path / "empty.pth", {"epoch": 1})
    saved(tmp_path / "vit.pth", weights(opened("dino_full.pth")["teacher"], "backbone."))
    names = {"RUN": "run", "FULL": "full", "CUT": "cut.pth", "TEXT": "text.pth", "SAFE": "x.safetensors"}
    names |= {"TEXT/run": "text.pth/run", "LIST": "list.pth", "EMPTY": "empty.pth", "VIT": "vit.pth"}
    places = {name: str(tmp_path / file) for name, file in names.items()} | {
        "MAE": str(CHECKPOINTS / "mae_pretrain.pth")
    }
    assert main(["import", *(places.get(word, word) for word in argv)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0], said
    assert not (tmp_path / "run").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["note.txt"]


# A run like any other


@pytest.mark.integration
def test_import_evaluate_leaderboard_continue(tmp_path: Path, capsys: Capture) -> None:
    run = str(tmp_path / "runs" / "mae-official")
    file = str(CHECKPOINTS / "mae_pretrain.pth")
    flags = ["--heads", "4", "--method.decoder_heads", "4", "--data", "photos", "--verbose"]
    assert main(["import", file, "--format", "mae", "-o", run, *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == run and any("decoder_pred.weight" in line for line in said)
    assert any(line.split() == ["loaded", "50"] for line in said)
    info = read_run(Path(run))
    assert (info.kind, info.status, info.data.title) == ("imported", "finished", "photos")
    assert info.backbone is not None and info.backbone.params == 31160 and info.backbone.gflops_per_image > 0
    knn = ["--protocols", "knn", "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert main(["evaluate", run, *knn]) == 2
    assert "has no images of its own on record: --data NAME" in capsys.readouterr().err
    assert main(["evaluate", run, f"random:{run}", "--data", "digits", "--data.image_size", "32", *knn]) == 0
    assert (Path(run) / "results" / "knn@digits.json").is_file()
    capsys.readouterr()
    for format in ("table", "markdown", "html", "json"):
        assert main(["leaderboard", str(tmp_path / "runs"), "--format", format]) == 0
        text = " ".join(capsys.readouterr().out.replace("\\", "").split())
        assert "mae-official was imported from mae_pretrain.pth (mae, whole pretraining checkpoint)" in text
        assert "mae (imported)" in text or format in ("html", "json")
    config = ["fit", "-c", f"{run}/config.yaml", "--init", run, "--runs", str(tmp_path / "new")]
    small = [
        "--data",
        "digits",
        "--data.image_size",
        "32",
        "--data.batch_size",
        "8",
        "--trainer.max_epochs",
        "1",
        "--probe.images",
        "32",
    ]
    small += ["--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    small += ["--optim.base_lr", "0", "--trainer.accumulate_grad_batches", "1", "--trainer.precision", "32-true"]
    assert main([*config, *small, "--data.num_workers", "0", "--optim.weight_decay", "0"]) == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    one, two = (load_backbone(Path(place))[0].model.state_dict() for place in (run, folder))
    assert all(torch.equal(value, two[name]) for name, value in one.items())  # at a rate of 0 nothing moves


def test_an_encoder_alone_cannot_be_continued(tmp_path: Path, capsys: Capture) -> None:
    run = imported(tmp_path / "run", "mae_pretrain.pth", "mae", heads=4, encoder_only=True)
    config = ["-c", f"{run}/config.yaml", "--data", "digits", "--data.image_size", "32"]
    assert main(["fit", *config, "--init", str(run), "--runs", str(tmp_path)]) == 2
    assert "last.ckpt" in capsys.readouterr().err
