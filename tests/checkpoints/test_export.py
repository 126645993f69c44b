"""Exported folders: timm gives the same features, the card says what it is, nothing of others' is touched."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from golden_files import assert_close
from hub_server import hub
from paths import GOLDEN, ROOT
from PIL import Image

from ssl_bench.checkpoints.export import export
from ssl_bench.checkpoints.import_checkpoint import import_checkpoint
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.cli.main import main
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.geometry import see_image
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import load_backbone, write_backbone
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import Result, write_result
from ssl_bench.records.run import DataRecord, RunInfo, write_run

Capture = pytest.CaptureFixture[str]
DATA = DataRecord("cifar10", {"sha256": "0123456789abcdef"})


def run_of(folder: Path, options: BackboneOptions, **info: Any) -> Path:
    """A finished run whose weights are all at random, with one result."""
    torch.manual_seed(0)
    backbone = Backbone(options)
    for tensor in backbone.model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor), alpha=0.05)
    if info.pop("fixed", False):
        backbone.fix_positions("mae")
    folder.mkdir(parents=True)
    write_backbone(folder, backbone, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    chosen = {
        "method": {"name": "mae", "mask_ratio": 0.6},
        "data": {"name": info.pop("images", "cifar10"), "root": "/home/me"},
    }
    known = {
        "status": "finished",
        "kind": "pretrained",
        "method": "mae",
        "data": DATA,
        "epochs": 200.0,
        "seed": 3,
    }
    write_run(folder, RunInfo(**{**known, "options": chosen, **info}))
    if info.get("kind") != "imported":
        result = Result("linear", 1, {}, "cls+avg", 0.723, (0.712, 0.734), 10000, DATA)
        write_result(folder, result, Predictions(["a"], [0], {"cls+avg": [0]}))
    return folder


SWIN = {"depths": [2, 2], "num_heads": [2, 3], "window_size": 4}
RELATIVE = {"use_abs_pos_emb": False, "use_rel_pos_bias": True}
NETWORKS = [
    BackboneOptions("vit_pico_patch4_32"),
    BackboneOptions("vit_small_patch16_224", img_size=48, patch_size=8, width=72, depth=2, num_heads=6, drop_path=0.1),
    BackboneOptions("vit_pico_patch4_32", timm_args={"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1}),
    BackboneOptions("vit_pico_patch4_32", timm_args={"class_token": False, "global_pool": "avg", "mlp_ratio": 2}),
    BackboneOptions("beit_pico_patch4_32"),
    BackboneOptions("beit_pico_patch4_32", img_size=24, timm_args=RELATIVE | {"use_shared_rel_pos_bias": False}),
    BackboneOptions("swin_pico_patch2_32", timm_args=SWIN),
    BackboneOptions("swin_pico_patch2_32", img_size=64),
    BackboneOptions("resnet_nano", img_size=96),
    BackboneOptions("resnet_micro", img_size=32, small_stem=False),
]


@pytest.mark.parametrize("options", NETWORKS, ids=lambda o: f"{o.name}-{o.img_size}")
def test_timm_gives_the_same_features_and_the_folder_comes_back(options: BackboneOptions, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", options, fixed=options.name == "vit_pico_patch4_32" and not options.timm_args)
    export(run, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}
    backbone = load_backbone(run)[0].eval()
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, backbone.img_size, backbone.img_size)
    with torch.no_grad():
        assert_close(model(images), backbone(images), relative=1e-6)
    config = timm.data.resolve_model_data_config(model)
    assert [*config["mean"], *config["std"]] == [0.49, 0.48, 0.45, 0.25, 0.24, 0.26]
    assert tuple(config["input_size"]) == (3, backbone.img_size, backbone.img_size)
    assert (model.num_features, model.num_classes) == (backbone.dim, 0)
    import_checkpoint(Import(tmp_path / "out", "timm", tmp_path / "again"))
    again, mean, _ = load_backbone(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again.eval()(images), backbone(images)) and mean == (0.49, 0.48, 0.45)


def test_config_has_timms_layout(tmp_path: Path) -> None:
    export(run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32")), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.keys() == {
        *("architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg")
    }
    assert (config["architecture"], config["num_classes"], config["global_pool"]) == (
        "vit_tiny_patch16_224",
        0,
        "token",
    )
    assert config["model_args"]["embed_dim"] == config["num_features"] == 48


@pytest.mark.parametrize("size", [16, 32, 64, 96, 112, 224, 288])
def test_timms_transform_shows_what_evaluations_see(size: int, tmp_path: Path) -> None:
    network = BackboneOptions("resnet_nano", img_size=size, small_stem=False)
    run = run_of(tmp_path / "run", network, images="folder")
    export(run, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in load_backbone(run)[1:])
    for width, height in ((200, 150), (150, 200), (333, 301), (120, 120), (size + 1, 2 * size)):
        rows = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        seen = (see_image(Image.fromarray(rows), size).float() / 255 - mean) / std
        shown = transform(Image.fromarray(rows))
        assert shown.shape == seen.shape and float((shown - seen).abs().max()) <= 0.05


def test_a_set_of_images_of_the_networks_size_was_seen_whole(tmp_path: Path) -> None:
    export(run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32")), tmp_path / "out")  # CIFAR-10's 32 px
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 1.0


def test_card(tmp_path: Path) -> None:
    export(run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32")), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "timm" and "mae" in head["tags"] and "license" not in head
    assert "pretrained with MAE" in card and "https://arxiv.org/abs/2111.06377\n" in card
    assert "Pretrained on cifar10 (sha256 01234567) for 200 epochs, seed 3." in card
    assert "| linear | cifar10 (10,000) | cls+avg | 72.3 | 71.2 to 73.4 |" in card
    assert "mask_ratio: 0.6" in card and "/home/me" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"image": Image.new("RGB", (32, 32))}
    exec(code[1].replace("THIS_FOLDER", str(tmp_path / "out")), names)
    assert names["features"].shape == (1, 48)


def test_card_of_an_import_names_its_origin(tmp_path: Path) -> None:
    file = GOLDEN / "checkpoints" / "moco_v3_vit.pth"
    import_checkpoint(Import(file, "moco-v3", tmp_path / "run", heads=4))
    export(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pretrained with MoCo v3" in card and "https://arxiv.org/abs/2104.02057" in card
    assert "Imported from moco_v3_vit.pth, encoder of a whole" in card and "None yet" in card


@pytest.mark.integration
def test_what_timm_cannot_build_is_refused_and_the_documented_lines_do_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", BackboneOptions("resnet18", img_size=32))
    with pytest.raises(UserError, match="no argument for its 3x3 first convolution .* docs/checkpoints.md"):
        export(run, tmp_path / "out")
    swin = run_of(tmp_path / "swin", BackboneOptions("swin_pico_patch2_32", absolute_positions=True))
    with pytest.raises(UserError, match="no argument for some of its parts"):
        export(swin, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("RUN/", f"{run}/"), names)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(names["model"].eval()(images), load_backbone(run)[0].eval()(images), relative=1e-6)


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    run, out = run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32")), tmp_path / "out"
    out.mkdir()
    export(run, out)  # into an empty folder
    (out / "config.json").write_text("{}")
    export(run, out)
    assert json.loads((out / "config.json").read_text())["architecture"]
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(UserError, match="holds something else"):
        export(run, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "README.md").write_text("someone's model")
    with pytest.raises(UserError, match="holds something else"):
        export(run, foreign)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out", "foreign"}


def test_nothing_appears_that_timm_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32")), tmp_path / "out"
    export(run, out)
    before = (out / "model.safetensors").stat().st_mtime_ns
    real = timm.create_model

    def other(name: str, **given: Any) -> torch.nn.Module:
        model = real(name, **given)
        if "local-dir" in name:
            torch.nn.init.zeros_(model.norm.weight)
        return model

    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(UserError, match=r"is not written: timm .* does not load it \(its features differ\)"):
        export(run, out)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}


def test_mistakes(tmp_path: Path, capsys: Capture) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    write_run(unfinished, RunInfo("running", "pretrained", "mae", DATA))
    for argv, message in (
        ([str(tmp_path / "none"), "-o", str(tmp_path / "out")], "is no run folder"),
        ([str(unfinished), "-o", str(tmp_path / "out")], "has no backbone.json"),
        ([str(unfinished)], "-o/--output"),
    ):
        assert main(["export", *argv]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and message in said[0], said
    run = run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32"))
    assert main(["export", str(run), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out")]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch would rather have torch.export
@pytest.mark.parametrize("format", ["torchscript", "onnx", "hf"])
@pytest.mark.parametrize(
    "options",
    [
        BackboneOptions("vit_pico_patch4_32"),
        BackboneOptions("test_efficientnet", img_size=32),
        BackboneOptions("resnet_nano", img_size=32),
    ],
    ids=lambda options: options.name,
)
def test_every_format_gives_the_features(format: str, options: BackboneOptions, tmp_path: Path) -> None:
    run, out = run_of(tmp_path / "run", options), tmp_path / "out"
    backbone = load_backbone(run)[0].eval()
    if format == "hf" and not backbone.timm_can_build:
        with pytest.raises(UserError, match="--format torchscript or onnx"):
            export(run, out, format)
        return
    export(run, out, format)
    images = torch.randn(5, 3, 32, 32)  # another number than any that was traced or checked
    with torch.no_grad():
        expected = backbone(images)
        if format == "torchscript":
            found = torch.jit.load(out / "model.pt")(images)
        elif format == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        else:
            import transformers

            found = transformers.AutoModel.from_pretrained(str(out)).eval()(pixel_values=images).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (out / "README.md").is_file() and (out / "config.json").is_file()


def test_the_cards_metadata_is_what_hubs_read(tmp_path: Path) -> None:
    import huggingface_hub

    run = run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32"))
    export(run, tmp_path / "out", license="cc-by-nc-4.0")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.datasets, card.data.library_name) == ("cc-by-nc-4.0", ["cifar10"], "timm")
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type) == (
        "image-classification",
        "cifar10",
        "accuracy",
    )
    assert result.metric_value == 72.3
    assert result.metric_args == {"interval": [71.2, 73.4], "confidence": 0.95, "images": 10000}
    assert "71.2 to 73.4" in result.metric_name and "Licence: cc-by-nc-4.0" in card.text


@pytest.mark.integration
def test_a_run_becomes_a_model_of_transformers_on_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    run = run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32"))
    out = ["-o", str(tmp_path / "out")]
    with hub(monkeypatch, str(tmp_path / "cache")) as models:
        asked = ["--format=hf", "--license=apache-2.0", "--push-to-hub=our-group/mae-pico"]
        assert main(["export", str(run), *out, *asked]) == 0
    uploaded = models["our-group/mae-pico"]
    assert set(uploaded) >= {"config.json", "model.safetensors", "README.md"}
    assert all((tmp_path / "out" / name).read_bytes() == uploaded[name] for name in ("config.json", "README.md"))
    assert json.loads(uploaded["config.json"])["model_type"] == "timm_wrapper"
    assert main(["export", str(run), *out, "--push-to-hub=nobody"]) == 2
    assert "--push-to-hub nobody must be ORG/NAME" in capsys.readouterr().err


def test_a_card_that_lacks_a_result_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", BackboneOptions("vit_pico_patch4_32"))
    (record,) = (run / "results").glob("*.json")
    record.unlink()
    export(run, tmp_path / "out")
    assert f"results/{record.name} is not there, though its predictions are" in capsys.readouterr().err
    assert "None yet" in (tmp_path / "out" / "README.md").read_text()
