"""SimMIM against the official code on a tiny ViT and a tiny Swin, and the paper's loss in loops over every pixel."""

import math
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.simmim import SimMIM
from ssl_bench.models.architectures import TINY
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer, clip_gradients, parameter_groups

VIT, BEIT, SWIN = "vit_pico_patch4_32", "beit_pico_patch4_32", "swin_pico_patch2_32"


def simmim(name: str = BEIT, seed: int = 0, backbone: dict[str, Any] | None = None, **given: Any) -> SimMIM:
    torch.manual_seed(seed)
    return SimMIM(Backbone(BackboneOptions(name, **(backbone or {}))), **given)


def stirred(method: SimMIM) -> SimMIM:
    """With tokens, biases, tables and norms away from 0 and 1."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return method


def every_token(mask: Tensor, method: SimMIM) -> Tensor:
    """(B, M, 1) indices that leave out no token."""
    side = method.backbone.img_size // method.backbone.stride
    return torch.arange(side**2).expand(len(mask), -1)[..., None]


def everything(method: SimMIM, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The code's forward the long way: all tokens decoded by a convolution and shuffled, loss in a loop over pixels.

    Returns (B, 3, H, W) pixels and the loss.
    """
    stride, patch, grid = method.backbone.stride, method.backbone.patch_size, method.backbone.grid
    tokens = method.backbone.tokens(images, mask=mask, mask_token=method.mask_token)[:, method.backbone.prefix :]
    side = math.isqrt(tokens.shape[1])
    maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    convolved = nn.functional.conv2d(maps, method.decoder.weight[..., None, None], method.decoder.bias)
    pixels = nn.functional.pixel_shuffle(convolved, stride)
    difference = (images - pixels).abs().sum(1)  # (B, H, W)
    total, hidden = torch.zeros((), dtype=images.dtype), 0
    for image, n in mask.nonzero().tolist():
        row, column = divmod(n, grid)
        for y in range(row * patch, (row + 1) * patch):
            for x in range(column * patch, (column + 1) * patch):
                total, hidden = total + difference[image, y, x], hidden + 1
    return pixels, total / (hidden + 1e-5) / 3


# The official code


Golden = tuple[SimMIM, dict[str, Any], dict[str, Tensor]]


@pytest.fixture(params=["simmim_vit", "simmim_swin"])
def golden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Golden:
    """Ours with the official weights."""
    record, tensors = load(request.param)
    c = record["config"]
    args = {"img_size": c["img"], "patch_size": c["patch"], "embed_dim": c["dim"], "num_heads": c.get("heads")}
    args |= {"mlp_ratio": c["mlp"]}
    if request.param == "simmim_vit":
        name = "beit_base_patch16_224"
        args |= {"depth": c["depth"], "init_values": c["init_values"], "use_abs_pos_emb": c["ape"]}
        args |= {"use_rel_pos_bias": c["rpb"], "use_shared_rel_pos_bias": c["srpb"]}
    else:
        name = "swin_tiny_patch4_window7_224"
        args |= {"depths": c["depths"], "window_size": c["win"]}
    monkeypatch.setitem(TINY, "golden", (name, args, ""))
    method = SimMIM(Backbone(BackboneOptions("golden")), c["mask_ratio"], c["cell"])
    assert (method.backbone.stride, method.mask_cell) == (c["encoder_stride"], c["cell"])
    missing, unexpected = method.load_state_dict(
        {
            ours(name): value.flatten(1) if name == "decoder.0.weight" else value
            for name, value in weights(tensors, "w.").items()
            if not name.endswith(("relative_position_index", "attn_mask"))
        },
        strict=False,
    )
    assert not missing and not unexpected
    return method, record, tensors


def ours(official: str) -> str:
    """The name of an official parameter here."""
    if official == "encoder.mask_token":
        return "mask_token"
    name = official.replace("decoder.0.", "decoder.").replace("encoder.", "backbone.model.")
    if name.startswith("backbone.model.layers.") and ".downsample." in name:  # timm's is the next stage's
        stage = int(name.split(".")[3])
        name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
    return name


def test_latent_and_reconstruction_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    mask = tensors["mask"].flatten(1).bool()
    images, noise = tensors["images"], record["noise"]
    latent = method.backbone.tokens(images, mask=mask, mask_token=method.mask_token)[:, method.backbone.prefix :]
    assert_close(latent, tensors["out.latent"].flatten(2).transpose(1, 2), noise["latent"]["max_abs"])
    predicted = method.reconstruct(images, mask, every_token(mask, method))  # (B, M, 3ss)
    side = math.isqrt(predicted.shape[1])
    shuffled = nn.functional.pixel_shuffle(predicted.transpose(1, 2).unflatten(2, (side, side)), method.backbone.stride)
    assert_close(shuffled, tensors["out.reconstruction"], noise["reconstruction"]["max_abs"])


@pytest.mark.parametrize("way", ["all tokens", "hidden tokens"])
def test_loss_and_gradients_of_the_official_code(golden: Golden, way: str) -> None:
    method, record, tensors = golden
    mask = tensors["mask"]
    drawn = {"mask": mask.flatten(1).bool()}
    if way == "hidden tokens":
        step = method.mask_cell // method.backbone.patch_size
        cells = mask[:, ::step, ::step].flatten(1)
        assert cells.sum(1).tolist() == [method.hidden_cells] * len(mask)
        drawn = {"noise": cells + 0.1 * torch.rand(cells.shape)}
        assert torch.equal(method.draw_mask(len(mask), drawn["noise"]), mask.flatten(1).bool())
    loss = method.loss([tensors["images"]], **drawn)
    loss.backward()
    assert_close(loss, record["loss_float64"])
    assert record["grad_norms_float64"].keys() == record["grad_norms"].keys()
    for official, norm in record["grad_norms_float64"].items():
        gradient = method.get_parameter(ours(official)).grad
        assert gradient is not None
        assert_close(gradient.flatten().norm(), norm, noise=abs(norm - record["grad_norms"][official]))
    for official, expected in weights(tensors, "grad.").items():
        gradient = method.get_parameter(ours(official)).grad
        assert gradient is not None
        assert_close(gradient, expected, relative=2e-5)  # both are in float32


def test_loss_of_all_and_of_no_pixels(golden: Golden) -> None:
    method, record, tensors = golden
    nothing = torch.zeros(3, method.backbone.grid**2, dtype=torch.bool)
    for mask, expected in ((~nothing, record["loss_all_ones_mask"]), (nothing, record["loss_all_zero_mask"])):
        loss = method.loss([tensors["images"]], mask=mask)
        assert_close(loss, expected, noise=1e-7)


def test_what_decays_in_the_official_code(golden: Golden) -> None:
    method, record, _ = golden
    names = {id(p): name for name, p in method.named_parameters()}
    groups = parameter_groups(method, method.no_weight_decay)
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in groups)
    official = record["weight_decay_groups"]
    assert (decayed, plain) == ({ours(n) for n in official["decay"]}, {ours(n) for n in official["no_decay"]})


def test_initialisation_of_the_official_code(golden: Golden) -> None:
    """Deviation within what chance allows at each size, and the bounds of the distributions."""
    old, record, _ = golden
    fresh = simmim("golden")
    for official, (mean, std, largest) in record["param_init_mean_std_absmax"].items():
        values = fresh.get_parameter(ours(official)).detach()
        if std == 0:
            assert_close(values, torch.full_like(values, mean))
            continue
        assert values.std().item() == pytest.approx(std, rel=5 / values.numel() ** 0.5), official
        assert values.mean().abs() < 5 * std / values.numel() ** 0.5, official
        bounded = old.backbone.is_vit or official.startswith(("decoder", "encoder.patch_embed.proj"))
        if bounded and values.numel() > 1000:
            assert values.abs().max().item() == pytest.approx(largest, rel=0.02), official


@pytest.mark.parametrize("case", load("simmim_vit")[0]["mask_count_table"], ids=lambda c: f"{c['input']}/{c['cell']}")
def test_how_many_cells_are_hidden(case: dict[str, Any]) -> None:
    options = {"img_size": case["input"], "patch_size": case["patch"]}
    method = simmim(VIT, backbone=options, mask_ratio=case["ratio"], mask_cell=case["cell"])
    mask = method.draw_mask(4)
    per_cell = (case["cell"] // case["patch"]) ** 2
    assert mask.shape == (4, (case["input"] // case["patch"]) ** 2)
    assert mask.sum(1).tolist() == [case["count"] * per_cell] * 4


# The long way

ABSOLUTE = {"use_abs_pos_emb": True, "use_shared_rel_pos_bias": False}
PER_BLOCK = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViT": (VIT, {}, {}),
    "ViT without class token": (VIT, {"timm_args": {"class_token": False, "global_pool": "avg"}}, {}),
    "ViT, 48 px, 0.75": (VIT, {"img_size": 48, "patch_size": 8, "width": 24}, {"mask_ratio": 0.75, "mask_cell": 16}),
    "shared table": (BEIT, {}, {}),
    "a table per block": (BEIT, {"timm_args": PER_BLOCK}, {"mask_cell": 4}),
    "both tables, no biases": (BEIT, {"timm_args": {"use_rel_pos_bias": True, "qkv_bias": False}}, {}),
    "BEiT, absolute positions": (BEIT, {"img_size": 24, "timm_args": ABSOLUTE}, {"mask_cell": 12}),
    "Swin": (SWIN, {}, {"mask_ratio": 0.3}),
    "Swin, absolute positions": (SWIN, {"absolute_positions": True}, {"mask_cell": 4}),
    "Swin, cells smaller than tokens": (SWIN, {}, {"mask_cell": 2, "mask_ratio": 0.1}),
    "Swin, cells beside tokens": (SWIN, {"img_size": 48, "patch_size": 4}, {"mask_cell": 12, "mask_ratio": 0.4}),
    "Swin, cells across tokens": (
        SWIN,
        {"img_size": 48, "patch_size": 4, "timm_args": {"depths": [1, 1, 1], "num_heads": [2, 2, 4]}},
        {"mask_cell": 12, "mask_ratio": 0.05},
    ),
    "Swin, three stages": (
        SWIN,
        {"timm_args": {"depths": [1, 1, 2], "num_heads": [2, 2, 4], "window_size": 8, "mlp_ratio": 2}},
        {"mask_cell": 16},
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_loss_is_the_long_ways(network: str) -> None:
    """Masks drawn here decode only some tokens; gradients are those of decoding all."""
    name, backbone, given = NETWORKS[network]
    method = stirred(simmim(name, backbone=backbone, **given))
    size, stride = method.backbone.img_size, method.backbone.stride
    images, noise = torch.randn(2, 3, size, size), torch.rand(2, method.cells)
    mask = method.draw_mask(2, noise)
    loss = method.loss([images], noise=noise)
    loss.backward()
    quick = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    method.double()
    pixels, expected = everything(method, images.double(), mask)
    expected.backward()
    assert_close(loss, expected)
    assert quick.keys() == dict(method.named_parameters()).keys()
    largest = max(p.grad.abs().max().item() for p in method.parameters() if p.grad is not None)
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None
        assert_close(quick[name], parameter.grad, noise=1e-6 * largest)
    predicted = method.reconstruct(images.double(), mask, every_token(mask, method)).unflatten(2, (3, stride, stride))
    side = size // stride
    rows = predicted.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5).reshape(pixels.shape)
    assert_close(rows, pixels)


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_any_mask_can_be_given(name: str) -> None:
    """Scattered patches, another number in each image, one image with none."""
    method = stirred(simmim(name))
    images, mask = torch.randn(3, 3, 32, 32), torch.rand(3, method.backbone.grid**2) < 0.2
    mask[1] = False
    assert_close(method.loss([images], mask=mask), everything(method, images, mask)[1])


def test_only_tokens_with_hidden_pixels_are_decoded() -> None:
    for name, given, tokens in (
        (BEIT, {}, 40),  # 10 cells of 8 px, 4 tokens of 4 px each
        (BEIT, {"mask_cell": 4}, 39),
        (SWIN, {}, 40),
        (SWIN, {"mask_cell": 2, "mask_ratio": 0.1}, 26),  # each of 26 cells in a token of its own, at most
        (SWIN, {"mask_cell": 2}, 64),
        (SWIN, {"mask_cell": 16, "mask_ratio": 0.3}, 32),
    ):
        method, seen = simmim(name, **given), []
        method.decoder.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        method.loss([torch.rand(2, 3, 32, 32)])
        assert seen[0].shape == (2, tokens, method.backbone.dim), (name, given)


# One property at a time


@pytest.mark.parametrize(("size", "cell", "hidden"), [(32, 8, 10), (64, 16, 10), (96, 32, 6), (192, 32, 22)])
def test_cells_by_default(size: int, cell: int, hidden: int) -> None:
    """Each cell is hidden or seen as a whole, along both sides, ceil(0.6 * cells) of them in each image."""
    method = simmim(SWIN, backbone={"img_size": size, "timm_args": {"depths": [1, 1]}})
    assert method.mask_cell == cell
    torch.manual_seed(0)
    side, patches = size // cell, cell // 2
    mask = method.draw_mask(64).view(64, side, patches, side, patches).transpose(2, 3).flatten(3)
    assert torch.equal(mask.all(3), mask.any(3))
    assert (mask.all(3).sum((1, 2)) == hidden).all()
    assert len({tuple(row) for row in mask.all(3).flatten(1).tolist()}) > 40, "each image has a mask of its own"


def test_every_cell_is_hidden_as_often() -> None:
    torch.manual_seed(0)
    often = simmim(SWIN).draw_mask(4096).float().mean(0)
    assert (often - 10 / 16).abs().max() < 0.03


@pytest.mark.parametrize(("size", "patch", "cell"), [(28, 4, 4), (12, 4, 4), (224, 16, 32), (224, 14, 28), (40, 4, 8)])
def test_cells_that_nobody_asked_for_fit(size: int, patch: int, cell: int) -> None:
    assert simmim(VIT, backbone={"img_size": size, "patch_size": patch}).mask_cell == cell


def test_order_of_predicted_pixels() -> None:
    """Output c * s * s + i * s + j of a token is channel c of its pixel in row i, column j."""
    method = simmim(VIT)
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, 9] = True  # row 1, column 1 of patches
    image = torch.zeros(1, 3, 32, 32)
    image[0, 2, 4 + 1, 4 + 3] = 1.0
    with torch.no_grad():
        method.decoder.weight.zero_()
        method.decoder.bias.zero_()
        missed = method.loss([image], mask=mask)
        method.decoder.bias[2 * 16 + 1 * 4 + 3] = 1.0
        assert method.loss([image], mask=mask) == 0
    assert_close(missed, 1 / 16 / 3, relative=1e-5)


def test_mean_is_over_hidden_pixels_and_three_channels() -> None:
    """All predictions off by one: the loss is 1 whatever is hidden."""
    method = simmim(BEIT)
    with torch.no_grad():
        method.decoder.weight.zero_()
        method.decoder.bias.fill_(1.0)
    images = torch.zeros(2, 3, 32, 32)
    assert_close(method.loss([images]), 1.0)
    assert_close(method.loss([images], mask=torch.ones(2, 64, dtype=torch.bool)), 1.0)
    few = torch.zeros(2, 64, dtype=torch.bool)
    few[0, :3] = True
    assert_close(method.loss([images], mask=few), 1.0)
    assert_close(method.loss([2.5 * torch.ones(2, 3, 32, 32)], mask=few), 1.5)


@pytest.mark.parametrize("name", [VIT, BEIT, SWIN])
def test_visible_pixels_are_input_and_hidden_ones_are_target(name: str) -> None:
    """At a hidden pixel the loss has the L1 norm's slope and no other: the network has not seen it. Where nothing is
    predicted there is no error, so that visible pixels are felt through the network alone."""
    method = stirred(simmim(name))
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    mask = method.draw_mask(2)
    method.loss([images], mask=mask).backward()
    assert images.grad is not None
    grid, patch = method.backbone.grid, method.backbone.patch_size
    pixels = mask.view(2, 1, grid, grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3).expand(-1, 3, -1, -1)
    slope = 1 / pixels.sum()
    assert_close(images.grad[pixels].abs(), slope.expand(int(pixels.sum())))
    images.grad = None
    with torch.no_grad():
        method.decoder.weight.zero_()  # predictions no longer depend on the image
    method.loss([images], mask=mask).backward()
    assert images.grad is not None
    assert (images.grad[~pixels] == 0).all()
    assert_close(images.grad[pixels].abs(), slope.expand(int(pixels.sum())))


def test_target_is_the_view_itself_not_normalised_per_patch() -> None:
    method = simmim(BEIT)
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 64) < 0.5
    with torch.no_grad():
        method.decoder.weight.zero_()
        method.decoder.bias.zero_()
    pixels = mask.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    assert_close(method.loss([images], mask=mask), images[pixels].abs().mean())


def test_mask_token_of_a_swin_comes_after_the_norm_of_embedded_patches() -> None:
    method = simmim(SWIN)
    seen: list[Tensor] = []
    method.backbone.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1, 2)))
    with torch.no_grad():
        method.mask_token.fill_(7.0)
    mask = method.draw_mask(2)
    method.loss([torch.randn(2, 3, 32, 32)], mask=mask)
    assert (seen[0][mask] == 7.0).all()
    assert_close(seen[0][~mask].mean(-1), torch.zeros(int((~mask).sum())), noise=1e-6)


def test_weights_of_a_vit_are_cut_at_one_deviation_and_those_of_a_swin_are_not() -> None:
    """A normal distribution cut there has 0.5396 of its deviation."""
    for name in (VIT, BEIT):
        method = simmim(name, backbone={"width": 96})
        network = method.backbone.model
        first = [network.patch_embed.proj.weight, network.blocks[1].mlp.fc1.weight, network.blocks[0].attn.qkv.weight]
        tokens = [network.cls_token, method.mask_token, *([network.pos_embed] if name == VIT else [])]
        for weight in (*first, *tokens):
            assert weight.abs().max() <= 0.02
            assert weight.std().item() == pytest.approx(0.02 * 0.5396, rel=4 / weight.numel() ** 0.5)
        for depth, block in enumerate(network.blocks, start=1):
            for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                assert 0.99 < weight.abs().max() * math.sqrt(2 * depth) / 0.02 <= 1
    swin = simmim(SWIN).backbone.model
    for weight in (swin.layers[0].blocks[0].mlp.fc1.weight, swin.layers[1].blocks[1].attn.relative_position_bias_table):
        assert weight.abs().max() > 0.04
        assert weight.std().item() == pytest.approx(0.02, rel=4 / weight.numel() ** 0.5)
    assert all((m.bias == 0).all() for m in swin.modules() if isinstance(m, nn.Linear) and m.bias is not None)


def test_decoder_starts_as_the_convolution_does() -> None:
    """Uniform within 1 / sqrt(channels), weights and biases."""
    method = simmim(SWIN)
    for values in (method.decoder.weight, method.decoder.bias):
        assert 0.9 < values.abs().max() * 48**0.5 <= 1


def test_all_blocks_share_one_table_and_keys_have_no_bias() -> None:
    method = simmim(BEIT)
    tables = [name for name, _ in method.named_parameters() if "relative_position" in name]
    assert tables == ["backbone.model.rel_pos_bias.relative_position_bias_table"]
    table = method.get_parameter(tables[0])
    assert table.shape == ((2 * 8 - 1) ** 2 + 3, 3)

    def gradient(without: int | None) -> Tensor:
        """What reaches the table, but not through one of the blocks."""
        method.zero_grad()
        handles = []
        if without is not None:
            attention = method.backbone.model.blocks[without].attn
            detached: Any = lambda module, args, given: (args, {k: v.detach() for k, v in given.items()})  # noqa: E731
            handles.append(attention.register_forward_pre_hook(detached, with_kwargs=True))
        method.loss([images], mask=mask).backward()
        for handle in handles:
            handle.remove()
        assert table.grad is not None
        return table.grad.clone()

    images, mask = torch.rand(2, 3, 32, 32), method.draw_mask(2)
    first, second = gradient(without=1), gradient(without=0)
    assert first.any() and second.any()
    assert_close(first + second, gradient(without=None))
    names = set(dict(method.backbone.model.blocks[0].attn.named_parameters()))
    assert names == {"q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias"}


def test_what_decays_with_other_positions() -> None:
    """Absolute ones never, relative ones always; the mask token with a ViT's weights and not with a Swin's."""
    for name, backbone, spared in (
        (VIT, {}, {"backbone.model.cls_token", "backbone.model.pos_embed"}),
        (BEIT, {}, {"backbone.model.cls_token"}),
        (BEIT, {"timm_args": PER_BLOCK}, {"backbone.model.cls_token"}),
        (BEIT, {"timm_args": ABSOLUTE}, {"backbone.model.cls_token", "backbone.model.pos_embed"}),
        (SWIN, {}, {"mask_token"}),
        (SWIN, {"absolute_positions": True}, {"mask_token", "backbone.model.absolute_pos_embed"}),
    ):
        method = simmim(name, backbone=backbone)
        names = {id(p): name for name, p in method.named_parameters()}
        decayed, plain = ({names[id(p)] for p in g["params"]} for g in parameter_groups(method, method.no_weight_decay))
        assert {n for n in plain if method.get_parameter(n).ndim > 1} == spared
        assert {n for n in names.values() if n.endswith("bias_table")} <= decayed


def test_a_step_is_adamws_on_gradients_clipped_at_five() -> None:
    """By hand: the first step of AdamW moves each weight by the rate, and by rate * 0.05 of itself where it decays."""
    method = simmim(SWIN)
    schedule = StepSchedule(method.optim, 2048, 100, 5)
    optimizer = build_optimizer(method, method.optim, method.no_weight_decay)
    (100 * method.loss([torch.randn(2, 3, 32, 32)])).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    assert norm > 5
    gradient = method.decoder.weight.grad.clone()
    clip_gradients(parameters, method.optim.clip, method.optim.clip_per)
    assert_close(method.decoder.weight.grad, gradient * 5 / norm)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    schedule.apply(optimizer, 60)
    rate = schedule.lr(60)
    optimizer.step()
    for name in ("decoder.weight", "mask_token"):
        decay = 0.0 if name == "mask_token" else 0.05
        direction = method.get_parameter(name).grad
        expected = before[name] * (1 - rate * decay) - rate * direction / (direction.abs() + 1e-8)
        assert_close(method.get_parameter(name), expected)


def test_rates_are_per_512_images_in_the_official_code() -> None:
    """2e-4 per 512 are 8e-4 for the published 2048; the recipes of 100 and of 800 epochs."""
    record = load("simmim_schedules")[0]["schedules"]
    for name, given in (
        ("cosine", {}),
        ("multistep", {"schedule": "steps_simmim", "base_lr": 5e-5, "warmup_lr": 2.5e-7, "min_lr": 0.0}),
    ):
        case = record[name]
        optim = simmim().optim
        optim = Optim(**{**vars(optim), **given, "warmup_epochs": case["warmup_epochs"]})
        optim = Optim(**{**vars(optim), "milestones": tuple(case["milestones"])})
        total = case["epochs"] * case["iters_per_epoch"]
        schedule = StepSchedule(optim, 2048, total, case["iters_per_epoch"])
        for step in range(total):
            assert schedule.lr(step) == pytest.approx(case["lr_at_update"][max(step - 1, 0)], rel=1e-9)


def test_loss_stays_exact_in_half_precision() -> None:
    method = simmim(SWIN)
    with torch.no_grad():
        method.decoder.weight.zero_()
        method.decoder.bias.zero_()
    images, mask = torch.randn(2, 3, 32, 32), method.draw_mask(2)
    exact = method.loss([images], mask=mask)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            loss = method.loss([images], mask=mask)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, exact)


def test_view_and_recipe() -> None:
    method = simmim()
    (view,) = method.views()
    assert (view.size, view.count, view.scale, view.flip, view.interpolation) == (32, 1, (0.67, 1.0), 0.5, "bilinear")
    assert (view.jitter, view.grayscale, view.blur, view.solarize) == (None, 0.0, 0.0, 0.0)
    assert method.standardize
    optim = method.optim
    assert (optim.name, optim.betas, optim.weight_decay, optim.weight_decay_end) == ("adamw", (0.9, 0.999), 0.05, None)
    assert (optim.scaling, optim.warmup_epochs, optim.clip, optim.clip_per) == ("linear", 10, 5.0, "model")
    assert (optim.schedule, optim.base_lr, optim.warmup_lr, optim.min_lr) == ("cosine_simmim", 1e-4, 5e-7, 5e-6)
    drops = [m for m in simmim(SWIN).modules() if type(m).__name__ == "DropPath"]
    assert not drops, "timm's Swins drop paths by default"


@pytest.mark.parametrize(
    ("name", "backbone", "given", "message"),
    [
        ("resnet_nano", {}, {}, "simmim needs a ViT or Swin.*simclr, byol, dino"),
        (VIT, {}, {"mask_ratio": 1.0}, "mask_ratio 1.0 must lie between 0 and 1"),
        (VIT, {}, {"mask_ratio": 0.97}, "mask_ratio 0.97 leaves none of 16 cells visible: try 0.6"),
        (VIT, {}, {"mask_cell": 12}, "mask_cell 12 must be a multiple of the patch's 4 px and divide .* 32 px: try 8$"),
        (VIT, {}, {"mask_cell": 6}, "mask_cell 6 must be a multiple"),
        (VIT, {}, {"mask_cell": 32}, "mask_cell 32 must.*: try 16"),
        (VIT, {}, {"mask_cell": 0}, "mask_cell 0 must.*: try 4"),
        (VIT, {"img_size": 16, "patch_size": 16}, {}, "16 px hold 1 of 16 px; at least 9"),
        (SWIN, {"img_size": 34}, {}, "img_size 34 is no multiple of an output token's 4 px: try 36"),
    ],
)
def test_what_cannot_be_is_refused(name: str, backbone: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        simmim(name, backbone={"img_size": 32} | backbone, **given)
    assert "\n" not in str(caught.value)
