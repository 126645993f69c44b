"""Weights that a network starts from, against timm's own loading at the same and at other sizes."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small import build
from timm.models import save_for_hf

from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.pretrained import Weights, is_pretrained, network_of, start, timm_weights
from ssl_bench.pretraining.building import begin_with
from ssl_bench.pretraining.ema_teacher import EMATeacher

VIT: dict[str, Any] = {"img_size": 70, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN: dict[str, Any] = {"img_size": 64, "patch_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3)}


def folder_of(path: Path, name: str, **args: Any) -> str:
    """A folder as timm saves networks; its name here."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=5, **args)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.randn_like(tensor))
    save_for_hf(model, path, model_args=args, safe_serialization=True)
    return f"local-dir:{path}"


def started(options: BackboneOptions, size: int | None = None) -> tuple[Backbone, tuple[str, ...]]:
    backbone = Backbone(network_of(options, size))
    begun = start(backbone, timm_weights(options.name))
    return backbone.eval(), begun.adapted


def timm_features(name: str, images: torch.Tensor, **args: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = timm.create_model(name, pretrained=True, num_classes=0, **args).eval()(images)
    return found


@pytest.mark.parametrize(
    ("name", "args", "size", "lines"),
    [
        ("vit_small_patch14_dinov2", VIT, 70, []),
        ("vit_small_patch14_dinov2", VIT, 42, ["positions 5 x 5 -> 3 x 3"]),
        ("vit_small_patch14_reg4_dinov2", VIT, 28, ["positions 5 x 5 -> 2 x 2"]),
        ("test_efficientnet", {}, 32, []),
        ("test_resnet", {}, 32, []),
        ("test_convnext", {}, 64, []),
        ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}, 64, []),
    ],
)
def test_features_are_those_of_timm(
    name: str, args: dict[str, Any], size: int, lines: list[str], tmp_path: Path
) -> None:
    place = folder_of(tmp_path, name, **args)
    backbone, adapted = started(BackboneOptions(place), size)
    images = torch.rand(2, 3, size, size)
    of_timm = {"img_size": size} if args else {}
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), timm_features(place, images, **of_timm), rtol=1e-4, atol=1e-5)
    assert sorted(adapted) == sorted(lines)
    assert backbone.img_size == size and not backbone.options.pretrained  # a run's folder needs no hub afterwards


def test_patches_of_another_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    place = folder_of(tmp_path, "vit_small_patch14_dinov2", **VIT)
    backbone, adapted = started(BackboneOptions(place, img_size=40, patch_size=8))
    images = torch.rand(2, 3, 40, 40)
    expected = timm_features(place, images, img_size=40, patch_size=8)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), expected, rtol=1e-3, atol=1e-4)
    assert "patches of 14 -> 8 pixels" in adapted


def test_windows_of_another_size_keep_their_relative_positions(tmp_path: Path) -> None:
    small, large = (
        Backbone(BackboneOptions("swin_pico_patch2_32", img_size=64, timm_args={"window_size": window}))
        for window in (4, 8)
    )
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    heads = small.model.state_dict()[name].shape[1]
    ramp = torch.arange(-3.0, 4.0)[:, None].expand(7, 7).reshape(49, 1).expand(49, heads)  # rows apart, of window 4
    begun = start(large, Weights("a file", small.model.state_dict() | {name: ramp}))
    assert "relative positions 49 -> 225" in begun.adapted
    found = large.model.state_dict()[name].view(15, 15, heads)
    assert found[7].abs().max() < 1e-4, "the row of no distance stays in the middle"
    torch.testing.assert_close(found[0], -found[14], rtol=1e-4, atol=1e-4)
    assert (found[1:, 7, 0] > found[:-1, 7, 0]).all() and found.abs().max() < 3.5


def test_an_image_is_brought_to_whole_patches_and_a_stem_is_that_of_the_weights() -> None:
    assert network_of(BackboneOptions("vit_small_patch14_dinov2", pretrained=True), 32).img_size == 42
    assert network_of(BackboneOptions("vit_small_patch14_dinov2"), 32).img_size == 32  # which the network refuses
    assert network_of(BackboneOptions("resnet18", pretrained=True), 32).small_stem is False
    assert network_of(BackboneOptions("resnet18"), 32).small_stem is None
    tagged = network_of(BackboneOptions("vit_small_patch14_dinov2.lvd142m", pretrained=True), 224)
    assert tagged.name == "vit_small_patch14_dinov2"
    assert is_pretrained(BackboneOptions("hf-hub:org/net"))
    assert not is_pretrained(BackboneOptions("hf-hub:org/net", pretrained=False))


def test_channels_of_a_first_convolution_are_fitted() -> None:
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32"))
    gray = dict(backbone.model.state_dict())
    weight = gray["patch_embed.proj.weight"][:, :1].clone()
    begun = start(backbone, Weights("a file", gray | {"patch_embed.proj.weight": weight}))
    assert begun.adapted == ("channels 1 -> 3",)
    image = torch.rand(1, 1, 32, 32)
    found = backbone.model.patch_embed.proj(image.expand(-1, 3, -1, -1))
    bias = gray["patch_embed.proj.bias"]
    torch.testing.assert_close(found, torch.nn.functional.conv2d(image, weight, bias, stride=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.norm1.weight": None}, r"has no blocks\.0\.norm1\.weight of vit_pico_patch4_32"),
        ({"norm.weight": torch.ones(7)}, r"norm\.weight is \(7,\) in the weights and \(48,\) in vit_pico"),
        ({"pos_embed": torch.ones(1, 64, 48)}, r"pos_embed is \(1, 64, 48\) in the weights"),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(change: dict[str, Any], message: str) -> None:
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32"))
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    given = {name: tensor + 1 for name, tensor in before.items()} | change
    with pytest.raises(UserError, match=message):
        start(backbone, Weights("a file", {name: tensor for name, tensor in given.items() if tensor is not None}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


def test_what_there_are_no_weights_for_is_said() -> None:
    with pytest.raises(UserError, match=r"no weights for --backbone vit_tiny.*nothing: .*--backbone.weights"):
        timm_weights("vit_tiny_patch16_224.nothing")
    with pytest.raises(UserError, match=r"--backbone local-dir:/nowhere"):
        network_of(BackboneOptions("local-dir:/nowhere"))


NAMES = [name for name in registry.names("methods") if name not in ("dvae", "simclrv2-distill", "simclrv2-finetune")]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_begins_with_the_weights_in_all_its_networks(name: str) -> None:
    method = build(name, "vit_pico_patch4_32")
    weights = {key: torch.randn_like(tensor) for key, tensor in method.backbone.model.state_dict().items()}
    data: Any = type("Images", (), {"mean": (0.5,) * 3, "std": (0.5,) * 3})()
    begin_with(method, Weights("a file", weights), data)
    networks = [method.backbone]
    for part in method.children():
        if isinstance(part, EMATeacher):
            assert all(torch.equal(own, followed) for own, followed in part.pairs)
            networks += [module for module in part.modules() if isinstance(module, Backbone)]
    assert len(networks) == 1 + ("teacher" in method.branches)
    for network in networks:
        assert all(torch.equal(tensor, weights[key]) for key, tensor in network.model.state_dict().items())
    assert method.start is not None and method.start["source"] == "a file" and len(method.start["digest"]) == 64
