"""MAE against the official code on a tiny network, and a slow way that embeds, decodes and predicts everything."""

from functools import partial
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.mae import MAE, patch_pixels
from ssl_bench.models.architectures import TINY
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import patchify, sincos_positions
from ssl_bench.optim.optimizers import build_optimizer, parameter_groups


def mae(seed: int = 0, img_size: int = 32, patch_size: int = 4, width: int = 48, **given: Any) -> MAE:
    torch.manual_seed(seed)
    options = BackboneOptions("vit_pico_patch4_32", img_size=img_size, patch_size=patch_size, width=width)
    sizes = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}
    return MAE(Backbone(options), **sizes | given)


def everything(method: MAE, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's forward the long way: all patches embedded, all decoded; loss as a mean over a mask, in loops.

    Returns (B, N, 3pp) predictions and the loss.
    """
    vit, p = method.backbone.model, method.backbone.patch_size
    patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2) + vit.pos_embed[:, 1:]
    batch, count, _ = patches.shape
    kept = int(count * (1 - method.mask_ratio))
    restored = []
    for i in range(batch):
        order = sorted(range(count), key=lambda n, row=noise[i]: float(row[n]))  # type: ignore[misc]
        tokens = torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], patches[i, order[:kept]]])
        encoded = method.decoder_embed(vit.norm(vit.blocks(tokens[None])))[0]
        row = [method.mask_token[0, 0]] * count
        for place, n in enumerate(order[:kept]):
            row[n] = encoded[1 + place]
        restored.append(torch.stack([encoded[0], *row]))
    decoded = method.decoder_blocks(torch.stack(restored) + method.decoder_pos_embed)
    predicted = method.decoder_pred(method.decoder_norm(decoded))[:, 1:]
    loss, hidden = 0.0, 0
    for i in range(batch):
        order = sorted(range(count), key=lambda n, row=noise[i]: float(row[n]))  # type: ignore[misc]
        for n in order[kept:]:
            row, column = divmod(n, images.shape[3] // p)
            cell = images[i, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            target = torch.stack([cell[c, y, x] for y in range(p) for x in range(p) for c in range(3)])
            if method.norm_pix:
                mean = target.sum() / len(target)
                variance = ((target - mean) ** 2).sum() / (len(target) - 1)
                target = (target - mean) / (variance + 1e-6) ** 0.5
            loss, hidden = loss + ((predicted[i, n] - target) ** 2).sum() / len(target), hidden + 1
    return predicted, torch.as_tensor(loss / hidden)


# The official code


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> tuple[MAE, dict[str, Any], dict[str, Tensor]]:
    """Ours with the official weights; its blocks are half as wide inside as ours ever are."""
    record, tensors = load("mae_pretrain")
    c = record["config"]
    args = {"img_size": c["img"], "patch_size": c["patch"], "embed_dim": c["dim"], "depth": c["depth"]}
    args |= {"num_heads": c["heads"], "mlp_ratio": c["mlp"]}
    monkeypatch.setitem(TINY, "golden", ("vit_tiny_patch16_224", args, ""))
    monkeypatch.setattr("ssl_bench.methods.mae.Block", partial(Block, mlp_ratio=c["mlp"]))
    backbone = Backbone(BackboneOptions("golden"))
    method = MAE(backbone, c["r"], c["dd"], c["ddep"], c["dh"])
    method.load_state_dict({ours(method, name): value for name, value in weights(tensors, "w.").items()})
    return method, record, tensors


def ours(method: MAE, official: str) -> str:
    """The name of an official parameter here."""
    return official if official.startswith(("decoder_", "mask_token")) else f"backbone.model.{official}"


Golden = tuple[MAE, dict[str, Any], dict[str, Tensor]]


def test_masks_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    keep, hidden = method.split_patches(len(tensors["noise"]), tensors["noise"])
    assert torch.equal(keep, tensors["ids_keep"])
    mask = torch.zeros_like(tensors["out.mask"]).scatter(1, hidden, 1.0)
    assert torch.equal(mask, tensors["out.mask"])
    restore = torch.cat([keep, hidden], dim=1).argsort(dim=1)
    assert torch.equal(restore, tensors["out.ids_restore"])
    assert keep.shape[1] == record["len_keep"]


def test_latent_and_prediction_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    noise = record["results"]["raw"]["noise"]
    keep, hidden = method.split_patches(len(tensors["noise"]), tensors["noise"])
    latent = method.backbone.tokens(tensors["images"], keep=keep)
    assert_close(latent, tensors["out.latent"], noise["latent"]["max_abs"])
    predicted = method.reconstruct(tensors["images"], keep, hidden)
    expected = tensors["out.pred"].take_along_dim(hidden[..., None], 1)
    assert_close(predicted, expected, noise["pred"]["max_abs"])


@pytest.mark.parametrize("target", ["raw", "norm_pix"])
def test_loss_and_gradients_of_the_official_code(golden: Golden, target: str) -> None:
    method, record, tensors = golden
    result = record["results"][target]
    method.norm_pix = result["norm_pix_loss"]
    loss = method.loss([tensors["images"]], noise=tensors["noise"])
    loss.backward()
    assert_close(loss, result["loss_float64"])
    for official, norm in result["grad_norms_float64"].items():
        gradient = method.get_parameter(ours(method, official)).grad
        assert (gradient is None) == (norm is None), official
        if gradient is not None:
            assert_close(gradient.norm(), norm, noise=abs(norm - result["grad_norms"][official]))
    if target == "norm_pix":
        for official, expected in weights(tensors, "grad_norm_pix.").items():
            gradient = method.get_parameter(ours(method, official)).grad
            assert gradient is not None
            assert_close(gradient, expected)


def target_of(method: MAE, images: Tensor) -> Tensor:
    return patch_pixels(images, method.backbone.patch_size, method.norm_pix)


def test_target_of_the_official_code(golden: Golden) -> None:
    method, _, tensors = golden
    method.norm_pix = False
    assert torch.equal(target_of(method, tensors["images"])[0], tensors["patchify_first_image"])


def test_what_learns_and_what_decays_in_the_official_code(golden: Golden) -> None:
    method, record, _ = golden
    for official, learns in record["requires_grad"].items():
        assert method.get_parameter(ours(method, official)).requires_grad == learns
    names = {id(p): name for name, p in method.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(method))
    official = {g["weight_decay"]: {ours(method, name) for name in g["params"]} for g in record["weight_decay_groups"]}
    assert (decayed, plain) == (official[method.optim.weight_decay], official[0.0])


def test_initialisation_of_the_official_code(golden: Golden) -> None:
    """Deviation within what chance allows at each size, and the bounds of the uniform distributions."""
    _, record, _ = golden
    torch.manual_seed(0)
    fresh = MAE(Backbone(BackboneOptions("golden")), decoder_dim=32, decoder_depth=1, decoder_heads=4)
    for official, (mean, std, largest) in record["param_init_mean_std_absmax"].items():
        values = fresh.get_parameter(ours(fresh, official)).detach()
        if std == 0:
            assert (values == mean).all(), official
            continue
        assert values.std().item() == pytest.approx(std, rel=4 / values.numel() ** 0.5), official
        assert values.mean().abs() < 5 * std / values.numel() ** 0.5, official
        if "token" not in official:  # uniform: the largest of many is near the bound
            assert values.abs().max().item() == pytest.approx(largest, rel=4 / values.numel() ** 0.5), official
    qkv = fresh.backbone.model.blocks[0].attn.qkv.weight
    assert 0.99 < qkv.abs().max().item() / (6 / (qkv.shape[0] + qkv.shape[1])) ** 0.5 <= 1  # as one matrix


def test_patch_projection_keeps_torchs_bias() -> None:
    method = mae()
    bound = 48**-0.5
    assert 0.5 * bound < method.backbone.model.patch_embed.proj.bias.abs().max() <= bound


@pytest.mark.parametrize("case", load("mae_pretrain")[0]["keep_table"], ids=lambda c: f"{c['N']} at {c['ratio']}")
def test_how_many_patches_stay(case: dict[str, Any]) -> None:
    method = mae(img_size=4 * int(case["N"] ** 0.5), mask_ratio=case["ratio"])
    keep, hidden = method.split_patches(2)
    assert (keep.shape, hidden.shape) == ((2, case["keep"]), (2, case["removed"]))


# The long way


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ({}, {}),
        ({"img_size": 24, "patch_size": 6}, {"mask_ratio": 0.6, "decoder_dim": 64, "decoder_depth": 2}),
        ({"img_size": 20, "patch_size": 2, "width": 24}, {"mask_ratio": 0.9, "decoder_heads": 2}),
        ({"img_size": 12, "patch_size": 4}, {"mask_ratio": 0.5, "decoder_dim": 8, "decoder_heads": 1}),
    ],
    ids=["default", "wide decoder", "100 patches", "9 patches"],
)
def test_loss_is_the_long_ways(sizes: dict[str, int], given: dict[str, Any], norm_pix: bool) -> None:
    method = mae(norm_pix=norm_pix, **sizes, **given)
    with torch.no_grad():
        for parameter in method.parameters():  # tokens, biases and norms away from 0 and 1
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    side, count = method.backbone.img_size, method.backbone.grid**2
    images, noise = torch.randn(3, 3, side, side), torch.rand(3, count)
    loss = method.loss([images], noise=noise)
    loss.backward()
    quick = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    method.double()
    predicted, expected = everything(method, images.double(), noise)
    expected.backward()
    assert_close(loss, expected)
    slow = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert quick.keys() == slow.keys()
    largest = max(gradient.abs().max().item() for gradient in slow.values())
    for name, gradient in slow.items():
        assert_close(quick[name], gradient, noise=1e-8 * largest)
    keep, hidden = method.split_patches(3, noise)
    assert_close(method.reconstruct(images.double(), keep, hidden), predicted.take_along_dim(hidden[..., None], 1))


def test_embedding_only_visible_patches_changes_nothing() -> None:
    method = mae()
    images, seen = torch.randn(3, 3, 32, 32), []
    vit = method.backbone.model
    handle = vit.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    keep, _ = method.split_patches(3)
    method.backbone.tokens(images, keep=keep)
    method.backbone.tokens(images)
    handle.remove()
    few, all_patches = (tokens[:, 1:] for tokens in seen)
    assert_close(few, all_patches.take_along_dim(keep[..., None], 1))


# One property at a time


def test_visible_patches_return_to_their_places() -> None:
    """With tokens that carry their own number through an idle encoder, the decoder sees them where they were."""
    method = mae(decoder_dim=48)
    seen: list[Tensor] = []
    method.decoder_blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    keep, hidden = method.split_patches(2)
    with torch.no_grad():
        method.mask_token.fill_(-1.0)
        method.decoder_pos_embed.zero_()
    method.decoder_embed = nn.Identity()  # type: ignore[assignment]
    numbers = torch.arange(65.0)[None, :, None].expand(2, -1, 48)  # class token 0, patch n has n + 1

    def tokens(images: Tensor, keep: Tensor) -> Tensor:
        return torch.cat([numbers[:, :1], numbers[:, 1:].take_along_dim(keep[..., None], 1)], dim=1)

    method.backbone.tokens = tokens  # type: ignore[method-assign]
    method.reconstruct(torch.zeros(2, 3, 32, 32), keep, hidden)
    expected = numbers.clone()
    expected[:, 1:].scatter_(1, hidden[..., None].expand(-1, -1, 48), -1.0)
    assert torch.equal(seen[0], expected)
    assert seen[0].shape[1] == 65, "the class token belongs to the decoder's input"


def test_loss_leaves_visible_patches_out(monkeypatch: pytest.MonkeyPatch) -> None:
    method = mae()
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 64)
    keep, hidden = method.split_patches(2, noise)
    losses = {}
    for name, touched in (("visible", keep), ("hidden", hidden)):
        rows = touched[..., None].expand(-1, -1, 48)
        shifted = lambda *given, rows=rows: patch_pixels(*given).scatter_add(1, rows, torch.ones(rows.shape))  # noqa: E731
        monkeypatch.setattr("ssl_bench.methods.mae.patch_pixels", shifted)
        losses[name] = method.loss([images], noise=noise)
    monkeypatch.undo()
    plain = method.loss([images], noise=noise)
    assert torch.equal(losses["visible"], plain)
    assert not torch.isclose(losses["hidden"], plain)


def test_target_has_the_unbiased_variance_of_each_patch() -> None:
    method = mae(img_size=12)
    images = torch.arange(432.0).reshape(1, 12, 12, 3).permute(0, 3, 1, 2)
    first = torch.tensor([y * 36 + x * 3 + c for y in range(4) for x in range(4) for c in range(3)]).double()
    mean = first.mean()
    expected = (first - mean) / (((first - mean) ** 2).sum() / 47 + 1e-6).sqrt()
    assert_close(target_of(method, images)[0, 0], expected)
    flat = target_of(method, torch.full((1, 3, 12, 12), 0.3))
    assert flat.isfinite().all() and flat.abs().max() < 1e-3


def test_order_of_pixels_in_a_patch() -> None:
    method = mae(norm_pix=False)
    images, p = torch.rand(2, 3, 32, 32), 4
    target = target_of(method, images)
    for n in (0, 1, 9, 63):
        for d in range(48):
            y, x, channel = d // (3 * p), (d // 3) % p, d % 3
            assert target[1, n, d] == images[1, channel, (n // 8) * p + y, (n % 8) * p + x]
    back = target.reshape(2, 8, 8, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 32, 32)
    assert torch.equal(back, images)
    other = patchify(images, p, "channel first").reshape(2, 64, 3, p * p).transpose(2, 3).reshape(2, 64, 48)
    assert torch.equal(other, target)


def test_decoder_gets_normalised_tokens() -> None:
    method = mae()
    seen: list[Tensor] = []
    method.decoder_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.loss([torch.rand(2, 3, 32, 32)])
    assert seen[0].shape == (2, 17, 48)
    assert_close(seen[0].var(-1, correction=0), torch.ones(2, 17), noise=1e-4)  # eps of the norm
    assert seen[0].mean(-1).abs().max() < 1e-6


def test_positions_belong_to_patches_whatever_their_order() -> None:
    method = mae()
    images = torch.rand(2, 3, 32, 32)
    keep, hidden = method.split_patches(2)
    shuffled = keep[:, torch.randperm(keep.shape[1])]
    assert not torch.equal(keep, shuffled)
    assert_close(method.reconstruct(images, shuffled, hidden), method.reconstruct(images, keep, hidden))


def test_positions_are_maes_table_and_never_move() -> None:
    method = mae(decoder_dim=64)
    tables = {"backbone.model.pos_embed": 48, "decoder_pos_embed": 64}
    for name, dim in tables.items():
        position = method.get_parameter(name)
        assert not position.requires_grad
        assert (position[:, 0] == 0).all()
        assert torch.equal(position[0, 1:], sincos_positions(dim, 8, "mae"))
        half = dim // 2
        assert_close(position[0, 2, 0], torch.sin(torch.tensor(1.0)))  # row 0, column 1
        assert position[0, 2, half] == 0
    before = {name: method.get_parameter(name).clone() for name in tables}
    optimizer = build_optimizer(method, Optim("adamw", weight_decay=0.5))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    method.loss([torch.rand(2, 3, 32, 32)]).backward()
    optimizer.step()
    assert all(torch.equal(method.get_parameter(name), value) for name, value in before.items())


def test_each_image_has_its_own_mask() -> None:
    torch.manual_seed(0)
    _, hidden = mae().split_patches(64)
    masks = {tuple(sorted(row.tolist())) for row in hidden}
    assert len(masks) == 64
    often = torch.bincount(mae().split_patches(4096)[1].flatten(), minlength=64) / 4096
    assert often.min() > 0.7 and often.max() < 0.8  # each patch is hidden three times out of four


# The paper's ablations


def hidden_map(method: MAE, count: int) -> Tensor:
    """(B, g, g), True where hidden."""
    _, hidden = method.split_patches(count)
    grid = method.backbone.grid
    return torch.zeros(count, grid**2, dtype=torch.bool).scatter(1, hidden, True).view(count, grid, grid)


def test_a_grid_keeps_one_of_every_four() -> None:
    masks = hidden_map(mae(mask_sampling="grid"), 5)
    for y in range(8):
        for x in range(8):
            assert (masks[:, y, x] == bool(y % 2 or x % 2)).all()


def neighbours_alike(masks: Tensor) -> float:
    """Part of patches that are as hidden as the one to their right."""
    return (masks[:, :, 1:] == masks[:, :, :-1]).float().mean().item()


def test_blocks_hide_as_many_patches_side_by_side() -> None:
    torch.manual_seed(0)
    blocks, anywhere = (hidden_map(mae(mask_sampling=name, mask_ratio=0.5), 64) for name in ("block", "random"))
    assert (blocks.sum((1, 2)) == 32).all() and (anywhere.sum((1, 2)) == 32).all()
    assert len({tuple(mask.flatten().tolist()) for mask in blocks}) == 64
    assert neighbours_alike(blocks) > 0.75 > 0.55 > neighbours_alike(anywhere)


@pytest.mark.parametrize(("sizes", "given"), [({"img_size": 36}, {}), ({}, {"mask_ratio": 0.5})])
def test_grids_that_do_not_fit(sizes: dict[str, int], given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="mask_sampling grid: mask_ratio 0.75 and an even number of patches"):
        mae(mask_sampling="grid", **sizes, **given)


def test_mask_tokens_in_the_encoder_are_the_long_way() -> None:
    """All patches embedded, hidden ones replaced before positions are added, no token put in afterwards."""
    method = mae(encoder_mask_tokens=True).double()
    assert method.mask_token.shape == (1, 1, 48)
    images, noise = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.rand(2, 64)
    keep, hidden = method.split_patches(2, noise)
    vit = method.backbone.model
    rows = []
    for i in range(2):
        patches = vit.patch_embed.proj(images[i : i + 1]).flatten(2).transpose(1, 2)[0]
        tokens = [method.mask_token[0, 0] if n in hidden[i] else patches[n] for n in range(64)]
        tokens = [token + vit.pos_embed[0, 1 + n] for n, token in enumerate(tokens)]
        rows.append(torch.stack([vit.cls_token[0, 0] + vit.pos_embed[0, 0], *tokens]))
    encoded = vit.norm(vit.blocks(torch.stack(rows)))
    decoded = method.decoder_blocks(method.decoder_embed(encoded) + method.decoder_pos_embed)
    expected = method.decoder_pred(method.decoder_norm(decoded))[:, 1:].take_along_dim(hidden[..., None], 1)
    assert_close(method.reconstruct(images, keep, hidden), expected)
    method.loss([images], noise=noise).backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_target_stays_exact_in_half_precision() -> None:
    method = mae()
    images = torch.rand(2, 3, 32, 32)
    exact = target_of(method, images)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(target_of(method, images), exact)
            assert method.loss([images]).isfinite()
        assert torch.equal(target_of(method, images.to(dtype)), target_of(method, images.to(dtype).float()))


def test_registers_stay_with_the_encoder() -> None:
    """The decoder gets the class token and the patches; positions are the patches' alone."""
    options = BackboneOptions("vit_small_patch14_reg4_dinov2", img_size=32, patch_size=4, width=24, depth=1)
    method = MAE(Backbone(options), 0.75, 32, 1, 4)
    assert method.backbone.model.pos_embed.shape == (1, 64, 24)
    seen: list[Tensor] = []
    method.decoder_embed.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    method.decoder_blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    keep, hidden = method.split_patches(2)
    assert method.reconstruct(torch.rand(2, 3, 32, 32), keep, hidden).shape == (2, 48, 48)
    encoded, full = seen
    full = full - method.decoder_pos_embed
    assert (encoded.shape, full.shape) == ((2, 1 + 4 + 16, 32), (2, 1 + 64, 32))
    assert_close(full[:, 0], encoded[:, 0])
    assert_close(full[:, 1:].take_along_dim(keep[..., None], 1), encoded[:, 5:])


def test_view_and_recipe() -> None:
    method = MAE(Backbone(BackboneOptions("vit_pico_patch4_32")))
    (view,) = method.views()
    assert (view.size, view.count, view.scale, view.flip, view.interpolation) == (32, 1, (0.2, 1.0), 0.5, "bicubic")
    assert (view.jitter, view.grayscale, view.blur, view.solarize) == (None, 0.0, 0.0, 0.0)
    assert method.standardize and method.norm_pix
    assert (method.mask_ratio, len(method.decoder_blocks), method.decoder_embed.out_features) == (0.75, 8, 512)
    assert method.decoder_blocks[0].attn.num_heads == 16
    assert method.decoder_blocks[0].mlp.fc1.out_features == 2048
    assert {m.eps for m in method.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.betas, optim.weight_decay) == ("adamw", 1.5e-4, (0.9, 0.95), 0.05)
    assert (optim.scaling, optim.warmup_epochs, optim.min_lr, optim.clip) == ("linear", 40, 0.0, None)


@pytest.mark.parametrize(
    ("backbone", "given", "message"),
    [
        ("resnet_nano", {}, "mae needs a ViT.*simclr"),
        ("test_vit2", {}, "class token.*test_vit2"),
        ("vit_pico_patch4_32", {"mask_ratio": 1.0}, r"mask_ratio 1.0 must lie between 0 and 1"),
        ("vit_pico_patch4_32", {"decoder_dim": 50}, "decoder_dim 50 is no multiple of decoder_heads 16"),
        ("vit_pico_patch4_32", {"decoder_dim": 18, "decoder_heads": 2}, "divisible by 4, not 18"),
        ("vit_pico_patch4_32", {"mask_ratio": 0.99}, "leaves none of 64 patches visible"),
    ],
)
def test_what_cannot_be_is_refused(backbone: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MAE(Backbone(BackboneOptions(backbone, img_size=32)), **given)
