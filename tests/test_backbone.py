"""Tokens and features against timm, lightly, slow references and the official MAE's and DINO's."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ssl_bench.torchvision_guard  # noqa: F401  before timm, which imports torchvision

# isort: split
import pytest
import timm
import torch
from golden_files import assert_close, load, weights
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import Tensor, nn

from ssl_bench.architectures import TINY
from ssl_bench.backbone import Backbone, patchify, sincos_positions
from ssl_bench.checkpoint import load_backbone, save_backbone
from ssl_bench.errors import UserError
from ssl_bench.options import BackboneOptions

PICO = "vit_pico_patch4_32"
# Class token; neither class nor register token; a register; registers and a class token, positions of patches alone.
VITS: dict[str, dict[str, Any]] = {
    PICO: {},
    "vit_medium_patch16_gap_240": {"img_size": 32, "patch_size": 8, "width": 48, "depth": 2, "num_heads": 3},
    "test_vit2": {"img_size": 32, "patch_size": 8, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "patch_size": 7, "width": 48, "depth": 2, "num_heads": 3},
}


def network(name: str = PICO, seed: int = 0, **given: Any) -> Backbone:
    """A backbone with nothing at 0 or 1, in evaluation mode."""
    torch.manual_seed(seed)
    backbone = Backbone(BackboneOptions(name, **VITS.get(name, {}) | given))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return backbone.eval()


def images_for(backbone: Backbone, count: int = 3) -> Tensor:
    return torch.randn(count, 3, backbone.img_size, backbone.img_size)


# Tokens


@pytest.mark.parametrize("name", VITS)
def test_tokens_are_timms(name: str) -> None:
    backbone = network(name)
    images = images_for(backbone)
    assert_close(backbone.tokens(images), backbone.model.forward_features(images))


@pytest.mark.parametrize("name", VITS)
def test_kept_tokens_are_those_of_a_network_that_saw_no_others(name: str) -> None:
    """Slow reference: embed everything, add positions, gather, prefix, blocks one image at a time."""
    backbone = network(name)
    vit, images = backbone.model, images_for(backbone)
    keep = torch.rand(3, backbone.grid**2).argsort(1)[:, :5]
    embedded = vit._pos_embed(vit.patch_embed(images))
    prefix = vit.num_prefix_tokens
    rows = []
    for i in range(3):
        chosen = [embedded[i, prefix + n] for n in keep[i].tolist()]
        tokens = torch.stack([*embedded[i, :prefix], *chosen])[None]
        rows.append(vit.norm(vit.blocks(vit.norm_pre(tokens)))[0])
    assert_close(backbone.tokens(images, keep=keep), torch.stack(rows))


@pytest.mark.parametrize("name", VITS)
def test_masked_tokens_are_those_of_a_network_with_other_patches(name: str) -> None:
    """Slow reference: the embedding of masked patches is replaced before timm adds positions."""
    backbone = network(name)
    vit, images = backbone.model, images_for(backbone)
    mask, mask_token = torch.rand(3, backbone.grid**2) < 0.4, torch.randn(1, 1, backbone.dim)
    patches = vit.patch_embed(images).clone()
    for i, n in mask.nonzero().tolist():
        patches.view(3, -1, backbone.dim)[i, n] = mask_token[0, 0]  # timm's are (B, N, D) or (B, rows, columns, D)
    expected = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))
    for token in (mask_token, mask_token.flatten()):
        assert_close(backbone.tokens(images, mask=mask, mask_token=token), expected)


@pytest.mark.parametrize("name", [PICO, "vit_small_patch14_reg4_dinov2"])
def test_kept_and_masked_tokens_are_lightlys(name: str) -> None:
    """lightly counts the prefix tokens among its indices."""
    backbone = network(name)
    images, prefix = images_for(backbone), backbone.model.num_prefix_tokens
    mask_token = nn.Parameter(torch.randn(1, 1, backbone.dim))
    theirs = MaskedVisionTransformerTIMM(backbone.model, mask_token, "skip", pos_embed_initialization="skip")
    keep = torch.rand(3, backbone.grid**2).argsort(1)[:, :6]
    with_prefix = torch.cat([torch.arange(prefix).expand(3, -1), keep + prefix], dim=1)
    assert_close(backbone.tokens(images, keep=keep), theirs.encode(images, idx_keep=with_prefix))
    mask = torch.rand(3, backbone.grid**2) < 0.5
    expected = theirs.encode(images, mask=torch.cat([torch.zeros(3, prefix, dtype=torch.bool), mask], dim=1))
    assert_close(backbone.tokens(images, mask=mask, mask_token=mask_token), expected)


def test_masked_patches_still_know_where_they_are() -> None:
    backbone = network()
    seen: list[Tensor] = []
    backbone.model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    token = torch.randn(48)
    backbone.tokens(images_for(backbone), mask=torch.ones(3, 64, dtype=torch.bool), mask_token=token)
    assert_close(seen[0][:, 1:], (token + backbone.model.pos_embed[:, 1:]).expand(3, -1, -1))


@pytest.mark.parametrize("way", ["keep", "mask"])
def test_hidden_pixels_have_no_influence(way: str) -> None:
    backbone = network()
    images = images_for(backbone).requires_grad_()
    order = torch.rand(3, 64).argsort(1)
    if way == "keep":
        tokens = backbone.tokens(images, keep=order[:, :16])
    else:
        mask = torch.ones(3, 64, dtype=torch.bool).scatter(1, order[:, :16], False)
        tokens = backbone.tokens(images, mask=mask, mask_token=torch.randn(48))
    tokens.square().sum().backward()
    assert images.grad is not None
    felt = patchify(images.grad, 4, "channel first").abs().sum(-1)  # (B, N)
    assert (felt.gather(1, order[:, :16]) > 0).all()
    assert (felt.gather(1, order[:, 16:]) == 0).all()


def test_order_of_kept_patches_does_not_matter() -> None:
    """The same tokens come out, each where its patch was put: positions belong to patches, not to places."""
    backbone = network()
    images, keep = images_for(backbone), torch.rand(3, 64).argsort(1)[:, :16]
    shuffle = torch.randperm(16)
    tokens, shuffled = backbone.tokens(images, keep=keep), backbone.tokens(images, keep=keep[:, shuffle])
    assert_close(shuffled[:, 1:], tokens[:, 1:][:, shuffle])
    assert_close(shuffled[:, 0], tokens[:, 0])


def test_keeping_everything_is_the_whole_image() -> None:
    backbone = network()
    images = images_for(backbone)
    everything = torch.arange(64).expand(3, -1)
    assert_close(backbone.tokens(images, keep=everything), backbone.tokens(images))
    nothing = torch.zeros(3, 64, dtype=torch.bool)
    assert_close(backbone.tokens(images, mask=nothing, mask_token=torch.randn(48)), backbone.tokens(images))


def test_patches_in_both_orders() -> None:
    images = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    for order in ("channel first", "channel last"):
        cells = patchify(images, 2, order)  # type: ignore[arg-type]
        assert cells.shape == (2, 6, 12)
        cell = images[1, :, 2:4, 4:6]  # row 1, column 2
        assert torch.equal(cells[1, 5], cell.flatten() if order == "channel first" else cell.permute(1, 2, 0).flatten())


# Positions


@pytest.fixture
def dino(monkeypatch: pytest.MonkeyPatch) -> tuple[Backbone, dict[str, Any], dict[str, Tensor]]:
    """Ours with the official weights."""
    record, tensors = load("dino_features")
    c = record["config"]
    args = {"img_size": c["img"], "patch_size": c["patch"], "embed_dim": c["dim"], "depth": c["depth"]}
    args |= {"num_heads": c["heads"], "mlp_ratio": c["mlp"]}
    monkeypatch.setitem(TINY, "golden", ("vit_tiny_patch16_224", args, ""))
    backbone = Backbone(BackboneOptions("golden"))
    backbone.model.load_state_dict(weights(load("dino_weights")[1], "teacher/backbone."))
    return backbone.eval(), record, tensors


@pytest.mark.parametrize("size", ["32", "16", "48", "36", "rect"])
def test_positions_and_features_of_dino_at_other_sizes(
    dino: tuple[Backbone, dict[str, Any], dict[str, Tensor]], size: str
) -> None:
    backbone, record, tensors = dino
    images = tensors[f"images.{size}"]
    noise = {name: record["noise"].get(f"{name}.{size}", {"max_abs": 0.0})["max_abs"] for name in ("pos", "cls")}
    grid = images.shape[2] // 4, images.shape[3] // 4
    positions = backbone._positions(grid)
    assert positions is not None
    assert_close(positions, tensors[f"pos.{size}"], noise["pos"])
    assert_close(backbone(images), tensors[f"cls.{size}"], noise["cls"])


def test_features_of_dinos_linear_evaluation(dino: tuple[Backbone, dict[str, Any], dict[str, Tensor]]) -> None:
    """Its class and mean features alternate; ours follow one another."""
    backbone, _, tensors = dino
    found = backbone.features(tensors["images.32"], ("cls", "cls+avg"))
    assert_close(found["cls"], tensors["linear.n1.avg0"])
    cls, avg = tensors["linear.n1.avg1"].reshape(2, 36, 2).unbind(2)
    assert_close(found["cls+avg"], torch.cat([cls, avg], dim=1))


@pytest.mark.parametrize("grid", [8, 12])
def test_sincos_positions_of_mae(grid: int) -> None:
    expected = load("mae_posembed")[1][f"mae.sincos.{grid}"]
    assert (sincos_positions(48, grid, "mae") - expected[1:]).abs().max() < 1e-6
    assert (expected[0] == 0).all()


@pytest.mark.parametrize("grid", [6, 8, 12])
def test_sincos_positions_of_moco(grid: int) -> None:
    expected = load("moco_sincos")[1][f"moco.sincos.{grid}"]
    assert_close(sincos_positions(32, grid, "moco"), expected[0, 1:])
    assert (expected[0, 0] == 0).all()


def test_sincos_layouts_are_each_others_transpose() -> None:
    mae, moco = (sincos_positions(16, 5, layout).reshape(5, 5, 16) for layout in ("mae", "moco"))  # type: ignore[arg-type]
    assert torch.equal(mae, moco.transpose(0, 1))
    assert_close(mae[0, 1, 0], math.sin(1.0))
    assert mae[0, 1, 8] == 0
    assert moco[0, 1, 0] == 0
    with pytest.raises(UserError, match="divisible by 4, not 30"):
        sincos_positions(30, 5, "mae")


@pytest.mark.parametrize(("name", "prefix"), [(PICO, 1), ("test_vit2", 1), ("vit_small_patch14_reg4_dinov2", 0)])
def test_fixed_positions(name: str, prefix: int) -> None:
    backbone = network(name)
    backbone.fix_positions("mae")
    positions = backbone.model.pos_embed
    assert not positions.requires_grad
    assert (positions[0, :prefix] == 0).all()
    assert torch.equal(positions[0, prefix:], sincos_positions(backbone.dim, backbone.grid, "mae"))


# Features


def test_features_of_the_official_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fine-tuning averages tokens before any norm, and norms the average."""
    record, tensors = load("mae_features")
    c = record["config"]
    args = {"img_size": c["img"], "patch_size": c["patch"], "embed_dim": c["dim"], "depth": c["depth"]}
    args |= {"num_heads": c["heads"], "mlp_ratio": c["mlp"]}
    monkeypatch.setitem(TINY, "golden", ("vit_tiny_patch16_224", args, ""))
    backbone = Backbone(BackboneOptions("golden")).eval()
    official = weights(load("mae_pretrain")[1], "w.")
    own = {name: value for name, value in official.items() if not name.startswith(("decoder", "mask_token"))}
    backbone.model.load_state_dict(own)
    found = backbone.features(tensors["images"], ("cls", "avg_raw"))
    assert_close(found["cls"], tensors["out.cls"], record["noise"]["cls"]["max_abs"])
    fc_norm = tensors["w.fc_norm.weight"], tensors["w.fc_norm.bias"]
    avg = nn.functional.layer_norm(found["avg_raw"], (c["dim"],), *fc_norm, eps=1e-6)
    assert_close(avg, tensors["out.avg"], record["noise"]["avg"]["max_abs"])


@pytest.mark.parametrize("name", VITS)
def test_kinds_of_features(name: str) -> None:
    backbone = network(name)
    images, prefix = images_for(backbone), backbone.model.num_prefix_tokens
    raw = backbone.model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")[0]
    normed = backbone.model.forward_features(images)
    found = backbone.features(images, backbone.kinds)
    assert tuple(found) == backbone.kinds
    assert_close(found["avg"], normed[:, prefix:].mean(1))
    assert_close(found["avg_raw"], raw.mean(1))
    if backbone.model.has_class_token:
        assert backbone.kinds == ("cls", "avg", "cls+avg", "cls_raw", "avg_raw")
        assert_close(found["cls"], normed[:, 0])
        assert_close(found["cls+avg"], torch.cat([normed[:, 0], normed[:, prefix:].mean(1)], dim=1))
        assert_close(backbone.model.norm(found["cls_raw"]), normed[:, 0])
    else:
        assert backbone.kinds == ("avg", "avg_raw")
    assert_close(backbone(images), found[backbone.headline_kind])
    assert backbone(images).shape == (3, backbone.dim)


def test_tokens_are_normed_even_where_timm_norms_the_pooled_feature() -> None:
    assert isinstance(timm.create_model("test_vit2", num_classes=0, img_size=32).norm, nn.Identity)
    torch.manual_seed(0)
    tokens = Backbone(BackboneOptions("test_vit2", img_size=32)).tokens(torch.randn(2, 3, 32, 32))
    assert tokens.mean(-1).abs().max() < 1e-5


# ResNets


@pytest.mark.parametrize(("img_size", "small"), [(32, True), (64, True), (96, False), (224, False)])
def test_stem_of_a_resnet_follows_the_size_of_its_images(img_size: int, small: bool) -> None:
    backbone = network("resnet_nano", img_size=img_size)
    stem = backbone.model.conv1
    assert backbone.small_stem == small
    assert (stem.kernel_size, stem.stride) == (((3, 3), (1, 1)) if small else ((7, 7), (2, 2)))
    assert isinstance(backbone.model.maxpool, nn.Identity) == small


def test_stem_of_a_resnet_can_be_chosen() -> None:
    assert not Backbone(BackboneOptions("resnet_nano", img_size=32, small_stem=False)).small_stem
    assert Backbone(BackboneOptions("resnet_nano", small_stem=True)).small_stem
    deep = Backbone(BackboneOptions("resnet10t", img_size=32))  # three convolutions in its own stem
    assert deep.model.conv1.kernel_size == (3, 3)
    assert deep(torch.randn(2, 3, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("img_size", [32, 96])
def test_features_of_a_resnet_are_timms(img_size: int) -> None:
    backbone = network("resnet_nano", img_size=img_size)
    images = images_for(backbone)
    maps = backbone.model.forward_features(images)
    assert maps.shape == (3, 256, img_size // (8 if img_size == 32 else 32), img_size // (8 if img_size == 32 else 32))
    assert_close(backbone(images), maps.mean((2, 3)))
    assert (backbone.kinds, backbone.headline_kind, backbone.dim, backbone.is_vit) == (("gap",), "gap", 256, False)
    with pytest.raises(AssertionError, match="ResNet has no tokens"):
        backbone.tokens(images)


# Options


def test_overrides_of_a_vit() -> None:
    options = BackboneOptions("vit_tiny_patch16_224", 48, 8, width=60, depth=3, num_heads=5, drop_path=0.2)
    backbone = Backbone(options)
    assert (backbone.img_size, backbone.patch_size, backbone.grid, backbone.dim) == (48, 8, 6, 60)
    assert [block.attn.num_heads for block in backbone.model.blocks] == [5, 5, 5]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    plain = Backbone(BackboneOptions("vit_tiny_patch16_224"))
    assert (plain.img_size, plain.patch_size, plain.dim, len(plain.model.blocks)) == (224, 16, 192, 12)


def test_overrides_of_a_resnet() -> None:
    wide = Backbone(BackboneOptions("resnet_nano", width=2, img_size=32, drop_path=0.3))
    assert wide.dim == 512
    assert wide.model.layer1[0].conv1.out_channels == 64
    assert wide.model.layer4[0].drop_path.drop_prob == pytest.approx(0.3)
    assert Backbone(BackboneOptions("resnet_nano")).img_size == 224


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks_are_what_they_say(name: str) -> None:
    backbone = Backbone(BackboneOptions(name, img_size=32))
    parameters = sum(p.numel() for p in backbone.parameters()) / 1e6
    if "M parameters" in TINY[name][2]:
        assert f"{parameters:.1f} M parameters" in TINY[name][2]
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.dim)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_tiny_patch16_22"}, "no backbone 'vit_tiny_patch16_22'; did you mean 'vit_tiny_patch16_224'"),
        ({"name": "vit_picoo_patch4_32"}, "did you mean 'vit_pico_patch4_32'"),
        ({"name": "resnet_nanno"}, "did you mean 'resnet_nano'"),
        ({"name": "zzz"}, r"no backbone 'zzz' \(ssl-bench list backbones\)"),
        ({"name": ""}, "no backbone ''"),
        ({"name": "hf-hub:someone/something"}, "no backbone 'hf-hub:someone/something'"),
        ({"name": "vit_tiny_patch16_224.augreg"}, "'augreg' names weights.*use vit_tiny_patch16_224$"),
        ({"name": "resnet18", "patch_size": 4}, "backbone.patch_size is for ViTs: resnet18 is a ResNet"),
        ({"name": "resnet18", "depth": 4}, "backbone.depth is for ViTs"),
        ({"name": "resnet18", "num_heads": 4}, "backbone.num_heads is for ViTs"),
        ({"name": PICO, "small_stem": True}, "backbone.small_stem is for ResNets: vit_pico_patch4_32 is not one"),
        ({"name": PICO, "img_size": 30}, "img_size 30 is no multiple of the patch size 4: try 32"),
        ({"name": "vit_tiny_patch16_224", "img_size": 40}, "img_size 40 is no multiple of the patch size 16: try 48"),
        ({"name": PICO, "img_size": 32, "patch_size": 5}, "img_size 32 is no multiple of the patch size 5: try 35"),
        ({"name": PICO, "width": 50, "num_heads": 3}, "backbone.width 50 is no multiple of --backbone.num_heads 3"),
        ({"name": "vit_tiny_patch16_224", "img_size": 32, "width": 50}, "vit_tiny_patch16_224 with .*divisible"),
        ({"name": PICO, "depth": 0}, "backbone.depth 0 must be at least 1"),
        ({"name": PICO, "img_size": -32}, "backbone.img_size -32 must be at least 1"),
        ({"name": "resnet18", "width": 0}, "backbone.width 0 must be at least 1"),
        ({"name": "swin_tiny_patch4_window7_224"}, "only timm's ViTs and ResNets fit here"),
        ({"name": "swin_tiny_patch4_window7_224", "img_size": 224}, "only timm's ViTs and ResNets fit here"),
        ({"name": "convnext_atto", "img_size": 32}, "convnext_atto: only timm's ViTs and ResNets fit here"),
        ({"name": "resnetv2_50"}, "resnetv2_50 is a ResNetV2: only timm's ViTs and ResNets fit here"),
        ({"name": "vit_tiny_r_s16_p8_224", "img_size": 224}, "vit_tiny_r_s16_p8_224 is no plain ViT"),
        ({"name": "deit_tiny_distilled_patch16_224", "img_size": 32}, "distilled_patch16_224 is no plain ViT"),
    ],
    ids=lambda v: " ".join(str(x) for x in v.values()) if isinstance(v, dict) else "",
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Backbone(BackboneOptions(**options))
    assert "\n" not in str(caught.value)


# Kept


SAVED = {
    PICO: {"drop_path": 0.1},
    "vit_tiny_patch16_224": {"img_size": 24, "patch_size": 6, "width": 24, "depth": 1, "num_heads": 2},
    "resnet_nano": {"img_size": 32},
}


@pytest.mark.parametrize("name", SAVED)
def test_description_builds_the_network_again(name: str) -> None:
    backbone = network(name, **SAVED[name])
    spec = json.loads(json.dumps(backbone.spec))
    again = Backbone(BackboneOptions(**spec["options"])).eval()
    again.load_state_dict(backbone.state_dict())
    images = images_for(backbone)
    assert torch.equal(again(images), backbone(images))
    assert again.spec == backbone.spec


def save(folder: Path, backbone: Backbone) -> None:
    method: Any = SimpleNamespace(evaluated=backbone)
    data: Any = SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_backbone(folder, method, data)


@pytest.mark.parametrize("name", SAVED)
def test_saved_backbone_gives_the_same_features(name: str, tmp_path: Path) -> None:
    backbone = network(name, **SAVED[name])
    save(tmp_path, backbone)
    loaded, mean, std = load_backbone(tmp_path)
    images = images_for(backbone)
    assert torch.equal(loaded.eval()(images), backbone(images))
    assert (mean, std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.json", "backbone.safetensors"]


@pytest.mark.parametrize("name", [name for name in SAVED if name.startswith("vit")])
def test_timm_loads_a_saved_vit(name: str, tmp_path: Path) -> None:
    backbone = network(name, **SAVED[name])
    backbone.fix_positions("mae")
    save(tmp_path, backbone)
    spec = json.loads((tmp_path / "backbone.json").read_text())
    weights_file = str(tmp_path / "backbone.safetensors")
    model = timm.create_model(spec["architecture"], num_classes=0, checkpoint_path=weights_file, **spec["args"])
    images = images_for(backbone)
    assert_close(model.eval()(images), backbone(images))


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no backbone.json: finish its run"):
        load_backbone(tmp_path)
    save(tmp_path, network())
    (tmp_path / "backbone.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="the backbone is damaged"):
        load_backbone(tmp_path)
    save(tmp_path, network())
    spec = json.loads((tmp_path / "backbone.json").read_text())
    spec["options"]["depth"] = 3
    (tmp_path / "backbone.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="does not fit the network in backbone.json"):
        load_backbone(tmp_path)
