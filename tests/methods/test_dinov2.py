"""DINOv2 against the official code: steps of both recipes, its losses, masks and stochastic depth; and loops."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from official_steps import check_gradients, check_state, our_name, renamed, take_steps
from small import views_of
from timm.models.vision_transformer import Block
from torch import Tensor

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.dinov2 import DINOv2, DropSamples, koleo
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dino_head import DINOHead
from ssl_bench.models.sinkhorn import sinkhorn
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer
from ssl_bench.optim.schedules import warmed_up

NAMES: dict[str, str] = {}
for _network, _ours in (("student.", ""), ("teacher.", "teacher.module."), ("", "")):
    NAMES |= {
        f"{_network}backbone.mask_token": f"{_ours}mask_token",
        f"{_network}backbone.register_tokens": f"{_ours}backbone.model.reg_token",
        f"{_network}backbone.": f"{_ours}backbone.model.",
        f"{_network}dino_head.": f"{_ours}head.",
        f"{_network}ibot_head.": f"{_ours}patch_head.",
    }
NAMES = {"dino_loss.": "centre.", "ibot_patch_loss.": "centre2.", **NAMES}
CASES = pytest.mark.parametrize("case", ["dinov2_step", "dinov2_step_shared"])


def dinov2(backbone: str = "vit_pico_patch4_32", args: dict[str, Any] | None = None, **given: Any) -> DINOv2:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"prototypes": 16, "hidden_dim": 24, "bottleneck_dim": 12, "local_views": 2}
    return DINOv2(Backbone(BackboneOptions(backbone, img_size=32, timm_args=args)), **sizes | given)


# The official code


def official(case: str) -> tuple[DINOv2, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load(case)
    c = record["config"]
    args = {"mlp_ratio": c["mlp"], "init_values": c["ls"], "reg_tokens": c["reg"]}
    size = {"patch_size": c["patch"], "width": c["dim"], "depth": c["depth"], "num_heads": c["heads"]}
    own = {"patch_prototypes": c["Kp"], "patch_bottleneck_dim": c["bot_i"]} if c["separate"] else {}
    rates = {"base_lr": c["lr"], "min_lr": c["min_lr"], "scaling": "none", "clip": c["clip"]}
    decays = {"weight_decay": c["wd"], "weight_decay_end": c["wd_end"]}
    method = DINOv2(
        Backbone(BackboneOptions("vit_tiny_patch16_224", img_size=c["img"], timm_args=args, **size)),
        prototypes=c["K"],
        separate_head=c["separate"],
        hidden_dim=c["hid"],
        bottleneck_dim=c["bot"],
        targets="sinkhorn" if c["centering"] == "sinkhorn_knopp" else c["centering"],
        cls_weight=c["wdino"],
        patch_weight=c["wibot"],
        koleo_weight=c["koleo"],
        teacher_temp=c["tt"],
        warmup_teacher_temp=c["wt"],
        warmup_teacher_temp_epochs=c["wte"],
        momentum=c["m"],
        freeze_last_layer=c["freeze"],
        layer_decay=c["lld"],
        patch_lr=c["pem"],
        local_views=c["nloc"],
        local_size=c["loc"],
        optim=Optim("adamw", schedule="cosine_dino", warmup_epochs=c["warm"], **rates, **decays),
        **own,
    )
    return method, record, tensors


def start_of(tensors: dict[str, Tensor], c: dict[str, Any]) -> dict[str, Tensor]:
    """Official state under our names, with the positions of nothing for registers."""
    found = renamed(weights(tensors, "w."), NAMES)
    found.pop("teacher.module.mask_token")  # which no teacher uses
    for name in [name for name in found if name.endswith("pos_embed")]:
        first, rest = found[name].tensor_split([1], dim=1)
        found[name] = torch.cat([first, first.new_zeros(1, c["reg"], first.shape[2]), rest], dim=1)
    found["centre2.center"] = found["centre2.center"][0]
    if c["centering"] != "centering":
        del found["centre.center"], found["centre2.center"]
    return found


def official_positions(ours: dict[str, Tensor], registers: int) -> dict[str, Tensor]:
    """Ours with positions as in the official code; what registers have must be 0."""
    found = dict(ours)
    for name in [name for name in found if name.endswith("pos_embed")]:
        first, own, rest = found[name].tensor_split([1, 1 + registers], dim=1)
        assert not own.any()
        found[name] = torch.cat([first, rest], dim=1)
    return found


def crops(tensors: dict[str, Tensor], step: int, images: int) -> list[Tensor]:
    both = (tensors[f"in.step{step}.collated_{kind}_crops"] for kind in ("global", "local"))
    return [crop for kind in both for crop in kind.split(images)]


def mask_of(tensors: dict[str, Tensor], step: int) -> Tensor:
    return tensors[f"in.step{step}.collated_masks"].bool()


@CASES
def test_targets_logits_and_loss_of_the_official_code(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, record, tensors = official(case)
    c = record["config"]
    left = method.load_state_dict(start_of(tensors, c), strict=False)
    assert not left.unexpected_keys and {name.partition(".")[0] for name in left.missing_keys} <= {"centre", "centre2"}
    monkeypatch.setattr(method, "current_teacher_temp", lambda: record["teacher_temp_first"])
    targets: list[Tensor] = []
    learnt: list[tuple[Tensor, ...]] = []
    soften, learn = method.soft_targets, method.learn

    def noted_targets(*given: Any) -> Tensor:
        targets.append(soften(*given))
        return targets[-1]

    def noted_logits(*given: Any) -> tuple[Tensor, ...]:
        learnt.append(learn(*given))
        return learnt[-1]

    monkeypatch.setattr(method, "soft_targets", noted_targets)
    monkeypatch.setattr(method, "learn", noted_logits)
    mask = mask_of(tensors, 0)
    assert torch.equal(mask.flatten().nonzero()[:, 0], tensors["in.step0.mask_indices_list"])
    loss = method.loss(crops(tensors, 0, c["B"]), mask=mask)
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    swapped = targets[0].unflatten(0, (2, -1)).flip(0)  # theirs: the first block is the second crop's
    assert_close(swapped, tensors["out.dino_teacher_probs"], noise["out.dino_teacher_probs"])
    assert_close(targets[1], tensors["out.ibot_teacher_probs"], noise["out.ibot_teacher_probs"])
    student, hidden, _ = learnt[0]
    assert_close(hidden, tensors["out.ibot_student_logits"], noise["out.ibot_student_logits"])
    theirs = tensors["out.student_dino_head"][: student.shape[0] * student.shape[1]]  # local crops first
    assert_close(torch.cat([student[2:], student[:2]]).flatten(0, 1), theirs, noise["out.student_dino_head"])
    assert_close(loss, record["loss_float64"])


@CASES
def test_steps_of_the_official_code(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, rates and decay by layer, frozen prototypes, clipping by part, temperatures, teacher, centres."""
    method, record, tensors = official(case)
    c = record["config"]
    first, count, total = c["start"], c["steps"], c["epochs"] * c["L"]
    loss, step = method.loss, method.optimizer_step
    temperatures: list[float] = []
    centres: list[tuple[Tensor, Tensor]] = []  # before each batch moves them
    rates: list[list[tuple[float, float]]] = []

    def given(_: list[Tensor]) -> Tensor:
        temperatures.append(method.current_teacher_temp())
        centres.append((method.centre.center.clone(), method.centre2.center.clone()))
        at = min(max(0, method.global_step - first), count - 1)
        return loss([crop.double() for crop in crops(tensors, at, c["B"])], mask=mask_of(tensors, at))

    def noted(*args: Any, **named: Any) -> None:
        step(*args, **named)
        rates.append([(g["lr"], g["weight_decay"]) for g in method.trainer.optimizers[0].param_groups])

    monkeypatch.setattr(method, "loss", given)
    monkeypatch.setattr(method, "optimizer_step", noted)
    images = [crops(tensors, 0, c["B"])] * c["L"]
    steps = take_steps(method, images, start_of(tensors, c), first, count, c["epochs"])
    assert torch.stack(steps.losses).tolist() == pytest.approx(record["step_totals_float64"], rel=1e-6)
    assert temperatures == pytest.approx(record["schedules"]["teacher_temp"])
    gradients = official_positions(steps.gradients, c["reg"])
    check_gradients(record, tensors, NAMES, gradients)
    groups = method.trainer.optimizers[0].param_groups
    names = {id(p): name for name, p in method.named_parameters()}
    parts = {"backbone": "backbone", "dino_head": "head", "ibot_head": "patch_head"}
    for theirs, norm in record["grad_norm_per_submodule_float64"].items():
        own = [gradients[names[id(p)]] for g in groups if g["part"] == parts[theirs] for p in g["params"]]
        assert torch.stack([g.norm() for g in own]).norm().item() == pytest.approx(norm, rel=1e-6), theirs
        assert norm > c["clip"]
    ours = {names[id(p)]: rates[first + count - 1][i] for i, g in enumerate(groups) for p in g["params"]}
    expected = {
        our_name(name, NAMES): (group["last_lr"], group["last_wd"])
        for group in record["param_groups"]
        for name in group["names"]
    }
    assert ours.keys() == expected.keys()
    assert all(ours[name] == pytest.approx(expected[name]) for name in ours)
    frozen = [step_rates[i][0] for step_rates in rates for i, g in enumerate(groups) if g["last_layer"]]
    per_step = len(frozen) // total
    assert frozen[::per_step] == pytest.approx(record["schedules"]["last_layer_lr"])
    after = official_positions(steps.after, c["reg"])
    if record["center_update_pending_after"]:  # theirs lack the last batch
        after["centre.center"], after["centre2.center"] = centres[first + count - 1]
    after["centre2.center"] = after["centre2.center"][None]
    sums = record["after_checks_float64"]
    skipped = {name for name in sums if name == "teacher.backbone.mask_token"}  # which no teacher uses
    skipped |= {name for name in sums if name.endswith("qkv.bias")}  # the keys' third moves by rounding
    skipped |= {name for name in sums if name.endswith(".center") and c["centering"] != "centering"}
    kept = {name: values for name, values in sums.items() if name not in skipped}
    assert check_state(record | {"after_checks_float64": kept}, tensors, NAMES, after) == len(sums) - len(skipped) > 70
    for name in (name for name in sums if name.endswith("qkv.bias") and f"after.{name}" in tensors):
        for own, theirs_ in list(
            zip(after[our_name(name, NAMES)].chunk(3), tensors[f"after.{name}"].chunk(3), strict=True)
        )[::2]:
            assert_close(own, theirs_, noise=1e-7)


def test_schedules_of_the_official_code() -> None:
    method, record, _ = official("dinov2_step")
    c, schedules = record["config"], record["schedules"]
    total = c["epochs"] * c["L"]
    schedule = StepSchedule(method.optim, c["B"], total, c["L"])
    assert [schedule.lr(step) for step in range(total)] == pytest.approx(schedules["lr"])
    assert [schedule.weight_decay(step) for step in range(total)] == pytest.approx(schedules["wd"])
    assert [method.teacher.momentum_at(step, total) for step in range(total)] == pytest.approx(schedules["momentum"])
    found = [warmed_up(step, c["wte"] * c["L"], c["wt"], c["tt"]) for step in range(total)]
    assert found == pytest.approx(schedules["teacher_temp"])


def test_losses_of_the_official_code() -> None:
    record, tensors = load("dinov2_losses")
    expected, c = record["results"], record["config"]
    for kind, rows in (("dino", tensors["teacher_cls"]), ("ibot", tensors["teacher_patch"][0])):
        assert_close(sinkhorn(rows / c["teacher_temp"], 3), tensors[f"{kind}.sinkhorn"])
    x = tensors["koleo.x"].double().requires_grad_()
    loss = koleo(x)
    assert_close(loss, expected["koleo_float64"])
    assert_close(torch.autograd.grad(loss, x)[0], tensors["koleo.grad"])
    method = dinov2(prototypes=20)
    method.centre.center.copy_(tensors["center"])
    method.centre2.center.copy_(tensors["patch_center"][0])
    method.current_teacher_temp = lambda: c["teacher_temp"]  # type: ignore[method-assign]
    rows, patches = tensors["teacher_cls"], tensors["teacher_patch"][0]
    assert_close(method.soft_targets(rows, method.centre), tensors["dino.teacher_probs"])
    targets = method.soft_targets(patches, method.centre2)
    assert_close(targets, tensors["ibot.teacher_probs"][0])
    mask = tensors["masks"].bool()
    share = (1.0 / mask.sum(1))[mask.nonzero()[:, 0]]
    terms = F.cross_entropy(tensors["student_patch_masked"] / c["student_temp"], targets, reduction="none")
    assert_close((terms * share).sum() / len(mask), expected["ibot_masked_loss"])
    for centre, logits, kind in ((method.centre, rows, "dino"), (method.centre2, patches, "ibot")):
        centre.update(logits)
        assert_close(centre.center, tensors[f"{kind}.center_after"].reshape(1, -1))
    head = DINOHead(36, 24, 12, 20, norm_last_layer=False)
    head.load_state_dict(weights(tensors, "head.w."))
    assert_close(head(tensors["head.x"]), tensors["head.out"])


def test_stochastic_depth_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    record, tensors = load("dinov2_droppath")
    c = record["config"]
    block = Block(c["dim"], c["heads"], c["mlp"], qkv_bias=True, init_values=c["ls"])
    block.norm1.eps = block.norm2.eps = 1e-6
    block.load_state_dict(weights(tensors, "w."))
    block.drop_path1, block.drop_path2 = DropSamples(c["dp"]), DropSamples(c["dp"])
    drawn = iter([tensors[f"in.perm{i}"] for i in (0, 2, 1, 3, 4, 5)])  # attention and MLP of one input, of the other
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: next(drawn))
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    out = [block.train()(tensors[f"in.x{i}"]) for i in (0, 1)]
    for i in (0, 1):
        assert_close(out[i], tensors[f"out.list.y{i}"], noise[f"out.list.y{i}"])
    assert_close(block(tensors["in.x0"]), tensors["out.tensor.y0"], noise["out.tensor.y0"])
    assert_close(block.eval()(tensors["in.x0"]), tensors["out.eval.y0"], noise["out.eval.y0"])


def test_masks_have_the_statistics_of_the_official_code() -> None:
    expected = load("dinov2_losses")[0]["results"]
    method, count = dinov2(), 16
    masks = torch.stack([method.draw_masks(count) for _ in range(300)])  # 8 x 8 patches
    hidden = masks.sum(2).sort(1).values.double()
    assert (hidden[:, : count // 2] == 0).all()
    edges = torch.linspace(0.1, 0.5, count // 2 + 1)
    for i in range(count // 2):  # one view in each bin, at most a few patches short
        low, high = int(64 * edges[i]), int(64 * edges[i + 1])
        assert hidden[:, count // 2 + i].max() <= high
        assert hidden[:, count // 2 + i].mean() > low - 1
    assert hidden.sum(1).mean().item() == pytest.approx(expected["collate"]["n_masked_patches"], abs=8)  # of one draw
    rows = (masks[:, :8].any(2)).double().mean()
    assert rows.item() == pytest.approx(0.5, abs=0.05)  # shuffled: either crop of an image
    method.masked_views, method.mask_ratio = 1.0, (0.5, 0.5)
    by_target = expected["mask_generator_counts_by_target"]["32"]
    found = method.draw_masks(2000).sum(1).double()
    assert found.max() == by_target["max"] and found.min() >= by_target["min"] - 2
    assert found.mean().item() == pytest.approx(by_target["mean"], abs=0.1)


def test_initial_weights_are_those_of_the_official_code() -> None:
    torch.manual_seed(0)
    args = {"init_values": 1e-5, "reg_tokens": 4}
    options = BackboneOptions("vit_tiny_patch16_224", img_size=32, patch_size=4, width=192, depth=2, timm_args=args)
    method = DINOv2(Backbone(options), 512, hidden_dim=256, bottleneck_dim=64)
    own = official_positions({name: p.detach() for name, p in method.named_parameters()}, 4)
    for name, (mean, std, largest, shape, _) in load("init_statistics")[0]["methods"]["dinov2"]["parameters"].items():
        values = own[our_name(name, NAMES)]
        assert list(values.shape) == shape, name
        assert abs(values.mean().item() - mean) <= 6 * std / math.sqrt(values.numel()) + 1e-12, name
        assert values.std().item() == pytest.approx(std, rel=6 / math.sqrt(2 * values.numel()), abs=1e-11), name
        assert values.abs().max().item() <= 2 * largest + 1e-12, name
    assert method.head.last_layer.weight_g.requires_grad


def test_defaults_are_the_official_ones() -> None:
    method = DINOv2(Backbone(BackboneOptions("vit_tiny_patch16_224")))
    optim = method.optim
    schedule = StepSchedule(optim, 1024, 100, 10)
    assert (schedule.peak, schedule.floor) == pytest.approx((0.004, 1e-6))
    assert StepSchedule(optim, 4096, 100, 10).peak == pytest.approx(0.008)
    assert (optim.weight_decay, optim.weight_decay_end, optim.clip, optim.betas) == (0.04, 0.4, 3.0, (0.9, 0.999))
    assert (method.teacher.momentum, method.teacher.final_momentum, method.centre.momentum) == (0.992, 1.0, 0.9)
    assert method.head.last_layer.weight_v.shape == (65536, 256) and not hasattr(method, "patch_head")
    first, second, local = method.views()
    assert [view.size for view in (first, second, local)] == [224, 224, 96] and local.count == 8
    assert [view.scale for view in (first, local)] == [(0.32, 1.0), (0.05, 0.32)]
    assert [view.blur for view in (first, second, local)] == [0.0, 0.9, 0.5]  # as released, not as in the paper
    assert [view.solarize for view in (first, second, local)] == [0.0, 0.2, 0.0]
    assert all(view.blur_kernel == 9 and view.interpolation == "bicubic" for view in (first, second, local))


# The losses in loops


@pytest.mark.parametrize("args", [{}, {"reg_tokens": 1}, {"reg_tokens": 3, "no_embed_class": True}])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("targets", ["centering", "sinkhorn"])
def test_loss_is_the_papers_in_loops(args: dict[str, Any], separate: bool, targets: str) -> None:
    """Any number of registers, either layout of heads, either kind of targets, and other weights of the terms."""
    own = {"patch_prototypes": 9, "patch_bottleneck_dim": 7} if separate else {}
    weighted = {"cls_weight": 0.7, "patch_weight": 1.3, "koleo_weight": 0.4}
    method = dinov2(
        args={"init_values": 0.5, **args}, separate_head=separate, targets=targets, local_views=3, **own, **weighted
    ).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for centre in (method.centre, method.centre2):
            centre.center.normal_(std=0.1)
    views = [view.double() for view in views_of(method, 3)]
    mask = torch.zeros(6, 64, dtype=torch.bool)
    mask[1, :10], mask[5, 30:35] = True, True
    prefix, tau = method.backbone.prefix, method.current_teacher_temp()
    assert prefix == 1 + args.get("reg_tokens", 0)
    teacher: Any = method.teacher.module
    patch_head, teacher_patch_head = (getattr(part, "patch_head", part.head) for part in (method, teacher))
    with torch.no_grad():
        tokens = teacher.backbone.tokens(torch.cat(views[:2]))
        cls, patches = teacher.head(tokens[:, 0]), teacher_patch_head(tokens[:, prefix:][mask])
        if targets == "sinkhorn":
            q, q_patch = sinkhorn(cls / tau), sinkhorn(patches / tau)
        else:
            q = ((cls - method.centre.center) / tau).softmax(1)
            q_patch = ((patches - method.centre2.center) / tau).softmax(1)
        student = method.backbone.tokens(torch.cat(views[:2]), mask=mask, mask_token=method.mask_token)
        answers = [
            *method.head(student[:, 0]).chunk(2),
            *(method.head(method.backbone.tokens(v)[:, 0]) for v in views[2:]),
        ]
        loss = torch.zeros((), dtype=torch.float64)
        for crop, answer in enumerate(answers):
            for target in (0, 1):
                if crop != target:  # never a crop and itself
                    for image in range(3):
                        term = -(q[3 * target + image] * (answer[image] / 0.1).log_softmax(0)).sum()
                        loss += 0.7 * term / 3 / (2 * 3 + 2)
        hidden = patch_head(student[:, prefix:][mask])
        for row, (image, _) in enumerate(mask.nonzero().tolist()):
            term = -(q_patch[row] * (hidden[row] / 0.1).log_softmax(0)).sum()
            loss += 1.3 * term / mask[image].sum() / 6
        for crop in student[:, 0].chunk(2):
            x = F.normalize(crop, dim=1)
            for i in range(3):
                nearest = min((x[i] - x[j]).norm() for j in range(3) if j != i)
                loss -= 0.4 * (nearest + 1e-8).log() / 3
        found = method.loss(views, mask=mask)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)


def test_heads_see_selected_tokens_alone() -> None:
    method = dinov2(separate_head=True)
    seen: dict[str, list[int]] = {}
    parts = {"head": method.head, "patch_head": method.patch_head}
    parts |= {f"teacher {n}": method.teacher.module.get_submodule(n) for n in ("head", "patch_head")}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, rows, __, name=name: seen.setdefault(name, []).append(len(rows[0])))
    mask = torch.zeros(8, 64, dtype=torch.bool)
    mask[2, :7] = True
    method.loss(views_of(method, 4), mask=mask)
    assert seen == {"head": [16], "patch_head": [7], "teacher head": [8], "teacher patch_head": [7]}


def test_nothing_hidden_is_no_term_and_leaves_the_centre() -> None:
    for targets in ("centering", "sinkhorn"):
        method = dinov2(targets=targets)
        method.centre2.center.fill_(0.3)
        loss = method.loss(views_of(method, 4), mask=torch.zeros(8, 64, dtype=torch.bool))
        assert loss.isfinite()
        loss.backward()
        assert_close(method.centre2.center, torch.full((1, 16), 0.3))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_images_leave_neighbours_finite(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16)
    x[1] = x[0]
    x = x.to(kind).requires_grad_()
    loss = koleo(x)
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert x.grad is not None


def test_same_rate_of_stochastic_depth_everywhere_and_none_in_the_teacher() -> None:
    torch.manual_seed(0)
    options = BackboneOptions("vit_pico_patch4_32", img_size=32, drop_path=0.4)
    method = DINOv2(Backbone(options), 16, hidden_dim=24, bottleneck_dim=12).train()
    rates = [part.drop_prob for block in method.backbone.model.blocks for part in (block.drop_path1, block.drop_path2)]
    assert rates == [0.4] * 4
    images = torch.rand(5, 3, 32, 32)
    assert not torch.equal(method.backbone(images), method.backbone(images))
    teacher = method.teacher.module.get_submodule("backbone")
    assert torch.equal(teacher(images), teacher(images))
    scales = DropSamples(0.4).train()(torch.ones(5, 2))[:, 0]
    assert scales.count_nonzero() == 3 and scales.max() == pytest.approx(5 / 3)
    assert DropSamples(0.99).train()(torch.ones(5, 2))[:, 0].count_nonzero() == 1


def test_swiglu_and_layer_scale_come_with_the_network() -> None:
    torch.manual_seed(0)
    options = BackboneOptions(
        "vit_giant_patch14_reg4_dinov2", img_size=28, width=24, depth=2, num_heads=3, patch_size=4
    )
    method = DINOv2(Backbone(options), 16, hidden_dim=24, bottleneck_dim=12, local_size=12)
    names = {name for name, _ in method.named_parameters()}
    assert any(".ls1.gamma" in name for name in names) and any("reg_token" in name for name in names)
    assert type(method.backbone.model.blocks[0].mlp).__name__.startswith(("SwiGLU", "GluMlp"))
    assert method.loss(views_of(method, 3)).isfinite()
    groups = build_optimizer(method, method.optim, groups=method.parameter_groups()).param_groups
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in method.parameters())


def test_uniform_answers_cost_what_guessing_does() -> None:
    method = dinov2(prototypes=4096, koleo_weight=0.0, warmup_teacher_temp=1e6, student_temp=1e6)
    mask = torch.zeros(8, 64, dtype=torch.bool)
    mask[:4, :8] = True  # half the crops
    assert method.loss(views_of(method, 4), mask=mask).item() == pytest.approx(1.5 * math.log(4096), rel=1e-4)


def test_what_cannot_be() -> None:
    for option in ("patch_prototypes", "patch_bottleneck_dim"):
        with pytest.raises(UserError, match=f"--method.{option} is for a head of the patches' own"):
            dinov2(**{option: 9})
    with pytest.raises(UserError, match="dinov2 needs a ViT with a class token"):
        dinov2(args={"class_token": False, "global_pool": "avg"})
