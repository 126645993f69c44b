"""Tokens and features against timm, lightly, slow references and the official MAE's and DINO's."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from golden_files import assert_close, load, weights
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.architectures import TINY
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import patchify, sincos_positions
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.pretraining.checkpoint import save_backbone

PICO = "vit_pico_patch4_32"
# Class token; neither class nor register token; a register; registers and a class token, positions of patches alone.
VITS: dict[str, dict[str, Any]] = {
    PICO: {},
    "vit_medium_patch16_gap_240": {"img_size": 32, "patch_size": 8, "width": 48, "depth": 2, "num_heads": 3},
    "test_vit2": {"img_size": 32, "patch_size": 8, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "patch_size": 7, "width": 48, "depth": 2, "num_heads": 3},
}
BEIT, SWIN = "beit_pico_patch4_32", "swin_pico_patch2_32"
PER_BLOCK = {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True}
ABSOLUTE = {"use_shared_rel_pos_bias": False, "use_abs_pos_emb": True, "init_values": None}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "shared table": (BEIT, {}),
    "a table per block": (BEIT, {"timm_args": PER_BLOCK, "depth": 3}),
    "all positions": (BEIT, {"img_size": 24, "timm_args": {"use_rel_pos_bias": True, "use_abs_pos_emb": True}}),
    "absolute positions": (BEIT, {"timm_args": ABSOLUTE}),
    "SwiGLU, no biases": (BEIT, {"timm_args": {"swiglu_mlp": True, "scale_mlp": True, "qkv_bias": False}}),
    "Swin": (SWIN, {}),
    "Swin, three stages": (SWIN, {"width": 12, "timm_args": {"depths": [1, 2, 1], "num_heads": [1, 2, 4]}}),
    "Swin, windows of the whole grid": (SWIN, {"img_size": 24, "timm_args": {"window_size": 99, "mlp_ratio": 1.5}}),
    "Swin, windows that need padding": (SWIN, {"img_size": 40, "patch_size": 4, "timm_args": {"window_size": 3}}),
}


def network(name: str = PICO, seed: int = 0, **given: Any) -> Backbone:
    """A backbone with nothing at 0 or 1, in evaluation mode."""
    torch.manual_seed(seed)
    backbone = Backbone(BackboneOptions(name, **VITS.get(name, {}) | given))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return backbone.eval()


def other(case: str) -> Backbone:
    """A BEiT or a Swin."""
    name, given = OTHERS[case]
    return network(name, **given)


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


@pytest.mark.parametrize("case", OTHERS)
def test_tokens_of_beits_and_swins_are_timms(case: str) -> None:
    backbone = other(case)
    images = images_for(backbone)
    expected = backbone.model.forward_features(images)
    tokens = backbone.tokens(images)
    assert_close(tokens, expected if backbone.is_vit else expected.flatten(1, 2))
    side = backbone.img_size // backbone.stride
    assert tokens.shape == (3, backbone.prefix + side**2, backbone.dim)


@pytest.mark.parametrize("case", OTHERS)
def test_masked_tokens_of_beits_and_swins_are_those_of_a_network_with_other_patches(case: str) -> None:
    """Slow reference: timm's forward, in which patches are replaced one by one as they leave `patch_embed`."""
    backbone = other(case)
    images, mask = images_for(backbone), torch.rand(3, backbone.grid**2) < 0.4
    mask_token = torch.randn(1, 1, backbone.embed_dim)

    def replaced(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        for i, n in mask.nonzero().tolist():
            place = (i, n) if backbone.is_vit else (i, *divmod(n, backbone.grid))
            output[place] = mask_token[0, 0]
        return output

    tokens = backbone.tokens(images, mask=mask, mask_token=mask_token)
    backbone.model.patch_embed.register_forward_hook(replaced)
    expected = backbone.model.forward_features(images)
    assert_close(tokens, expected if backbone.is_vit else expected.flatten(1, 2))


@pytest.mark.parametrize("case", ["shared table", "absolute positions", "Swin"])
def test_masked_pixels_of_beits_and_swins_have_no_influence(case: str) -> None:
    backbone = other(case)
    images, mask = images_for(backbone).requires_grad_(), torch.rand(3, backbone.grid**2) < 0.5
    tokens = backbone.tokens(images, mask=mask, mask_token=torch.randn(backbone.embed_dim))
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert images.grad is not None
    felt = patchify(images.grad, backbone.patch_size, "channel first").abs().sum(-1)
    assert (felt[mask] == 0).all() and (felt[~mask] > 0).all()


def test_kept_tokens_of_a_beit_with_absolute_positions() -> None:
    """Slow reference: embed everything, add positions, gather, blocks one image at a time."""
    backbone = other("absolute positions")
    beit, images, keep = backbone.model, images_for(backbone), torch.rand(3, 64).argsort(1)[:, :5]
    patches = beit.patch_embed(images)
    rows = []
    for i in range(3):
        chosen = [patches[i, n] + beit.pos_embed[0, 1 + n] for n in keep[i].tolist()]
        tokens = torch.stack([beit.cls_token[0, 0] + beit.pos_embed[0, 0], *chosen])[None]
        for block in beit.blocks:
            tokens = block(tokens)
        rows.append(beit.norm(tokens)[0])
    assert_close(backbone.tokens(images, keep=keep), torch.stack(rows))


@pytest.mark.parametrize("case", ["shared table", "a table per block", "Swin"])
def test_patches_with_relative_positions_cannot_be_left_out(case: str) -> None:
    backbone = other(case)
    with pytest.raises(AssertionError, match="need all patches"):
        backbone.tokens(images_for(backbone), keep=torch.zeros(3, 1, dtype=torch.long))


def test_a_shared_table_is_one_table_in_every_block() -> None:
    shared, own = other("shared table"), network(BEIT, timm_args=PER_BLOCK)
    table = shared.model.rel_pos_bias.relative_position_bias_table
    weights = {n: v for n, v in shared.model.state_dict().items() if "rel_pos_bias" not in n}
    weights |= {f"blocks.{i}.attn.relative_position_bias_table": table for i in range(2)}
    own.model.load_state_dict(weights)
    images = images_for(shared)
    assert_close(own.tokens(images), shared.tokens(images))
    assert [n for n, _ in shared.named_parameters() if "table" in n] == [
        "model.rel_pos_bias.relative_position_bias_table"
    ]
    with torch.no_grad():
        own.model.blocks[1].attn.relative_position_bias_table += torch.randn_like(table)
    assert not torch.allclose(own.tokens(images), shared.tokens(images))


def test_attention_of_a_beit_by_hand() -> None:
    """Biases of queries and values, none of keys; the table's row for each offset, its last three for the class."""
    backbone = network(BEIT, img_size=8, width=6, num_heads=2, depth=1)
    attention = backbone.model.blocks[0].attn
    table = backbone.model.rel_pos_bias.relative_position_bias_table  # (12, heads)
    with torch.no_grad():
        table.normal_()
    x = torch.randn(1, 5, 6)
    q, k, v = (x[0] @ attention.qkv.weight.T).chunk(3, dim=1)
    q, v = q + attention.q_bias, v + attention.v_bias
    out = torch.zeros(5, 6)
    for head in range(2):
        own = slice(3 * head, 3 * head + 3)
        for i in range(5):
            scores = []
            for j in range(5):
                if i == 0 or j == 0:
                    row = 11 if i == j else 9 if i == 0 else 10
                else:
                    dy, dx = (i - 1) // 2 - (j - 1) // 2, (i - 1) % 2 - (j - 1) % 2
                    row = (dy + 1) * 3 + dx + 1
                scores.append(q[i, own] @ k[j, own] / 3**0.5 + table[row, head])
            out[i, own] = torch.stack(scores).softmax(0) @ v[:, own]
    assert_close(attention(x, shared_rel_pos_bias=backbone.model.rel_pos_bias()), attention.proj(out)[None])


def test_absolute_positions_of_a_swin_come_after_masks() -> None:
    backbone = network(SWIN, absolute_positions=True)
    plain = network(SWIN)
    positions = backbone.model.absolute_pos_embed
    assert positions.shape == (1, 256, 24)
    plain.model.load_state_dict({k: v for k, v in backbone.model.state_dict().items() if k != "absolute_pos_embed"})
    images, mask, token = images_for(backbone), torch.rand(3, 256) < 0.5, torch.randn(24)
    tokens = backbone.tokens(images, mask=mask, mask_token=token)

    def replaced(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        masked = torch.where(mask.view(3, 16, 16, 1), token, output)
        return masked + positions.view(1, 16, 16, 24)

    plain.model.patch_embed.register_forward_hook(replaced)
    assert_close(tokens, plain.model.forward_features(images).flatten(1, 2))
    assert 0.01 < Backbone(BackboneOptions(SWIN, absolute_positions=True)).model.absolute_pos_embed.std() < 0.03


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
    found = backbone.features(tensors["images.32"], ("cls", "cls+avg", "cls_4"))
    assert_close(found["cls"], tensors["linear.n1.avg0"])
    assert_close(found["cls_4"], tensors["linear.n2.avg0"])  # two blocks are all there are
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


def last_class_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    """Slow reference: what leaves each of the last four blocks in timm's own forward, normed, class tokens in a row."""
    left: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *given: left.append(given[-1])) for block in backbone.model.blocks]
    backbone.model.forward_features(images)
    for hook in hooks:
        hook.remove()
    assert len(left) == len(backbone.model.blocks)
    return torch.cat([backbone.model.norm(tokens)[:, 0] for tokens in left[-4:]], dim=1)


def test_class_tokens_of_the_last_four_blocks() -> None:
    backbone = network(depth=6)
    images = images_for(backbone)
    found = backbone.features(images, ("cls_4", "cls"))
    assert found["cls_4"].shape == (3, 4 * backbone.dim)
    assert_close(found["cls_4"], last_class_tokens(backbone, images))
    assert_close(found["cls_4"][:, -backbone.dim :], found["cls"])
    _, states = backbone.model.forward_intermediates(
        images, indices=4, norm=True, return_prefix_tokens=True, output_fmt="NLC"
    )
    assert_close(found["cls_4"], torch.cat([prefix[:, 0] for _, prefix in states], dim=1))


@pytest.mark.parametrize("name", VITS)
def test_kinds_of_features(name: str) -> None:
    backbone = network(name)
    images, prefix = images_for(backbone), backbone.model.num_prefix_tokens
    raw = backbone.model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")[0]
    normed = backbone.model.forward_features(images)
    found = backbone.features(images, backbone.feature_types)
    assert tuple(found) == backbone.feature_types
    assert_close(found["avg"], normed[:, prefix:].mean(1))
    assert_close(found["avg_raw"], raw.mean(1))
    if backbone.model.has_class_token:
        assert backbone.feature_types == ("cls", "avg", "cls+avg", "cls_4", "cls_raw", "avg_raw")
        assert_close(found["cls"], normed[:, 0])
        assert_close(found["cls+avg"], torch.cat([normed[:, 0], normed[:, prefix:].mean(1)], dim=1))
        assert_close(found["cls_4"], last_class_tokens(backbone, images))
        assert_close(backbone.model.norm(found["cls_raw"]), normed[:, 0])
    else:
        assert backbone.feature_types == ("avg", "avg_raw")
    assert_close(backbone(images), found[backbone.primary_feature_type])
    assert backbone(images).shape == (3, backbone.dim)


@pytest.mark.parametrize("case", OTHERS)
def test_kinds_of_features_of_beits_and_swins(case: str) -> None:
    backbone = other(case)
    images = images_for(backbone)
    found = backbone.features(images, backbone.feature_types)
    assert tuple(found) == backbone.feature_types
    assert_close(backbone(images), backbone.model(images))
    normed = backbone.model.forward_features(images)
    if backbone.is_swin:
        assert backbone.feature_types == ("avg",)
        assert_close(found["avg"], normed.mean((1, 2)))
        with pytest.raises(KeyError):
            backbone.features(images, ("cls",))
        return
    raw = backbone.model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")[0]
    assert backbone.feature_types == ("cls", "avg", "cls+avg", "cls_4", "cls_raw", "avg_raw")
    assert_close(found["cls"], normed[:, 0])
    assert_close(found["avg"], normed[:, 1:].mean(1))
    assert_close(found["cls+avg"], torch.cat([normed[:, 0], normed[:, 1:].mean(1)], dim=1))
    assert_close(found["cls_4"], last_class_tokens(backbone, images))
    assert_close(found["avg_raw"], raw.mean(1))
    assert_close(backbone.model.norm(found["cls_raw"]), normed[:, 0])


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


@pytest.mark.parametrize(("channels", "last"), [((8, 8, 16, 16), False), ((16, 24, 32, 48), True)])
def test_narrow_resnets_keep_clear_of_channels_last(channels: tuple[int, ...], last: bool) -> None:
    """Strided 1 x 1 convolutions of fewer than 16 channels: oneDNN's gradient of their weights corrupts memory."""
    backbone = Backbone(BackboneOptions("resnet18", img_size=16, timm_args={"channels": channels}))
    seen: list[torch.Tensor] = []
    backbone.model.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    backbone(torch.zeros(2, 3, 16, 16)), backbone.token_grid(torch.zeros(2, 3, 16, 16))
    tensors = [backbone.model.conv1.weight, *seen]
    assert [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors] == [last] * 3


@pytest.mark.parametrize("img_size", [32, 96])
def test_features_of_a_resnet_are_timms(img_size: int) -> None:
    backbone = network("resnet_nano", img_size=img_size)
    images = images_for(backbone)
    maps = backbone.model.forward_features(images)
    assert maps.shape == (3, 256, img_size // (8 if img_size == 32 else 32), img_size // (8 if img_size == 32 else 32))
    assert_close(backbone(images), maps.mean((2, 3)))
    assert (backbone.feature_types, backbone.primary_feature_type, backbone.dim, backbone.is_vit) == (
        ("gap",),
        "gap",
        256,
        False,
    )
    with pytest.raises(AssertionError, match="without patches has no tokens"):
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


def test_overrides_of_a_beit() -> None:
    options = BackboneOptions("beit_base_patch16_224", 48, 8, width=60, depth=3, num_heads=5, drop_path=0.2)
    backbone = Backbone(options)
    assert (backbone.img_size, backbone.patch_size, backbone.grid, backbone.dim) == (48, 8, 6, 60)
    assert (backbone.embed_dim, backbone.stride, backbone.prefix) == (60, 8, 1)
    assert (backbone.is_vit, backbone.is_swin, backbone.is_resnet) == (True, False, False)
    assert [block.attn.num_heads for block in backbone.model.blocks] == [5, 5, 5]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    for case, relative in (("shared table", True), ("a table per block", True), ("absolute positions", False)):
        assert other(case).has_relative_positions == relative
    assert not network(PICO).has_relative_positions


def test_overrides_of_a_swin() -> None:
    backbone = Backbone(BackboneOptions("swin_tiny_patch4_window7_224", 32, 2, width=24, drop_path=0.3))
    assert (backbone.img_size, backbone.patch_size, backbone.grid, backbone.dim) == (32, 2, 16, 192)
    assert (backbone.embed_dim, backbone.stride, backbone.prefix) == (24, 16, 0)
    assert (backbone.is_vit, backbone.is_swin, backbone.is_resnet) == (False, True, False)
    assert backbone.has_relative_positions
    drops = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(drops) == pytest.approx(0.3)
    windows = [stage.blocks[0].window_size for stage in backbone.model.layers]
    assert windows == [(7, 7), (7, 7), (4, 4), (2, 2)], "never larger than the grid"
    plain = Backbone(BackboneOptions(SWIN))
    assert not [m for m in plain.modules() if type(m).__name__ == "DropPath"], "timm's have 0.1"
    asked = Backbone(BackboneOptions(SWIN, timm_args={"drop_path_rate": 0.2}))
    assert [m for m in asked.modules() if type(m).__name__ == "DropPath"]


def test_published_networks_of_simmim() -> None:
    with torch.device("meta"):  # shapes alone
        timm_args = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_abs_pos_emb": False}
        vit = Backbone(BackboneOptions("beit_base_patch16_224", timm_args=timm_args | {"init_values": 0.1}))
        swin = Backbone(BackboneOptions("swin_base_patch4_window7_224", 192, timm_args={"window_size": 6}))
    assert vit.model.rel_pos_bias.relative_position_bias_table.shape == (732, 12)
    assert vit.model.pos_embed is None
    assert (swin.grid, swin.stride, swin.embed_dim, swin.dim) == (48, 32, 128, 1024)
    assert [len(stage.blocks) for stage in swin.model.layers] == [2, 2, 18, 2]
    assert [stage.blocks[0].attn.num_heads for stage in swin.model.layers] == [4, 8, 16, 32]
    assert {block.window_size for stage in swin.model.layers for block in stage.blocks} == {(6, 6)}


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
        (
            {"name": "vit_tiny_patch16_224.augreg"},
            "'augreg' names weights: --backbone.pretrained true starts from them",
        ),
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
        ({"name": SWIN, "depth": 2}, "backbone.depth: a Swin has one per stage: --backbone.timm_args '{depths: "),
        ({"name": SWIN, "num_heads": 2}, "backbone.num_heads: a Swin has one per stage: .* '{num_heads: "),
        (
            {"name": SWIN, "width": 25},
            "a stage's 25 channels are no multiple of 2 heads: choose another --backbone.width",
        ),
        ({"name": SWIN, "width": 0}, "backbone.width 0 must be at least 1"),
        ({"name": SWIN, "img_size": 31}, "img_size 31 is no multiple of the patch size 2: try 32"),
        ({"name": SWIN, "small_stem": True}, "small_stem is for ResNets"),
        ({"name": BEIT, "depth": 0}, "backbone.depth 0 must be at least 1"),
        ({"name": BEIT, "width": 50}, "backbone.width 50 is no multiple of --backbone.num_heads 3"),
        ({"name": "beit_base_patch16_224", "img_size": 32, "width": 50}, "width 50 is no multiple of .* 12 heads"),
        ({"name": BEIT, "absolute_positions": True}, "absolute_positions is for Swins: beit_pico_patch4_32 is not one"),
        ({"name": BEIT, "timm_args": {"bogus": 1}}, f"backbone {BEIT}, --backbone.timm_args .*'bogus'"),
        ({"name": PICO, "timm_args": {"bogus": 1}}, f"backbone {PICO}, --backbone.timm_args .*'bogus'"),
        ({"name": "resnet18", "timm_args": {"bogus": 1}}, "backbone resnet18, --backbone.timm_args .*'bogus'"),
        ({"name": SWIN, "timm_args": {"depths": [1, 1, 1]}}, "backbone.timm_args .*out of range"),
        ({"name": SWIN, "timm_args": {"window_size": "a"}}, "backbone.timm_args {'window_size': 'a'}"),
        ({"name": BEIT, "timm_args": {"init_values": "x"}}, "backbone.timm_args {'init_values': 'x'}"),
        ({"name": PICO, "timm_args": {"in_chans": 1}}, "timm_args: in_chans must stay as it is here: leave it out"),
        ({"name": PICO, "timm_args": {"pretrained": True}}, "timm_args: pretrained must stay as it is here"),
        ({"name": BEIT, "timm_args": {"global_pool": "avg"}}, "timm_args: global_pool must stay as it is here"),
        ({"name": PICO, "timm_args": {"img_size": 30}}, "img_size 30 is no multiple of the patch size 4: try 32"),
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
    BEIT: {"timm_args": PER_BLOCK | {"mlp_ratio": 2}, "drop_path": 0.1},
    "beit_nano_patch4_32": {"depth": 1, "img_size": 24},
    SWIN: {"timm_args": {"depths": [1, 1, 2], "num_heads": [2, 3, 6], "window_size": 8}, "img_size": 16},
    "swin_nano_patch2_32": {"absolute_positions": True, "drop_path": 0.1},
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
    method: Any = SimpleNamespace(branches={"encoder": backbone})
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


@pytest.mark.parametrize("name", [BEIT, SWIN])
def test_timm_loads_a_saved_beit_or_swin(name: str, tmp_path: Path) -> None:
    backbone = network(name, **SAVED[name])
    save(tmp_path, backbone)
    spec = json.loads((tmp_path / "backbone.json").read_text())
    weights_file = str(tmp_path / "backbone.safetensors")
    model = timm.create_model(spec["architecture"], num_classes=0, checkpoint_path=weights_file, **spec["args"])
    images = images_for(backbone)
    assert_close(model.eval()(images), backbone(images))
    assert backbone.timm_can_build
    assert not network(SWIN, absolute_positions=True).timm_can_build


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
