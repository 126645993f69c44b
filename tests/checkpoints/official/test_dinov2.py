"""DINOv2's checkpoints against features of the official networks, and their positions at other sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import FOLDER, assert_close, load, weights
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ssl_bench.checkpoints.import_checkpoint import import_checkpoint
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.checkpoints.official.dinov2 import interpolation
from ssl_bench.checkpoints.official.layout import Given, layout
from ssl_bench.checkpoints.official.networks import network
from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import resample_positions
from ssl_bench.models.saved_backbone import load_backbone

CHECKPOINTS = FOLDER / "checkpoints"


def imported(file: Path, out: Path, **given: Any) -> Backbone:
    import_checkpoint(Import(file, "dinov2", out, heads=3, **given))
    return load_backbone(out)[0].eval()


@pytest.mark.parametrize("name", ["reg0", "reg2", "swiglu_chunked"])
def test_features_of_released_layouts(name: str, tmp_path: Path) -> None:
    record, tensors = load("checkpoint_features")
    backbone = imported(CHECKPOINTS / f"dinov2_backbone_{name}.pth", tmp_path / "run")
    tokens = backbone.tokens(tensors[f"in.dinov2_backbone_{name}"])
    found = {"cls": tokens[:, 0], "registers": tokens[:, 1 : backbone.prefix], "patch": tokens[:, backbone.prefix :]}
    for part, values in found.items():
        case = f"out.dinov2_backbone_{name}.{part}"
        if case in tensors:
            assert_close(values, tensors[case], record["noise"][case]["max_abs"])
    assert backbone.prefix == 1 + {"reg0": 0, "reg2": 2, "swiglu_chunked": 4}[name]


def test_the_teacher_of_a_training_checkpoint(tmp_path: Path) -> None:
    """The same weights as its own backbone alone, flat; with a student and losses beside it as well."""
    whole = torch.load(CHECKPOINTS / "dinov2_teacher_full.pth", weights_only=True)
    flat = weights(whole["teacher"], "backbone.")
    torch.save(flat, tmp_path / "flat.pth")
    student = {f"student.{name}": value + 1 for name, value in whole["teacher"].items()}
    teacher = {f"teacher.{name}": value for name, value in whole["teacher"].items()}
    torch.save({"model": student | teacher | {"dino_loss.center": torch.zeros(1, 20)}}, tmp_path / "model.pth")
    expected = imported(tmp_path / "flat.pth", tmp_path / "flat").model.state_dict()
    for file in (CHECKPOINTS / "dinov2_teacher_full.pth", tmp_path / "model.pth"):
        out = tmp_path / file.stem
        found = imported(file, out / "run").model.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        account = json.loads((out / "run" / "import.json").read_text())
        assert account["unused"]["teacher.ibot_head.mlp.0.weight"] == "of pretraining alone"
    assert account["unused"]["student.backbone.cls_token"].startswith("the student")


def official_positions(positions: Tensor, size: int, offset: float, antialias: bool) -> Tensor:
    """`interpolate_pos_encoding` of facebookresearch/dinov2 on the patches' part of its positions."""
    side = int(positions.shape[1] ** 0.5)
    how: dict[str, Any] = {"scale_factor": ((size + offset) / side,) * 2} if offset else {"size": (size, size)}
    square = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, mode="bicubic", antialias=antialias, **how)
    assert square.shape[-2:] == (size, size)
    return square.permute(0, 2, 3, 1).reshape(1, size * size, -1)


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_positions_are_resampled_as_asked(offset: float, antialias: bool, size: int, tmp_path: Path) -> None:
    file = CHECKPOINTS / "dinov2_backbone_reg2.pth"
    given = {"interpolate_offset": offset, "interpolate_antialias": antialias}
    backbone = imported(file, tmp_path / "run", **given)
    described = json.loads((tmp_path / "run" / "backbone.json").read_text())["options"]
    assert {name: described[name] for name in given} == given
    positions = backbone.model.pos_embed
    expected = official_positions(positions, size, offset, antialias)
    assert torch.equal(backbone._positions((size, size)), expected)
    if offset == 0 and antialias:  # timm's own
        theirs = resample_abs_pos_embed(positions, [size, size], num_prefix_tokens=0)
        assert_close(expected, theirs)


@pytest.mark.parametrize("size", [4, 11, 12])
def test_no_offset_and_no_smoothing_are_maes(size: int) -> None:
    _, tensors = load("mae_posembed")
    found = resample_positions(tensors["interp.input"][:, 1:], (size, size), 0.0, False)
    assert_close(found, tensors[f"interp.8to{size}"][:, 1:])


def test_each_format_resamples_as_its_code(tmp_path: Path) -> None:
    cases = {"mae": ("mae_pretrain.pth", {"heads": 4, "encoder_only": True}, (0.0, False))}
    cases |= {"dino": ("dino_full.pth", {"heads": 3, "encoder_only": True}, (None, None))}
    cases |= {"dinov2": ("dinov2_backbone_reg0.pth", {"heads": 3}, (0.1, False))}
    for format, (file, given, expected) in cases.items():
        import_checkpoint(Import(CHECKPOINTS / file, format, tmp_path / format, **given))  # type: ignore[arg-type]
        options = load_backbone(tmp_path / format)[0].options
        assert (options.interpolate_offset, options.interpolate_antialias) == expected
    state = weights(torch.load(CHECKPOINTS / "dino_full.pth", weights_only=True)["teacher"], "backbone.")
    torch.save(state, tmp_path / "timm.pth")
    import_checkpoint(Import(tmp_path / "timm.pth", "timm", tmp_path / "timm", heads=3))
    options = load_backbone(tmp_path / "timm")[0].options
    assert (options.interpolate_offset, options.interpolate_antialias) == (0.0, True)


def test_the_released_networks_with_registers_have_no_offset() -> None:
    """`hub/backbones.py`: four registers, patches of 14 pixels; all else is what the configuration says."""
    released = Shapes({"reg_token": (1, 4, 384), "patch_embed.proj.weight": (384, 3, 14, 14)})
    assert interpolation(released) == {"interpolate_offset": 0.0, "interpolate_antialias": True}
    for other in ({"patch_embed.proj.weight": (384, 3, 14, 14)}, released | {"reg_token": (1, 2, 384)}):
        assert interpolation(Shapes(other)) == {"interpolate_offset": 0.1, "interpolate_antialias": False}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch14_dinov2", {"name": "vit_small_patch16_224", "patch_size": 14}),
        ("vit_giant_patch14_dinov2", {"name": "vit_giant_patch14_dinov2"}),
        ("vit_giant_patch14_reg4_dinov2", {"name": "vit_giant_patch14_dinov2"}),
    ],
)
def test_released_networks_are_known(name: str, expected: dict[str, Any]) -> None:
    import timm

    from ssl_bench.config.options import BackboneOptions

    with torch.device("meta"):
        shapes = {key: tuple(v.shape) for key, v in timm.create_model(name, num_classes=0).state_dict().items()}
        found = network(shapes, {}, Given(), layout("dinov2").heads)
        built = Backbone(BackboneOptions(**found)).model.state_dict()
    assert expected.items() <= found.items() and found["img_size"] == 518
    assert {key: tuple(value.shape) for key, value in built.items()} == shapes


def test_the_command_says_how_positions_are_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CHECKPOINTS / "dinov2_backbone_reg0.pth")
    argv = ["import", file, "--format", "dinov2", "--heads", "3", "-o", str(tmp_path / "run")]
    assert main([*argv, "--interpolate-offset", "0", "--interpolate-antialias", "true"]) == 0
    assert "positions at other sizes: offset 0, smoothed" in capsys.readouterr().out
    assert main([*argv, "--interpolate-offset", "2"]) == 2
    with pytest.raises(UserError, match="holds no positions that could be resampled"):
        swin = Import(CHECKPOINTS / "simmim_swin.pth", "simmim", tmp_path / "s", interpolate_offset=0.0)
        import_checkpoint(swin)
