"""CAE against the official code on a tiny network, and what its parts may and may not see."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from safetensors.torch import save_file
from small import GivenViews, trainer, views_of
from torch import Tensor

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.cae import CAE
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.cae_regressor import PretextNeck, RegressorBlock
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.patches import sincos_positions
from ssl_bench.optim.optimizers import parameter_groups
from ssl_bench.pretraining.masks import block_masks

BEIT = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "init_values": 0.1}  # as the official encoder


def cae(seed: int = 0, name: str = "beit_base_patch16_224", img_size: int = 32, **given: Any) -> CAE:
    torch.manual_seed(seed)
    options = BackboneOptions(
        name, img_size, patch_size=4, width=32, depth=2, num_heads=4, timm_args=BEIT if "beit" in name else None
    )
    sizes = {"decoder_dim": 32, "regressor_depth": 2, "decoder_depth": 1, "decoder_heads": 4}
    return CAE(Backbone(options), **sizes | given)


# The official code


Golden = tuple[CAE, dict[str, Any], dict[str, Tensor]]


def golden_method(record: dict[str, Any], **given: Any) -> CAE:
    c = record["config"]
    options = BackboneOptions(
        "beit_base_patch16_224",
        img_size=c["img"],
        patch_size=c["patch"],
        width=c["dim"],
        depth=c["depth"],
        num_heads=c["heads"],
        timm_args={**BEIT, "mlp_ratio": c["mlp"], "init_values": c["gamma"]},
    )
    method = CAE(
        Backbone(options),
        decoder_dim=c["ddim"],
        regressor_depth=c["rdep"],
        decoder_depth=c["ddep"],
        decoder_heads=c["dheads"],
        layer_scale=c["dgamma"],
        align_weight=c["align"],
        **given,
    )
    method.pretext_neck.head = torch.nn.Linear(c["ddim"], c["K"])  # visual tokens without a tokenizer
    return method


def ours(official: str) -> str:
    """The name of an official parameter here."""
    return official.replace("encoder.", "backbone.model.", 1) if official.startswith("encoder.") else official


@pytest.fixture
def golden() -> Golden:
    record, tensors = load("cae_pretrain")
    torch.manual_seed(0)
    method = golden_method(record, stale_target=True)
    official = {ours(name): value for name, value in weights(tensors, "w.").items()}
    for name, value in weights(tensors, "t.teacher.").items():
        official[f"teacher.model.{name}"] = value
    official["teacher.model.pos_embed"] = official["backbone.model.pos_embed"]
    method.load_state_dict(official)
    return method, record, tensors


def test_outputs_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    noise = {name: value["max_abs"] for name, value in record["noise"].items()}
    keep, hidden = method.split_patches(2, tensors["mask"].bool())
    encoded = method.backbone.tokens(tensors["images"], keep=keep)
    assert_close(encoded, tensors["out.encoder_visible"], noise["encoder_visible"])
    latent, logits = method.predict(tensors["images"], keep, hidden)
    assert_close(latent, tensors["out.latent_pred"], noise["latent_pred"])
    assert_close(logits.flatten(0, 1), tensors["out.logits"], noise["logits"])
    target = method.encode_hidden(tensors["images"], hidden)
    assert_close(target, tensors["out.latent_target"], noise["latent_target"])
    assert not target.requires_grad


def test_loss_and_gradients_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    drawn = {"mask": tensors["mask"].bool(), "visual_tokens": tensors["token_ids"]}
    loss = method.loss([tensors["images"]], **drawn)
    loss.backward()
    assert_close(loss, record["losses_float64"]["loss"])
    for official, norm in record["grad_norms_float64"].items():
        name = ours(official).replace("teacher.", "teacher.model.")
        gradient = method.get_parameter(name).grad
        assert (gradient is None) == (norm is None), official
        if gradient is not None:
            assert_close(gradient.norm(), norm, noise=abs(norm - record["grad_norms"][official]) + 1e-9)
    for official, expected in weights(tensors, "grad.").items():
        gradient = method.get_parameter(ours(official)).grad
        assert gradient is not None
        assert_close(gradient, expected)
    method.align_weight = 0.0
    assert_close(method.loss([tensors["images"]], **drawn), record["losses_float64"]["loss_main"])


def test_alignment_alone_teaches_the_encoder_as_in_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    keep, hidden = method.split_patches(2, tensors["mask"].bool())
    latent, _ = method.predict(tensors["images"], keep, hidden)
    align = torch.nn.functional.mse_loss(latent, method.encode_hidden(tensors["images"], hidden))
    assert_close(align, record["losses_float64"]["loss_align"] / record["config"]["align"])
    (record["config"]["align"] * align).backward()
    for official, norm in record["grad_norms_alignment_only"].items():
        name = ours(official).replace("teacher.", "teacher.model.")
        gradient = method.get_parameter(name).grad
        assert (gradient is None) == (norm is None), official
        if gradient is not None:
            assert_close(gradient.norm(), norm, noise=1e-8)


def test_what_learns_and_what_decays_in_the_official_code() -> None:
    record, _ = load("cae_pretrain")
    method = golden_method(record)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {ours(name) for name in record["frozen_params"]}
    names = {id(p): name for name, p in method.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(method))
    official = {g["weight_decay"]: {ours(name) for name in g["params"]} for g in record["weight_decay_groups"]}
    assert (decayed, plain) == (official[method.optim.weight_decay], official[0.0])


def test_initialisation_of_the_official_code() -> None:
    """Deviation within what chance allows at each size, and the bounds of the distributions."""
    record, _ = load("cae_pretrain")
    torch.manual_seed(0)
    fresh = golden_method(record)
    fresh.pretext_neck.head = torch.nn.Linear(record["config"]["ddim"], record["config"]["K"])
    fresh._initialize()
    for official, (mean, std, largest) in record["param_init_mean_std_absmax"].items():
        values = fresh.get_parameter(ours(official)).detach()
        if std == 0:
            assert (values == mean).all(), official
            continue
        if official == "encoder.pos_embed":
            assert_close(values.std(), std)
            continue
        assert values.std().item() == pytest.approx(std, rel=4 / values.numel() ** 0.5), official
        assert values.mean().abs() < 5 * std / values.numel() ** 0.5, official
        assert values.abs().max().item() == pytest.approx(largest, rel=4 / values.numel() ** 0.5), official


# What its parts see


def test_masks_are_blocks_of_exactly_half(monkeypatch: pytest.MonkeyPatch) -> None:
    method = cae(img_size=56)  # 14 x 14 patches
    drawn: list[tuple[Tensor, dict[str, Any]]] = []

    def recorded(*args: Any, **given: Any) -> Tensor:
        drawn.append((block_masks(*args, **given), given))
        return drawn[-1][0]

    monkeypatch.setattr("ssl_bench.methods.cae.block_masks", recorded)
    keep, hidden = method.split_patches(1000)
    mask, given = drawn[0]
    assert given["min_area"] == 16
    assert (mask.sum(1) == 98).all()
    assert torch.equal(hidden, mask.nonzero()[:, 1].view(1000, 98))  # in the image's order
    assert torch.equal(keep, (~mask).nonzero()[:, 1].view(1000, 98))
    monkeypatch.undo()
    assert cae(mask_ratio=0.4).split_patches(2)[1].shape == (2, 26)


def test_hidden_patches_are_seen_by_the_target_alone_and_visible_ones_by_the_prediction_alone() -> None:
    method = cae()
    images = views_of(method, 2)[0]
    keep, hidden = method.split_patches(2)
    mask = torch.zeros(2, 64, dtype=torch.bool).scatter(1, hidden, True)
    pixels = mask.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for where, same, other in ((pixels, "prediction", "target"), (~pixels, "target", "prediction")):
        changed = torch.where(where, torch.randn_like(images), images)
        outputs = {
            "prediction": [torch.cat(method.predict(x, keep, hidden), 2) for x in (images, changed)],
            "target": [method.encode_hidden(x, hidden) for x in (images, changed)],
        }
        assert torch.equal(*outputs[same])
        assert not torch.allclose(*outputs[other])


def test_hidden_patches_are_encoded_where_they_lie_beside_a_class_token() -> None:
    method = cae(name="vit_tiny_patch16_224")
    images = views_of(method, 1)[0]
    _, hidden = method.split_patches(1)
    vit = method.backbone.model
    table = sincos_positions(32, 8, "moco")
    tokens = [vit.cls_token[0, 0]]
    for n in hidden[0].tolist():
        row, column = divmod(n, 8)
        cell = images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        tokens.append((vit.patch_embed.proj.weight * cell).sum((1, 2, 3)) + vit.patch_embed.proj.bias + table[n])
    expected = vit.norm(vit.blocks(torch.stack(tokens)[None]))[:, 1:]
    torch.testing.assert_close(method.encode_hidden(images, hidden), expected.detach())


def test_the_decoder_sees_hidden_patches_alone() -> None:
    neck = PretextNeck(dim=16, outputs=5, regressor_depth=1, decoder_depth=2, num_heads=2)
    seen: list[torch.Size] = []
    for block in neck.decoder_blocks:
        block.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    token, visible, positions = torch.randn(1, 1, 16), torch.randn(2, 7, 16), torch.randn(2, 10, 16)
    latent, outputs = neck(token, visible, positions[:, :7], positions[:, 7:])
    assert seen == [(2, 3, 16), (2, 3, 16)]
    decoded = latent + positions[:, 7:]
    for block in neck.decoder_blocks:
        decoded = block(decoded)
    torch.testing.assert_close(outputs, neck.head(neck.norm2(decoded)))


def regressor() -> tuple[RegressorBlock, list[Tensor]]:
    """A block that is far from its start, and inputs: hidden, visible, positions of both."""
    torch.manual_seed(0)
    block = RegressorBlock(16, 2, mlp_ratio=2.0, layer_scale=0.5, drop_path=0.0)
    for parameter in block.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return block, [torch.randn(2, count, 16) for count in (3, 7, 3, 7)]


def test_the_regressors_mlp_is_added_to_what_is_normalised() -> None:
    block, (x, visible, positions, visible_positions) = regressor()
    context = torch.cat([visible, x], 1)
    keys = block.norm1_k(context + torch.cat([visible_positions, positions], 1))
    attended = block.cross_attn(block.norm1_q(x + positions), keys, block.norm1_v(context))
    normal = block.norm2_cross(x + block.gamma_1_cross * attended)
    expected = normal + block.gamma_2_cross * block.mlp_cross(normal)
    torch.testing.assert_close(block(x, visible, positions, visible_positions), expected)
    block.gamma_2_cross.data.zero_()
    torch.testing.assert_close(block(x, visible, positions, visible_positions), normal)


def test_values_have_no_positions() -> None:
    block, (x, visible, positions, visible_positions) = regressor()
    with_positions = block(x, visible, positions, visible_positions)
    assert not torch.allclose(with_positions, block(x, visible, positions, visible_positions.flip(1)))
    block.cross_attn.k.weight.data.zero_()  # all keys the same: positions have no way in but by the values
    given = block(x, visible, positions, visible_positions)
    torch.testing.assert_close(given, block(x, visible, 5 * positions, -visible_positions))


def test_cross_attention_head_by_head() -> None:
    block, (x, visible, _, _) = regressor()
    attention = block.cross_attn
    expected = []
    for image in range(2):
        rows = []
        for query in x[image]:
            heads = []
            for head in (slice(0, 8), slice(8, 16)):
                q = (attention.q.weight @ query + attention.q_bias)[head]
                scores = torch.stack([q @ (attention.k.weight @ key)[head] / 8**0.5 for key in visible[image]])
                values = [(attention.v.weight @ key + attention.v_bias)[head] for key in visible[image]]
                heads.append(sum(a * v for a, v in zip(scores.softmax(0), values, strict=True)))
            rows.append(attention.proj(torch.cat(heads)))
        expected.append(torch.stack(rows))
    for fused in (True, False):
        attention.fused_attn = fused
        torch.testing.assert_close(attention(x, visible, visible), torch.stack(expected))


# Targets


def test_the_stale_target_is_one_step_old() -> None:
    method = cae(stale_target=True, optim=Optim("adamw", warmup_epochs=0))
    assert not any(p.requires_grad for p in method.teacher.parameters())
    student: list[Tensor] = []  # before each step
    teacher: list[Tensor] = []  # as each loss sees it
    loss = method.loss

    def recorded(views: list[Tensor], **drawn: Any) -> Tensor:
        student.append(method.backbone.model.cls_token.detach().clone())
        teacher.append(method.teacher.model.cls_token.detach().clone())
        return loss(views, **drawn)

    method.loss = recorded  # type: ignore[method-assign]
    batches = [views_of(method, 2, seed=seed) for seed in range(8)]
    trainer(accumulate_grad_batches=2).fit(method, datamodule=GivenViews(batches))
    steps_student, steps_teacher = student[::2], teacher[::2]
    assert all(torch.equal(a, b) for a, b in zip(student[1::2], steps_student, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(teacher[1::2], steps_teacher, strict=True))
    assert torch.equal(steps_teacher[0], steps_student[0])
    for step in range(1, 4):
        assert torch.equal(steps_teacher[step], steps_student[step - 1])
        assert not torch.equal(steps_teacher[step], steps_student[step])
    assert torch.equal(method.teacher.model.cls_token, steps_student[3])


def test_the_target_is_the_current_encoders_by_default_and_drops_paths() -> None:
    method = cae()
    images = views_of(method, 2)[0]
    _, hidden = method.split_patches(2)
    before = method.encode_hidden(images, hidden)
    assert not before.requires_grad
    method.backbone.model.norm.weight.data *= 2
    assert not torch.allclose(method.encode_hidden(images, hidden), before)
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32", drop_path=0.5))
    dropping = CAE(backbone, decoder_dim=48, decoder_heads=3).train()
    assert not torch.equal(*(dropping.encode_hidden(images, hidden) for _ in range(2)))
    rates = [block.drop_path.drop_prob for block in dropping.pretext_neck.regressor_blocks]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])


def test_another_width_goes_through_a_layer_that_the_target_shares() -> None:
    method = cae(decoder_dim=24)
    images = views_of(method, 2)[0]
    keep, hidden = method.split_patches(2)
    tokens = method.backbone.tokens(images, keep=hidden)[:, 1:]
    expected = method.encoder_to_decoder_norm(method.encoder_to_decoder(tokens))
    torch.testing.assert_close(method.encode_hidden(images, hidden), expected.detach())
    latent, predicted = method.predict(images, keep, hidden)
    assert latent.shape == (2, 32, 24) and predicted.shape == (2, 32, 48)
    method.loss([images]).backward()
    assert method.encoder_to_decoder.weight.grad.abs().sum() > 0
    assert not hasattr(cae(), "encoder_to_decoder")


def test_words_are_those_of_the_hidden_patches_in_their_order() -> None:
    method = cae()
    visual_tokens = torch.arange(128).view(2, 64) % 48
    _, hidden = method.split_patches(2)
    right = torch.nn.functional.one_hot(visual_tokens.gather(1, hidden), 48) * 100.0
    images = torch.zeros(2, 3, 32, 32)
    assert method.pretext(right, images, hidden, visual_tokens) == 0
    assert method.pretext(right.flip(1), images, hidden, visual_tokens) > 10


def test_pixels_are_normalised_per_patch() -> None:
    method = cae(tokenizer="pixels")
    images = views_of(method, 2)[0].double()
    _, hidden = method.split_patches(2)
    predicted = torch.randn(2, 32, 48, dtype=torch.float64)
    total = 0.0
    for i in range(2):
        for m, n in enumerate(hidden[i].tolist()):
            row, column = divmod(n, 8)
            cell = images[i, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float().double()
            cell = (cell - cell.mean()) / (cell.var() + 1e-6) ** 0.5
            total += ((predicted[i, m].view(4, 4, 3).permute(2, 0, 1) - cell) ** 2).mean().item() / 64
    assert method.pretext(predicted, images, hidden).item() == pytest.approx(total, rel=1e-5)


def test_words_of_a_tokenizer_do_not_depend_on_how_views_are_normalised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = DiscreteVAE(vocabulary=11, dim=8, hidden_dim=8, layers=2, blocks=1)
    (tmp_path / "tokenizer.json").write_text(json.dumps(vae.spec))
    save_file(vae.state_dict(), tmp_path / "tokenizer.safetensors")
    pixels = torch.rand(2, 3, 32, 32)
    statistics = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    method = cae(tokenizer=str(tmp_path), statistics=statistics)
    visual_tokens = method.tokenizer((pixels - mean) / std)
    assert torch.equal(visual_tokens, vae.visual_tokens(pixels).flatten(1))
    with torch.autocast("cpu", torch.bfloat16):  # in which many visual tokens would be others
        assert torch.equal(method.tokenizer((pixels - mean) / std), visual_tokens)
    assert method.pretext_neck.head.out_features == 11
    drawn = {"mask": torch.zeros(2, 64, dtype=torch.bool).index_fill(1, torch.arange(0, 64, 2), True)}
    views = [(pixels - mean) / std]
    assert torch.equal(method.loss(views, **drawn), method.loss(views, visual_tokens=visual_tokens, **drawn))
    assert not any(name.startswith("tokenizer") for name in method.state_dict())
    assert not any(name.startswith("tokenizer") for name, _ in method.named_parameters())


# Options


def test_fix_init_makes_deep_layers_smaller() -> None:
    """As the official constructor: rescaled in encoder, regressor and decoder, `encoder_to_decoder` left alone."""
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32", depth=4, width=96))
    method = CAE(backbone, decoder_dim=144, decoder_heads=3, fix_init=True)
    neck = method.pretext_neck
    cut = 0.02 * 0.53956  # of a normal distribution cut at one deviation
    for blocks in (method.backbone.model.blocks, neck.decoder_blocks, neck.regressor_blocks):
        for number, block in enumerate(blocks, 1):
            regresses = isinstance(block, RegressorBlock)
            attention, mlp = (block.cross_attn, block.mlp_cross) if regresses else (block.attn, block.mlp)
            for weight in (attention.proj.weight, mlp.fc2.weight):
                assert weight.std().item() == pytest.approx(cut / (2 * number) ** 0.5, rel=0.05)
                assert weight.abs().max() <= 0.02 / (2 * number) ** 0.5
            for plain in (attention.q, attention.k, attention.v) if regresses else (attention.qkv,):
                assert plain.weight.std().item() == pytest.approx(cut, rel=0.05)
            assert mlp.fc1.weight.std().item() == pytest.approx(cut, rel=0.05)
            assert not attention.proj.bias.any() and not mlp.fc2.bias.any()
    assert neck.head.weight.std().item() == pytest.approx(cut, rel=0.05)
    bound = 96**-0.5  # PyTorch's: uniform between the inverse root of the inputs, the bias likewise
    for tensor in (method.encoder_to_decoder.weight, method.encoder_to_decoder.bias):
        assert tensor.abs().max() <= bound and tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert method.encoder_to_decoder.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_without_fix_init_every_linear_is_xaviers() -> None:
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32", width=96))
    method = CAE(backbone, decoder_dim=144, decoder_heads=3)
    linears = {name: module for name, module in method.named_modules() if isinstance(module, torch.nn.Linear)}
    assert "encoder_to_decoder" in linears
    for module in linears.values():
        bound = (6 / (module.in_features + module.out_features)) ** 0.5
        assert module.weight.abs().max() <= bound
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert module.bias is None or not module.bias.any()


def test_without_layer_scale_nothing_scales() -> None:
    method = cae(layer_scale=0.0)
    block = method.pretext_neck.regressor_blocks[0]
    assert (block.gamma_1_cross == 1).all() and not block.gamma_1_cross.requires_grad
    assert method.pretext_neck.decoder_blocks[0].gamma_1 is None
    method.loss(views_of(method, 2)).backward()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask_ratio": 1.0}, "--method.mask_ratio 1.0"),
        ({"mask_ratio": 0.0}, "--method.mask_ratio 0.0"),
        ({"decoder_heads": 5}, "no multiple of decoder_heads 5"),
        ({"tokenizer": "nothing"}, "no tokenizer nothing"),
    ],
)
def test_mistakes_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        cae(**given)
    assert "\n" not in str(refusal.value)
