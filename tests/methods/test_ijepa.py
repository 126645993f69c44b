"""I-JEPA against the official code: outputs, steps, schedules, and the statistics of its blocks."""

import math
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from official_steps import check_gradients, check_losses, check_state, our_name, renamed, take_steps
from small import GivenViews, trainer
from torch import Tensor

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.ijepa import IJEPA
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import StepSchedule

NAMES = {
    "encoder.": "backbone.model.",
    "target_encoder.": "teacher.module.model.",
    "predictor.predictor": "predictor",
    "predictor.": "",
}
PLAIN = {"class_token": False, "global_pool": "avg"}


def network(size: int = 32, patch: int = 4, **given: Any) -> Backbone:
    sizes: dict[str, Any] = {"width": 24, "depth": 1, "num_heads": 3, "timm_args": PLAIN}
    return Backbone(BackboneOptions("vit_tiny_patch16_224", img_size=size, patch_size=patch, **sizes | given))


def ijepa(size: int = 32, patch: int = 4, **given: Any) -> IJEPA:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"predictor_dim": 12, "predictor_depth": 1, "min_keep": 4}
    return IJEPA(network(size, patch), **sizes | given)


# The official code


def official() -> tuple[IJEPA, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load("ijepa_step")
    c = record["config"]
    backbone = network(
        c["img"],
        c["patch"],
        width=c["dim"],
        depth=c["depth"],
        num_heads=c["heads"],
        timm_args={"mlp_ratio": c["mlp"], **PLAIN},
    )
    rates = {"base_lr": c["lr"], "warmup_lr": c["start_lr"], "min_lr": c["final_lr"], "scaling": "none"}
    decays = {"weight_decay": c["wd"], "weight_decay_end": c["wd_end"]}
    method = IJEPA(
        backbone,
        predictor_dim=c["pdim"],
        predictor_depth=c["pdepth"],
        target_blocks=c["npred"],
        target_scale=tuple(c["pred_scale"]),
        target_aspect=tuple(c["ar"]),
        context_scale=tuple(c["enc_scale"]),
        min_keep=c["min_keep"],
        momentum=c["ema"][0],
        optim=Optim("adamw", schedule="cosine_ahead", warmup_epochs=c["warm"], **rates, **decays),
    )
    return method, record, tensors


def blocks(tensors: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    targets = [tensors[name] for name in sorted(tensors) if name.startswith(f"in.step{step}.masks_pred")]
    return {"context": tensors[f"in.step{step}.masks_enc0"], "targets": torch.stack(targets, dim=1)}


def test_context_targets_predictions_and_loss_of_the_official_code() -> None:
    method, record, tensors = official()
    method.load_state_dict(renamed(weights(tensors, "w."), NAMES), strict=False)
    images, given = tensors["in.step0.images"], blocks(tensors, 0)
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    encoded = method.backbone.tokens(images, keep=given["context"])
    assert_close(encoded, tensors["out.context"], noise["out.context"])
    wanted = method.wanted(images)
    assert_close(wanted, tensors["out.target_all"], noise["out.target_all"])
    chosen = wanted.take_along_dim(given["targets"].flatten(1)[..., None], 1).unflatten(1, given["targets"].shape[1:])
    assert_close(chosen.transpose(0, 1).flatten(0, 1), tensors["out.targets"], noise["out.targets"])
    predicted = method.predict(encoded, **given)
    assert_close(predicted.transpose(0, 1).flatten(0, 1), tensors["out.predictions"], noise["out.predictions"])
    assert_close(method.loss([images], **given), record["loss_float64"])
    assert record["share_of_elements_beyond_1"] > 0.3  # so that squared distance is another number
    assert abs(record["mse_float64"] - record["loss_float64"]) > 1


def test_two_steps_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, AdamW, rate and decay a step ahead, the teacher after the step with a momentum on a line."""
    method, record, tensors = official()
    c = record["config"]
    drawn = iter([0, 1] * c["epochs"])
    monkeypatch.setattr(method, "draw_blocks", lambda _: tuple(blocks(tensors, next(drawn)).values()))
    decays: list[list[float]] = []
    step = method.optimizer_step

    def noted(*given: Any, **named: Any) -> None:
        step(*given, **named)
        decays.append([group["weight_decay"] for group in method.trainer.optimizers[0].param_groups])

    monkeypatch.setattr(method, "optimizer_step", noted)
    images = [[tensors[f"in.step{step}.images"]] for step in range(c["L"])]
    start = renamed(weights(tensors, "w."), NAMES)
    steps = take_steps(method, images, start, 0, c["run_epochs"] * c["L"], c["epochs"])
    check_losses(record, steps.losses)
    assert [rates[0] for rates in steps.rates] == pytest.approx(record["step_lr"])
    assert [decay[0] for decay in decays[:2]] == pytest.approx(record["step_wd"])
    assert all(decay[1] == 0 for decay in decays)
    check_gradients(record, tensors, NAMES, steps.gradients)
    sums = {n: s for n, s in record["after_checks_float64"].items() if not n.endswith("qkv.bias")}  # keys': rounding
    assert check_state(record | {"after_checks_float64": sums}, tensors, NAMES, steps.after) == 84


def test_schedules_of_the_official_code() -> None:
    method, record, _ = official()
    c = record["config"]
    total = c["epochs"] * c["L"]
    schedule = StepSchedule(method.optim, 3, total, c["L"])
    assert [schedule.lr(step) for step in range(total)] == pytest.approx(record["lr_schedule"])
    assert [schedule.weight_decay(step) for step in range(total)] == pytest.approx(record["wd_schedule"])
    momenta = [method.teacher.momentum_at(step, total) for step in range(2)]
    assert momenta == pytest.approx(record["step_momentum"])
    assert method.teacher.momentum_at(total, total) == 1.0


def test_initial_weights_are_those_of_the_official_code() -> None:
    torch.manual_seed(0)
    method = IJEPA(network(32, 4, width=192, depth=2), predictor_dim=96, predictor_depth=2, min_keep=4)
    record = load("init_statistics")[0]["methods"]["ijepa"]["parameters"]
    own = dict(method.named_parameters())
    for name, (mean, std, _, shape, learns) in record.items():
        parameter = own[our_name(name, NAMES)].detach()
        count = parameter.numel()
        assert list(parameter.shape) == shape and own[our_name(name, NAMES)].requires_grad == learns
        assert abs(parameter.mean().item() - mean) <= 6 * std / math.sqrt(count) + 1e-9, name
        assert parameter.std().item() == pytest.approx(std, rel=6 / math.sqrt(2 * count), abs=1e-9), name
    assert len(record) > 20


def test_defaults_are_those_of_the_official_configuration() -> None:
    method = IJEPA(network(224, 16))
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.betas) == ("adamw", 1e-3, "none", (0.9, 0.999))
    assert (optim.warmup_epochs, optim.warmup_lr, optim.min_lr) == (40, 2e-4, 1e-6)
    assert (optim.weight_decay, optim.weight_decay_end, optim.clip) == (0.04, 0.4, None)
    assert (method.teacher.momentum, method.teacher.final_momentum, method.teacher.linear) == (0.996, 1.0, True)
    assert (method.target_blocks, method.min_keep, len(method.predictor_blocks)) == (4, 10, 12)
    assert method.predictor_embed.out_features == 384
    assert method.predictor_blocks[0].attn.num_heads == 3  # the encoder's
    (view,) = method.views()
    assert (view.size, view.count, view.scale, view.interpolation) == (224, 1, (0.3, 1.0), "bilinear")
    assert (view.flip, view.jitter, view.grayscale, view.blur) == (0.0, None, 0.0, 0.0)
    decayed = {id(p) for p in method.parameter_groups()[0]["params"]}
    assert id(method.mask_token) in decayed
    assert method.evaluated is method.teacher.module
    assert method.evaluated.primary_feature_type == "avg"


# Blocks


@pytest.mark.parametrize(
    ("name", "size", "patch", "min_keep"),
    [
        ("14x14 official (ViT-L/16, 224)", 224, 16, 10),
        ("16x16 official (ViT-H/14, 224)", 224, 14, 10),
        ("8x8 (CIFAR, patch 4), min_keep 4", 32, 4, 4),
    ],
)
def test_statistics_of_blocks_are_the_official_codes(
    name: str, size: int, patch: int, min_keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load("ijepa_step")[0]["mask_statistics"][name]
    method, grid = ijepa(size, patch, min_keep=min_keep), size // patch
    contexts, lengths, shapes = [], [], set()
    used = torch.zeros(grid**2, dtype=torch.bool)
    for step in range(300):
        monkeypatch.setattr(type(method), "global_step", step)
        context, targets = method.draw_blocks(expected["batch"])
        contexts.append(context.shape[1])
        lengths.append(targets.shape[2])
        used[context.flatten()] = used[targets.flatten()] = True
        rows, columns = targets[0, 0] // grid, targets[0, 0] % grid
        shapes.add((int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1))
    assert sorted(map(list, shapes)) == expected["target_block_sizes_hw"]
    assert sum(contexts) / len(contexts) == pytest.approx(expected["context_len_mean"], rel=0.04)
    assert sum(lengths) / len(lengths) == pytest.approx(expected["target_len_mean"], rel=0.03)
    assert min(contexts) > min_keep
    places = used.view(grid, grid)
    assert not places[-1].any() and not places[:, -1].any()  # the official quirk
    assert places[:-1, :-1].all()


def test_blocks_of_the_whole_grid_reach_the_last_row_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ijepa(whole_grid=True)
    used = torch.zeros(64, dtype=torch.bool)
    for step in range(40):
        monkeypatch.setattr(type(method), "global_step", step)
        context, targets = method.draw_blocks(8)
        used[context.flatten()] = used[targets.flatten()] = True
    assert used.all()


def test_a_context_leaves_out_the_targets_of_its_own_image_alone() -> None:
    method = ijepa(224, 16, min_keep=10)
    context, targets = method.draw_blocks(16)
    shared = [
        [bool(set(c.tolist()) & set(t.flatten().tolist())) for c, t in zip(context, of, strict=True)]
        for of in (targets, targets.roll(1, 0))
    ]
    assert not any(shared[0])
    assert all(shared[1])
    assert (context.diff(dim=1) > 0).all() and (targets.diff(dim=2) > 0).all()  # in order, each once


def test_targets_become_visible_where_nothing_else_is_left() -> None:
    """Blocks that cover the grid: after some tries, the last one no longer counts."""
    method = ijepa(target_blocks=12, target_scale=(0.4, 0.6))
    context, targets = method.draw_blocks(32)
    assert context.shape[1] > method.min_keep
    assert targets.shape[:2] == (32, 12)


def test_blocks_have_one_size_per_step_and_places_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ijepa(224, 16, min_keep=10)
    sizes = []
    for step in (0, 1, 2, 3, 0):
        monkeypatch.setattr(type(method), "global_step", step)
        _, targets = method.draw_blocks(4)
        assert len({tuple(block.tolist()) for block in targets.flatten(0, 1)}) > 8
        sizes.append(targets.shape[2])
    assert sizes[0] == sizes[-1] and len(set(sizes)) > 1


def test_masks_hide_all_but_the_context() -> None:
    method = ijepa()
    torch.manual_seed(3)
    context, _ = method.draw_blocks(4)
    torch.manual_seed(3)
    mask = method.masks(4)
    assert mask.shape == (1, 4, 64)
    assert ((~mask[0]).nonzero()[:, 1].view(4, -1) == context).all()


# The loss


def test_prediction_of_a_block_knows_its_place_and_nothing_of_the_others() -> None:
    method = ijepa().eval()
    images = torch.rand(2, 3, 32, 32)
    context, targets = method.draw_blocks(2)
    with torch.no_grad():
        encoded = method.backbone.tokens(images, keep=context)
        both = method.predict(encoded, context, targets)
        alone = method.predict(encoded, context, targets[:, 1:2])
        assert_close(both[:, 1:2], alone, noise=1e-7)
        moved = method.predict(encoded, context, (targets + 1) % 64)
    assert (moved - both).abs().max() > 1e-4


def test_target_is_normalised_after_the_teachers_own_norm_without_scale_and_offset() -> None:
    method = ijepa()
    with torch.no_grad():
        method.teacher.module.model.norm.weight.normal_(1, 0.5)  # type: ignore[union-attr]
        method.teacher.module.model.norm.bias.normal_()  # type: ignore[union-attr]
    images = torch.rand(2, 3, 32, 32)
    tokens = method.teacher.module.tokens(images).detach().double()  # type: ignore[operator]
    deviation = tokens.var(-1, correction=0, keepdim=True)
    assert_close(method.wanted(images), (tokens - tokens.mean(-1, keepdim=True)) / (deviation + 1e-5).sqrt())
    assert not method.wanted(images).requires_grad


def test_loss_is_float32_in_half_precision() -> None:
    method = ijepa()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss([torch.rand(2, 3, 32, 32)])
        wanted = method.wanted(torch.rand(2, 3, 32, 32))
    assert loss.dtype == wanted.dtype == torch.float32


def test_teacher_follows_after_the_step() -> None:
    optim = Optim("sgd", base_lr=0.1, scaling="none", weight_decay=0.0, momentum=0.0, warmup_epochs=0)
    method = ijepa(momentum=0.5, optim=optim)
    before = {name: p.clone() for name, p in method.backbone.named_parameters()}
    trainer().fit(method, datamodule=GivenViews([[torch.rand(4, 3, 32, 32)]]))
    for name, own in method.teacher.module.named_parameters():
        assert_close(own, 0.5 * before[name] + 0.5 * method.backbone.get_parameter(name), noise=1e-8)
    assert any(not torch.equal(before[name], p) for name, p in method.backbone.named_parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_keep": 10}, r"--method.target_scale \(0.15, 0.2\): a block of 8x8 patches can have 9"),
        ({"context_scale": (0.01, 0.1)}, r"--method.context_scale \(0.01, 0.1\)"),
        ({"predictor_dim": 16}, r"--method.predictor_dim 16 is no multiple of its 3 heads"),
    ],
)
def test_unusable_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ijepa(**given)


def test_networks_that_do_not_fit_are_refused() -> None:
    for name in ("resnet_nano", "swin_pico_patch2_32", "beit_pico_patch4_32"):
        with pytest.raises(UserError, match="ijepa needs a ViT with absolute positions"):
            IJEPA(Backbone(BackboneOptions(name, img_size=32)))
    with pytest.raises(UserError, match="without class token and registers: --backbone.timm_args"):
        IJEPA(Backbone(BackboneOptions("vit_pico_patch4_32")))
