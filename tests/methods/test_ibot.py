"""iBOT against the official code on a tiny network, and against plain loops over crops, images and patches."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_files import assert_close, load, weights
from paths import ROOT, SUPPORT
from small import GivenViews, trainer, views_of
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.ibot import IBOT, patch_layer, split
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer, clip_gradients, parameter_groups
from ssl_bench.pretraining.masks import block_masks, mask_ratios

SIZES: dict[str, Any] = {"prototypes": 12, "hidden_dim": 20, "bottleneck_dim": 8, "local_views": 2}


def ibot(
    backbone: str = "vit_pico_patch4_32", seed: int = 0, timm_args: dict[str, Any] | None = None, **given: Any
) -> IBOT:
    torch.manual_seed(seed)
    return IBOT(Backbone(BackboneOptions(backbone, img_size=16, timm_args=timm_args)), **SIZES | given)


def masks_of(method: IBOT, images: int, seed: int = 0) -> Tensor:
    """(2B, N), some of them empty."""
    grid = method.backbone.img_size // method.backbone.stride
    torch.manual_seed(seed)
    mask = torch.rand(2 * images, grid**2) < 0.4
    mask[1] = False
    return mask


# The official code


Golden = tuple[IBOT, dict[str, Any], dict[str, Tensor]]


@pytest.fixture
def golden() -> Golden:
    """Ours with the official weights and centres."""
    record, tensors = load("ibot_step")
    c = record["config"]
    sizes = {"img_size": c["img"], "patch_size": c["patch"], "width": c["dim"], "depth": c["depth"]}
    backbone = BackboneOptions("vit_tiny_patch16_224", num_heads=c["heads"], timm_args={"mlp_ratio": c["mlp"]}, **sizes)
    method = IBOT(
        Backbone(backbone),
        prototypes=c["K"],
        hidden_dim=c["hid"],
        bottleneck_dim=c["bot"],
        norm_last_layer=c["norm_last"],
        teacher_temp=c["te"],
        warmup_teacher_temp=c["wte"],
        teacher_patch_temp=c["te2"],
        warmup_teacher_patch_temp=c["wte2"],
        warmup_teacher_temp_epochs=c["wtep"],
        momentum=c["m"],
        freeze_last_layer=c["freeze_last_layer"],
        local_views=c["nloc"],
        local_size=c["loc"],
        optim=Optim(
            base_lr=c["lr"],
            scaling="none",
            weight_decay=c["wd"],
            weight_decay_end=c["wd_end"],
            schedule="cosine_dino",
            warmup_epochs=c["warm"],
            min_lr=c["min_lr"],
            clip=c["clip"],
            clip_per="tensor",
        ),
    )
    state = {}
    for name, value in load("ibot_weights")[1].items():
        if "last_layer2" not in name:  # the same as last_layer
            state[ours(name)] = value
    state["centre.center"], state["centre2.center"] = tensors["center_before"], tensors["center2_before"][0]
    method.load_state_dict(state)
    return method, record, tensors


def ours(official: str) -> str:
    """The name of an official tensor, student/... or teacher/..., here."""
    whose, _, name = official.partition("/")
    if name == "backbone.masked_embed":
        return "mask_token"
    name = name.replace("backbone.", "backbone.model.", 1) if name.startswith("backbone.") else name
    return name if whose == "student" else f"teacher.module.{name}"


def golden_views(tensors: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """The crops, and the (2B, N) masks of the global ones."""
    mask = torch.cat([tensors["mask.0"], tensors["mask.1"]]).flatten(1).bool()
    return [tensors[f"crop.{i}"] for i in range(4)], mask


def in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    monkeypatch.setattr(IBOT, "current_epoch", epoch)


def test_outputs_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    views, mask = golden_views(tensors)
    noise = {name: value["max_abs"] for name, value in record["noise"].items()}
    images, batch = torch.cat(views[:2]), len(views[0])
    tokens = method.backbone.tokens(views[0], mask=mask[:batch], mask_token=method.mask_token)
    assert_close(tokens, tensors["out.student_backbone_global1"], noise["student_backbone_global1"])
    # All patches of the first image of either view, which are all that is on file.
    where = torch.cat([i * mask.shape[1] + torch.arange(mask.shape[1]) for i in (0, batch)])
    teacher, teacher_patch, _ = method.teach(images, where)
    assert_close(teacher.flatten(0, 1), tensors["out.teacher_cls"], noise["teacher_cls"])
    assert_close(teacher_patch, tensors["out.teacher_patch"].flatten(0, 1), noise["teacher_patch"])
    student, student_patch = method.learn(images, views[2:], mask, where)
    assert_close(student[:2].flatten(0, 1), tensors["out.student_cls"], noise["student_cls"])
    assert_close(student[2:].flatten(0, 1), tensors["out.student_local_cls"], noise["student_local_cls"])
    assert_close(student_patch, tensors["out.student_patch"].flatten(0, 1), noise["student_patch"])


@pytest.mark.parametrize("part", ["cls", "patch", "loss"])
def test_losses_gradients_and_centres_of_the_official_code(
    golden: Golden, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, record, tensors = golden
    in_epoch(monkeypatch, record["loss_epoch"])
    method.cls_weight, method.patch_weight = float(part != "patch"), float(part != "cls")
    views, mask = golden_views(tensors)
    loss = method.loss(views, mask=mask)
    assert_close(loss, record["losses_float64"][part])
    for centre, name in ((method.centre, "center"), (method.centre2, "center2")):
        assert_close(
            centre.center, tensors[f"out.{name}_after"].flatten(0, -2), record["noise"][f"{name}_after"]["max_abs"]
        )
    if part == "loss":
        loss.backward()
        parameters = dict(method.named_parameters())
        for name, norm in record["grad_norms_float64"].items():
            gradient = parameters[ours(f"student/{name}")].grad
            assert gradient is not None
            assert_close(gradient.norm(), norm)


def test_temperatures_and_losses_of_every_epoch_of_the_official_code(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, record, tensors = golden
    views, mask = golden_views(tensors)
    for epoch, expected in enumerate(record["losses_zero_centers_per_epoch"]):
        in_epoch(monkeypatch, epoch)
        assert method.teacher_temp(method.temps) == pytest.approx(record["teacher_temp_schedule"][epoch])
        assert method.teacher_temp(method.patch_temps) == pytest.approx(record["teacher_patch_temp_schedule"][epoch])
        for part in ("cls", "patch"):
            method.centre.center.zero_()
            method.centre2.center.zero_()
            method.cls_weight, method.patch_weight = float(part == "cls"), float(part == "patch")
            assert_close(method.loss(views, mask=mask), expected[part])


def test_parameter_groups_of_the_official_code(golden: Golden) -> None:
    """Class token, positions and mask token are decayed; the prototypes' lengths too."""
    method, record, _ = golden
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    for group, expected in zip(parameter_groups(method, method.no_weight_decay), record["param_groups"], strict=True):
        assert group["decay"] is expected["weight_decay_follows_schedule"]
        assert {names[id(p)] for p in group["params"]} == {ours(f"student/{name}") for name in expected["params"]}


def test_schedules_of_the_official_code(golden: Golden) -> None:
    method, record, _ = golden
    schedule = StepSchedule(method.optim, 256, 20, 4)
    assert [schedule.lr(step) for step in range(20)] == pytest.approx(record["schedules"]["lr"])
    assert [schedule.weight_decay(step) for step in range(20)] == pytest.approx(record["schedules"]["wd"])


def assert_moved_as_official(method: IBOT, record: dict[str, Any], tensors: dict[str, Tensor], case: str) -> None:
    state, details = method.state_dict(), record["steps"][case]
    for name, value in weights(tensors, f"{case}.").items():
        if not name.startswith("center"):
            whose = name.partition(".")[0]
            noise = details[f"noise_{whose}"][name.partition(".")[2]]["max_abs"]
            assert_close(state[ours(name.replace(".", "/", 1))], value, noise)
    for name, centre in (("center", method.centre), ("center2", method.centre2)):
        assert_close(centre.center, tensors[f"{case}.{name}_after"].flatten(0, -2), 1e-6)
    for whose in ("student", "teacher"):  # of all tensors, their sums
        for name, sums in details[f"{whose}_checks_float64"].items():
            if "last_layer2" not in name:
                value, noise = state[ours(f"{whose}/{name}")].double(), details[f"noise_{whose}"][name]["max_abs"]
                allowed = noise * value.numel()
                assert_close(value.sum(), sums["sum"], max(allowed, 1e-6 * sums["abs"]))
                assert_close(value.abs().sum(), sums["abs"], allowed)


def test_one_step_of_the_official_code(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    method, record, tensors = golden
    details = record["steps"]["step"]
    in_epoch(monkeypatch, details["epoch"])
    step = details["iterations"][0]
    optimizer = build_optimizer(method, method.optim, method.no_weight_decay)
    StepSchedule(method.optim, 256, 20, 4).apply(optimizer, step)
    views, mask = golden_views(tensors)
    method.loss(views, mask=mask).backward()
    method.on_before_optimizer_step(optimizer)
    clip_gradients([p for g in optimizer.param_groups for p in g["params"]], method.optim.clip, method.optim.clip_per)
    optimizer.step()
    method.teacher.update(step, 20)
    assert_moved_as_official(method, record, tensors, "step")


class StopAfter(pl.Callback):
    """Ends a run of which more was planned."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def test_first_steps_with_frozen_prototypes_of_the_official_code(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the trainer; every second batch and its masks are mirrored."""
    method, record, tensors = golden
    details = record["steps"]["frozen"]
    views, mask = golden_views(tensors)
    mirrored = mask.unflatten(1, (8, 8)).flip(2).flatten(1)
    batches = [[view.flip(3) for view in views] if step % 2 else views for step in range(4)]
    masks: Iterator[Tensor] = iter([mirrored if step % 2 else mask for step in range(4)])
    losses: list[float] = []
    monkeypatch.setattr(method, "draw_masks", lambda count: next(masks))
    monkeypatch.setattr(method, "log", lambda name, value, **_: losses.append(float(value)) if name == "loss" else None)
    before = {name: p.clone() for name, p in method.head.last_layer.named_parameters()}
    quiet = trainer(max_epochs=5, callbacks=[StopAfter(details["n_steps"])])
    quiet.fit(method, datamodule=GivenViews(batches))
    assert quiet.global_step == len(losses) == details["n_steps"]
    assert sum(losses) / len(losses) == pytest.approx(details["mean_losses_float64"]["loss"], rel=1e-5)
    assert_moved_as_official(method, record, tensors, "frozen")
    stateless = {f"head.last_layer.{name}" for name in before}
    assert stateless == set(details["params_without_optimizer_state"])
    (optimizer,) = quiet.optimizers
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert (parameter in optimizer.state) == (name not in stateless), name
    assert all(torch.equal(before[name], p) for name, p in method.head.last_layer.named_parameters())


@pytest.mark.parametrize(("case", "kind"), [("linear.n1.avg0", "cls"), ("linear.n1.avg2", "cls+avg")])
def test_features_of_the_official_code(golden: Golden, case: str, kind: str) -> None:
    record, tensors = load("ibot_features")
    evaluated = golden[0].evaluated
    assert isinstance(evaluated, Backbone)
    found = evaluated.features(tensors["images"], (kind,))[kind]
    assert_close(found, tensors[case], record["noise"][case]["max_abs"])


# The paper in loops


def softmax(logits: Tensor) -> Tensor:
    exponential = (logits - logits.max()).exp()
    return exponential / exponential.sum()


def cross_entropy(target: Tensor, student: Tensor) -> Tensor:
    """-sum_k p_k log q_k of a (K,) distribution and (K,) logits."""
    terms = [-target[k] * softmax(student)[k].log() for k in range(len(target))]
    return torch.stack(terms).sum()


def prototypes_of(layer: Any, vectors: Tensor) -> Tensor:
    return vectors @ (layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)).T


def outputs(backbone: Backbone, head: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) logits of images and (B, N, K) of all patches, all tokens through the head, as in the official code."""
    patches = tokens[:, backbone.prefix :]
    first = tokens[:, :1] if backbone.prefix else patches.mean(1, keepdim=True)
    vectors = head.mlp(torch.cat([first, patches], dim=1))
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    last2 = head.last_layer2 if hasattr(head, "last_layer2") else head.last_layer
    return prototypes_of(head.last_layer, vectors[:, 0]), prototypes_of(last2, vectors[:, 1:])


def long_way(
    method: IBOT, views: list[Tensor], mask: Tensor, temps: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses and both new centres, image by image and patch by patch."""
    backbone, teacher, batch = method.backbone, method.teacher.module, len(views[0])
    cell = backbone.stride // backbone.patch_size
    grid = backbone.img_size // backbone.stride
    student_cls, student_patch, teacher_cls, teacher_patch = [], [], [], []
    for v, view in enumerate(views):
        hidden = None
        if v < 2:
            hidden = torch.zeros(batch, grid * cell, grid * cell, dtype=torch.bool)
            for y in range(grid * cell):
                for x in range(grid * cell):
                    hidden[:, y, x] = mask[v * batch : (v + 1) * batch, y // cell * grid + x // cell]
            with torch.no_grad():
                network: Any = teacher.backbone
                cls, patch = outputs(backbone, teacher.head, network.tokens(view))
            teacher_cls.append(cls)
            teacher_patch.append(patch)
            tokens = backbone.tokens(view, mask=hidden.flatten(1), mask_token=method.mask_token)
        else:
            tokens = backbone.tokens(view)
        cls, patch = outputs(backbone, method.head, tokens)
        student_cls.append(cls)
        student_patch.append(patch)
    c, c2 = method.centre.center[0].double(), method.centre2.center[0].double()
    loss_cls, pairs = torch.zeros((), dtype=torch.float64), 0
    for t in range(2):
        for s in range(len(views)):
            if s != t:
                for b in range(batch):
                    target = softmax((teacher_cls[t][b] - c) / temps[0])
                    loss_cls = loss_cls + cross_entropy(target, student_cls[s][b] / method.student_temp) / batch
                pairs += 1
    loss_patch = torch.zeros((), dtype=torch.float64)
    for v in range(2):
        for b in range(batch):
            hidden_here = mask[v * batch + b].nonzero()[:, 0].tolist()
            for n in hidden_here:
                target = softmax((teacher_patch[v][b, n] - c2) / temps[1])
                term = cross_entropy(target, student_patch[v][b, n] / method.student_temp)
                loss_patch = loss_patch + term / max(len(hidden_here), 1) / batch / 2
    m = method.centre.momentum
    new = m * c + (1 - m) * torch.cat(teacher_cls).mean(0)
    new2 = m * c2 + (1 - m) * torch.cat(teacher_patch).mean((0, 1))
    return loss_cls / pairs, loss_patch, new, new2


FLEXIBLE = {"strict_img_size": False}
WAYS: dict[str, dict[str, Any]] = {
    "shared": {},
    "apart": {"shared_head": False, "shared_head_teacher": False, "patch_prototypes": 7, "norm_last_layer": True},
    "teacher shared": {"shared_head": False, "bottleneck_dim": 5},
    "weights": {"cls_weight": 0.3, "patch_weight": 2.5, "student_temp": 0.2, "teacher_patch_temp": 0.05},
    "no local": {"local_views": 0, "center_momentum": 0.6},
    "layer scale": {"timm_args": {"init_values": 0.1}, "local_views": 1},
    "mean pool": {"timm_args": {"class_token": False, "global_pool": "avg"}, "local_views": 1},
    "registers": {"timm_args": {"reg_tokens": 2, "no_embed_class": True}},
    "beit": {"backbone": "beit_pico_patch4_32", "local_views": 0},
    "swin": {"backbone": "swin_pico_patch2_32", "timm_args": FLEXIBLE | {"drop_path_rate": 0.0}, "local_size": 8},
}


@pytest.mark.parametrize("way", WAYS)
def test_loss_gradients_and_centres_in_loops(way: str) -> None:
    """The method computes what enters the loss in float32, the loops all in float64."""
    method = ibot(**WAYS[way], warmup_teacher_temp_epochs=0).double()
    nn.init.normal_(method.mask_token)
    nn.init.uniform_(method.head.last_layer.weight_v)  # makes answers less alike
    for parameter in method.teacher.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for centre in (method.centre, method.centre2):
        nn.init.uniform_(centre.center, -0.1, 0.1)
    views = [view.double() for view in views_of(method, 3)]
    mask = masks_of(method, 3)
    temps = method.temps[1], method.patch_temps[1]
    cls, patch, centre1, centre2 = long_way(method, views, mask, temps)
    expected = method.cls_weight * cls + method.patch_weight * patch
    learned = {name: p for name, p in method.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(expected, list(learned.values()))
    loss = method.loss(views, mask=mask)
    assert_close(loss, expected)
    loss.backward()
    for (name, parameter), gradient in zip(learned.items(), gradients, strict=True):
        assert parameter.grad is not None, name
        assert_close(parameter.grad, gradient, noise=1e-7)
    assert_close(method.centre.center[0], centre1)
    assert_close(method.centre2.center[0], centre2)


def test_images_with_nothing_hidden_count_in_the_mean() -> None:
    """Hand-worked: of one view's two images one has 4 hidden patches, of the other view's neither has any."""
    method = ibot(cls_weight=0.0)
    views = views_of(method, 2)
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[0, [1, 5, 6, 9]] = True
    where = torch.tensor([1, 5, 6, 9])
    _, teacher, _ = method.teach(torch.cat(views[:2]), where)
    _, student = method.learn(torch.cat(views[:2]), views[2:], mask, where)
    q = ((teacher - method.centre2.center) / 0.04).softmax(1)
    each = -(q * (student / 0.1).log_softmax(1)).sum(1)  # (4,)
    assert_close(method.loss(views, mask=mask), each.mean() / 2 / 2)


def test_nothing_hidden_at_all_leaves_the_images_loss_and_every_gradient() -> None:
    method = ibot(shared_head=False, shared_head_teacher=False)
    views = views_of(method, 2)
    whole = torch.zeros(4, 16, dtype=torch.bool)
    loss = method.loss(views, mask=whole)
    loss.backward()
    assert loss.isfinite()
    for parameter in (method.mask_token, *patch_layer(method.head).parameters()):
        assert parameter.grad is None or not parameter.grad.any()
    assert method.mask_token.grad is not None
    method = ibot(patch_weight=0.0, shared_head=False, shared_head_teacher=False)
    assert torch.equal(loss, method.loss(views, mask=whole))


def test_one_masked_pass_for_both_losses_locals_whole_and_a_teacher_of_whole_global_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = ibot()
    passes: list[tuple[bool, int, int, int]] = []
    tokens = Backbone.tokens

    def recorded(self: Backbone, images: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
        hidden = 0 if mask is None else int(mask.sum())
        passes.append((self is method.backbone, len(images), images.shape[-1], hidden))
        return tokens(self, images, mask=mask, **given)

    monkeypatch.setattr(Backbone, "tokens", recorded)
    mask = masks_of(method, 3)
    method.loss(views_of(method, 3), mask=mask)
    local = method.views()[2].size
    assert local < 16
    assert sorted(passes) == [(False, 6, 16, 0), (True, 6, local, 0), (True, 6, 16, int(mask.sum()))]


def test_head_sees_class_tokens_and_hidden_patches_alone() -> None:
    method = ibot()
    rows: dict[str, int] = {}
    network: Any = method.teacher.module
    for name, layer in (
        ("student", method.head.last_layer),
        ("mlp", method.head.mlp),
        ("teacher", network.head.last_layer),
    ):

        def count(_: nn.Module, inputs: tuple[Tensor], __: Tensor, name: str = name) -> None:
            rows[name] = rows.get(name, 0) + inputs[0].shape[:-1].numel()

        layer.register_forward_hook(count)
    mask = masks_of(method, 3)
    method.loss(views_of(method, 3), mask=mask)
    hidden = int(mask.sum())
    assert rows == {"student": 4 * 3 + hidden, "mlp": 4 * 3 + hidden, "teacher": 2 * 3 + hidden + 1}


def test_mask_token_takes_the_place_of_patches_before_positions() -> None:
    method = ibot()
    nn.init.normal_(method.mask_token)
    vit = method.backbone.model
    nn.init.normal_(vit.pos_embed)
    entering: list[Tensor] = []
    vit.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    mask = masks_of(method, 2)
    method.loss(views_of(method, 2), mask=mask)
    student = next(tokens for tokens in entering if tokens.requires_grad)
    differences = (student - vit.pos_embed)[:, 1:]
    assert_close(differences[mask], method.mask_token.expand(int(mask.sum()), -1))
    assert ((differences[~mask] - method.mask_token).abs().amax(1) > 1e-3).all()


def test_hidden_pixels_are_unseen_by_the_student() -> None:
    method = ibot(local_views=0)
    views = [view.requires_grad_() for view in views_of(method, 2)]
    mask = masks_of(method, 2)
    method.loss(views, mask=mask).backward()
    seen = torch.cat([view.grad for view in views if view.grad is not None]).abs().sum(1)  # (2B, H, W)
    seen = seen.unflatten(1, (4, 4)).unflatten(3, (4, 4)).sum((2, 4)).flatten(1)  # (2B, N)
    assert torch.equal(seen == 0, mask)


# The teacher


@pytest.mark.parametrize("way", ["shared", "apart", "teacher shared", "swin"])
def test_teacher_follows_by_name(way: str) -> None:
    """With momentum 0 it becomes the student; the mask token, and a head it does not have, stay the student's."""
    method = ibot(**WAYS[way], momentum=0.0)
    teacher = dict(method.teacher.module.named_parameters())
    student = dict(method.backbone.named_parameters(prefix="backbone")) | dict(
        method.head.named_parameters(prefix="head")
    )
    extra = set(student) - set(teacher)
    assert not set(teacher) - set(student)
    assert extra == ({"head.last_layer2.weight_g", "head.last_layer2.weight_v"} if way == "teacher shared" else set())
    assert not any("mask" in name for name in teacher)
    for name, value in teacher.items():
        assert torch.equal(value, student[name]), name
        assert not value.requires_grad
    with torch.no_grad():
        for parameter in student.values():
            parameter += torch.randn_like(parameter)
    method.teacher.update(0, 10)
    for name, value in teacher.items():
        assert torch.equal(value, student[name]), name


def test_second_centre_is_as_large_as_what_the_teacher_says_of_patches() -> None:
    assert ibot(**WAYS["apart"]).centre2.center.shape == (1, 7)
    assert ibot(**WAYS["teacher shared"]).centre2.center.shape == (1, 12)


def test_evaluates_the_teacher_which_never_drops_a_path() -> None:
    method = ibot(timm_args={"drop_path_rate": 0.5}).train()
    evaluated = method.evaluated
    assert isinstance(evaluated, Backbone)
    assert evaluated is method.teacher.module.get_submodule("backbone")
    images = views_of(method, 16)[0]
    assert torch.equal(evaluated(images), evaluated(images))
    assert not torch.equal(method.backbone(images), method.backbone(images))


def test_patch_temperature_waits_for_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """s epochs at its first value, which the line then begins with once more; nothing is hidden until then."""
    method = ibot(
        mask_start_epoch=3,
        warmup_teacher_temp_epochs=4,
        warmup_teacher_patch_temp=0.02,
        mask_ratio=(0.4,),
        mask_spread=(0.0,),
    )
    cls, patch, hidden = [], [], []
    for epoch in range(9):
        in_epoch(monkeypatch, epoch)
        cls.append(method.teacher_temp(method.temps))
        patch.append(method.teacher_temp(method.patch_temps, method.mask_start_epoch))
        hidden.append(bool(method.draw_masks(8).any()))
    assert cls == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07])
    step = 0.05 / 3
    assert patch == pytest.approx([0.02] * 4 + [0.02 + step, 0.02 + 2 * step, 0.07, 0.07, 0.07])
    assert hidden == [False] * 3 + [True] * 6


@pytest.mark.parametrize("epoch", [1, 4])
def test_delayed_start_in_loops(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = ibot(mask_start_epoch=3, warmup_teacher_temp_epochs=3, mask_ratio=(0.4,), mask_spread=(0.1,)).double()
    in_epoch(monkeypatch, epoch)
    views = [view.double() for view in views_of(method, 2)]
    torch.manual_seed(5)
    mask = method.draw_masks(4)
    cls, patch, *_ = long_way(method, views, mask, {1: (0.055, 0.04), 4: (0.07, 0.055)}[epoch])
    assert bool(patch > 0) is (epoch == 4)
    torch.manual_seed(5)
    assert_close(method.loss(views), cls + patch)


def test_prototypes_thaw_after_their_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ibot(**WAYS["apart"] | {"norm_last_layer": False}, freeze_last_layer=2)
    optimizer = build_optimizer(method, method.optim)
    for epoch in range(3):
        in_epoch(monkeypatch, epoch)
        method.loss(views_of(method, 2), mask=masks_of(method, 2)).backward()
        method.on_before_optimizer_step(optimizer)
        without = {name for name, p in method.named_parameters() if p.requires_grad and p.grad is None}
        both = {f"head.{layer}.weight_{part}" for layer in ("last_layer", "last_layer2") for part in "gv"}
        assert without == (both if epoch < 2 else set())


@pytest.mark.parametrize("frozen", [True, False])
def test_lengths_of_all_prototypes_are_frozen_or_not(frozen: bool) -> None:
    method = ibot(**WAYS["apart"] | {"norm_last_layer": frozen})
    for layer in (method.head.last_layer, patch_layer(method.head)):
        assert layer.get_parameter("weight_g").requires_grad is not frozen
        assert layer.get_parameter("weight_g").eq(1).all()


def test_targets_and_centres_are_float32_in_bfloat16() -> None:
    method = ibot()
    views, mask = views_of(method, 2), masks_of(method, 2)
    with torch.autocast("cpu", torch.bfloat16):
        teacher, hidden, mean = method.teach(torch.cat(views[:2]), mask.flatten().nonzero()[:, 0])
        assert teacher.dtype == hidden.dtype == torch.bfloat16
        assert method.soft_targets(teacher, method.centre, method.temps).dtype == torch.float32
        assert mean.dtype == torch.float32
        method.loss(views, mask=mask)
    assert method.centre.center.dtype == method.centre2.center.dtype == torch.float32


def test_defaults_are_the_published_vit_s_16() -> None:
    method = IBOT(Backbone(BackboneOptions("vit_pico_patch4_32", img_size=224, patch_size=16)))
    assert [(v.size, v.count, v.scale, v.blur, v.solarize) for v in method.views()] == [
        (224, 1, (0.25, 1.0), 1.0, 0.0),
        (224, 1, (0.25, 1.0), 0.1, 0.2),
        (96, 10, (0.05, 0.25), 0.5, 0.0),
    ]
    schedule = StepSchedule(method.optim, 1024, 1000, 10)
    assert schedule.lr(100) == pytest.approx(2e-3)
    assert schedule.lr(1000) == pytest.approx(1e-6)
    assert (method.optim.clip, method.optim.clip_per) == (3.0, "tensor")
    assert not method.mask_token.any()
    assert method.backbone.model.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert method.head.last_layer.weight_v.shape == (8192, 256)


def test_masks_are_blocks_or_single_patches_drawn_for_each_view() -> None:
    method = ibot(mask_ratio=(0.3,), mask_spread=(0.0,))
    torch.manual_seed(0)
    found = method.draw_masks(64)
    torch.manual_seed(0)
    target = mask_ratios(64, (0.3,), (0.0,)) * 16
    assert torch.equal(found, block_masks(64, 4, target, min_area=1))  # (4 // 3) squared
    assert found.shape == (64, 16)
    assert len(found.unique(dim=0)) > 10
    assert found.sum(1).max() <= 4
    rand = ibot(mask_ratio=(0.3,), mask_spread=(0.0,), mask_shape="rand")
    assert (rand.draw_masks(64).sum(1) == 4).all()  # int(0.3 * 16)


# Two devices


RANKS = """
import sys, torch, torch.distributed as dist
from torch import multiprocessing
from test_ibot import ibot, masks_of
from small import views_of

def one(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    method = ibot()
    mask = masks_of(method, 4).unflatten(0, (2, 4)).chunk(2, dim=1)[rank].flatten(0, 1)
    loss = method.loss([view.chunk(2)[rank] for view in views_of(method, 4)], mask=mask)
    loss.backward()
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    found |= {"loss": loss.detach()} | {name: b for name, b in method.named_buffers() if "center" in name}
    torch.save(found, f"{folder}/rank{rank}.pt")

multiprocessing.start_processes(one, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.integration
def test_two_devices_are_one(tmp_path: Path) -> None:
    """Gradients averaged, as DDP does, and centres of the joint batch."""
    paths = [str(Path(__file__).parent), str(SUPPORT), str(ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-c", RANKS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    method = ibot()
    loss = method.loss(views_of(method, 4), mask=masks_of(method, 4))
    loss.backward()
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss)
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            assert_close((found[0][name] + found[1][name]) / 2, parameter.grad, noise=1e-7)
    for name in ("centre.center", "centre2.center"):
        assert torch.equal(found[0][name], found[1][name])
        assert_close(found[0][name], method.state_dict()[name])


# Users' mistakes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backbone": "resnet_nano"}, "dino, byol, simclr"),
        ({"backbone": "beit_pico_patch4_32"}, "local_views 0; otherwise: simclr"),
        ({"backbone": "swin_pico_patch2_32"}, "strict_img_size: false"),
        ({"local_views": -1}, "local_views -1"),
        ({"local_size": 10}, "try 8"),
        ({"teacher_patch_temp": 0.0}, "above 0"),
        ({"shared_head_teacher": False}, "shared_head false"),
        ({"shared_head": False, "patch_prototypes": 5}, "patch_prototypes 5 differs from prototypes 12"),
        ({"mask_ratio": (0.3,)}, "one number for each"),
        ({"mask_ratio": (0.1, 0.3), "mask_spread": (0.2, 0.0)}, "between 0 and 1"),
        ({"mask_ratio": (0.0, 0.9)}, "between 0 and 1"),
    ],
)
def test_mistakes_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        ibot(**given)
    assert "\n" not in str(refusal.value)


def test_split_of_tokens() -> None:
    backbone = ibot(timm_args={"reg_tokens": 2}).backbone
    tokens = torch.randn(2, 3 + 16, 48)
    summary, patches = split(backbone, tokens)
    assert torch.equal(summary, tokens[:, 0])
    assert torch.equal(patches, tokens[:, 3:])
