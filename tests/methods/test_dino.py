"""DINO against the official code on a tiny network, and the paper's loss in loops."""

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_files import assert_close, load, weights
from small import GivenViews, trainer, views_of
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.dino import DINO
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dino_head import crop_cross_entropy
from ssl_bench.optim.optimizers import LARS, StepSchedule, build_optimizer, clip_gradients, parameter_groups
from ssl_bench.optim.schedules import cosine, warmup_cosine_dino

SMALL = {"prototypes": 40, "hidden_dim": 24, "bottleneck_dim": 12, "local_views": 3}


def dino(name: str = "vit_pico_patch4_32", drop_path: float = 0.0, img_size: int = 32, **given: Any) -> DINO:
    torch.manual_seed(0)
    return DINO(Backbone(BackboneOptions(name, img_size=img_size, drop_path=drop_path)), **SMALL | given)


def in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DINO, "current_epoch", property(lambda method: epoch))


def paper_loss(student: Tensor, teacher: Tensor, centre: Tensor, student_temp: float, teacher_temp: float) -> Tensor:
    """Equation 3 and algorithm 1 in loops: (V, B, K) and (2, B, K) logits."""
    total, pairs = torch.zeros((), dtype=student.dtype), 0
    for t in range(2):
        for s in range(len(student)):
            if s == t:
                continue
            for image in range(student.shape[1]):
                sharp = ((teacher[t, image] - centre) / teacher_temp).exp()
                own = (student[s, image] / student_temp).exp()
                total = total - (sharp / sharp.sum() * (own / own.sum()).log()).sum() / student.shape[1]
            pairs += 1
    return total / pairs


# The official code

Golden = tuple[DINO, dict[str, Any], dict[str, Tensor]]


def golden_dino(**given: Any) -> DINO:
    c = load("dino_step")[0]["config"]
    options = BackboneOptions(
        "vit_pico_patch4_32", c["img"], c["patch"], c["dim"], c["depth"], c["heads"], timm_args={"mlp_ratio": c["mlp"]}
    )
    optim = Optim(
        base_lr=c["lr"],
        scaling="none",
        weight_decay=c["wd"],
        weight_decay_end=c["wd_end"],
        schedule="cosine_dino",
        warmup_epochs=c["warm"],
        min_lr=c["min_lr"],
        clip=c["clip"],
        clip_per="tensor",
    )
    sizes = {"prototypes": c["K"], "hidden_dim": c["hid"], "bottleneck_dim": c["bot"]}
    temps = {"teacher_temp": c["te"], "warmup_teacher_temp": c["wte"], "warmup_teacher_temp_epochs": c["wtep"]}
    own = {"norm_last_layer": c["norm_last"], "momentum": c["m"], "freeze_last_layer": c["freeze_last_layer"]}
    crops = {"local_views": c["nloc"], "local_size": c["loc"], "optim": optim}
    return DINO(Backbone(options), **sizes | temps | own | crops | given)


@pytest.fixture
def golden() -> Golden:
    """Ours with the official weights, whose teacher is no copy of the student, and the official centre."""
    record, tensors = load("dino_step")
    method = golden_dino()
    official = load("dino_weights")[1]
    state = {"centre.center": tensors["center_before"]}
    for whose in ("student", "teacher"):
        state |= {ours(name, whose): value for name, value in weights(official, f"{whose}/").items()}
    method.load_state_dict(state)
    return method, record, tensors


def ours(official: str, whose: str = "student") -> str:
    """The name of an official parameter here."""
    name = official.replace("backbone.", "backbone.model.")
    return name if whose == "student" else f"teacher.module.{name}"


def crops_of(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[f"crop.{i}"] for i in range(6)]


def test_features_and_logits_of_the_official_code(golden: Golden) -> None:
    method, record, tensors = golden
    crops, noise = crops_of(tensors), {name: value["max_abs"] for name, value in record["noise"].items()}
    seen: dict[str, Tensor] = {}
    method.head.register_forward_hook(lambda module, args, output: seen.update(student=output))
    method.teacher.register_forward_hook(lambda module, args, output: seen.update(teacher=output))
    method.loss(crops)
    assert_close(seen["student"], tensors["out.student_out"], noise["student_out"])
    assert_close(seen["teacher"], tensors["out.teacher_out"], noise["teacher_out"])
    assert_close(method.backbone(crops[0]), tensors["out.student_cls_global1"], noise["student_cls_global1"])
    assert_close(method.backbone(crops[2]), tensors["out.student_cls_local1"], noise["student_cls_local1"])


def test_loss_centre_and_gradients_of_the_official_code(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    method, record, tensors = golden
    in_epoch(record["config"]["ep"], monkeypatch)
    loss = method.loss(crops_of(tensors))
    loss.backward()
    assert_close(loss, record["loss_float64"])
    assert_close(method.centre.center, tensors["out.center_after"], record["noise"]["center_after"]["max_abs"])
    largest = max(record["grad_norms_float64"].values())
    for name, norm in record["grad_norms_float64"].items():
        rounding = abs(norm - record["grad_norms"][name]) + 1e-9 * largest
        assert_close(method.get_parameter(ours(name)).grad.norm(), norm, rounding)
    clip_gradients(list(method.parameters()), method.optim.clip, method.optim.clip_per)
    clipped = record["grad_norms_after_clip"]
    for name, norm in clipped.items():
        assert_close(method.get_parameter(ours(name)).grad.norm(), norm, 1e-9 * largest)
    unclipped = [name for name, norm in clipped.items() if record["grad_norms"][name] < method.optim.clip]
    assert 0 < len(unclipped) < len(clipped), "both kinds"


def test_loss_of_each_epoch_in_the_official_code(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    method, record, tensors = golden
    for epoch, expected in enumerate(record["loss_zero_center_per_epoch_float64"]):
        in_epoch(epoch, monkeypatch)
        method.centre.center.zero_()
        assert_close(method.loss(crops_of(tensors)), expected)
    in_epoch(record["config"]["ep"], monkeypatch)
    method.centre.center.copy_(tensors["center_before"])
    assert_close(method.loss(crops_of(tensors)[:2]), record["loss_two_globals_only_float64"])


def assert_weights(method: DINO, record: dict[str, Any], tensors: dict[str, Tensor], case: str) -> None:
    """Every weight by its sums, some whole, after the steps of a case."""
    steps = record["steps"][case]
    for whose in ("student", "teacher"):
        noise = {name: value["max_abs"] for name, value in steps[f"noise_{whose}"].items()}
        for name, sums in steps[f"{whose}_checks_float64"].items():
            value = method.get_parameter(ours(name, whose)).detach().double()
            close = {"abs": sums["abs"] * 1e-5 + 10 * value.numel() * noise[name]}
            close |= {"sum": close["abs"], "sq": close["abs"] * 2 * value.abs().max().item()}
            found = {"sum": value.sum(), "abs": value.abs().sum(), "sq": value.square().sum()}
            for kind, expected in sums.items():
                assert found[kind].item() == pytest.approx(expected, abs=close[kind]), f"{whose} {name} {kind}"
        whole = weights(tensors, f"{case}.{whose}.")
        assert len(whole) >= 7
        for name, expected in whole.items():
            assert_close(method.get_parameter(ours(name, whose)), expected, noise[name])
    assert_close(method.centre.center, tensors[f"{case}.center_after"], steps["center_noise"])


def test_a_step_of_the_official_code(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the second epoch."""
    method, record, tensors = golden
    steps, c = record["steps"]["step"], record["config"]
    in_epoch(steps["epoch"], monkeypatch)
    optimizer = build_optimizer(method, method.optim)
    (step,) = steps["iterations"]
    schedule = StepSchedule(method.optim, c["B"], c["epochs"] * c["niter"], c["niter"])
    schedule.apply(optimizer, step)
    assert [group["lr"] for group in optimizer.param_groups] == steps["lr"] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([*steps["wd"], 0])
    method.loss(crops_of(tensors)).backward()
    method.on_before_optimizer_step(optimizer)
    clip_gradients(list(method.parameters()), method.optim.clip, method.optim.clip_per)
    optimizer.step()
    method.teacher.update(step, c["epochs"] * c["niter"])
    assert_weights(method, record, tensors, "step")
    assert all(optimizer.state[p] for group in optimizer.param_groups for p in group["params"])


class StopAfter(pl.Callback):
    def __init__(self, steps: int) -> None:
        self.steps, self.losses = steps, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"])
        trainer.should_stop = trainer.global_step == self.steps


def test_three_steps_with_frozen_prototypes_of_the_official_code(golden: Golden) -> None:
    """The whole way through the trainer: rates, weight decay, clipping, moving average, gradients that are absent."""
    method, record, tensors = golden
    steps, c = record["steps"]["frozen"], record["config"]
    before = method.head.last_layer.weight_v.clone()
    crops = crops_of(tensors)
    batches = [[crop.flip(-1) for crop in crops] if step % 2 else crops for step in range(c["niter"])]
    stop = StopAfter(steps["n_steps"])
    quiet = trainer(max_epochs=c["epochs"], callbacks=[stop])
    quiet.fit(method, datamodule=GivenViews(batches))
    assert_close(sum(stop.losses) / 3, steps["mean_loss_of_steps_float64"])
    assert_weights(method, record, tensors, "frozen")
    assert torch.equal(method.head.last_layer.weight_v, before)
    state = quiet.optimizers[0].state
    stateless = {name for name, p in method.named_parameters() if p.requires_grad and not state.get(p)}
    assert stateless == set(steps["params_without_optimizer_state"])


def test_schedules_of_the_official_code() -> None:
    record = load("dino_step")[0]
    c, expected = record["config"], record["schedules"]
    method, total = golden_dino(), c["epochs"] * c["niter"]
    schedule = StepSchedule(method.optim, c["B"], total, c["niter"])
    teacher = method.teacher
    for step in range(total):
        assert schedule.lr(step) == pytest.approx(expected["lr"][step], rel=1e-12)
        assert schedule.weight_decay(step) == pytest.approx(expected["wd"][step], rel=1e-12)
        momentum = cosine(step, total, teacher.momentum, teacher.final_momentum)
        assert momentum == pytest.approx(expected["momentum"][step], rel=1e-12)
    longer = expected["longer"]
    start, peak, last = longer[0], max(longer), longer[-1]
    warmup = longer.index(peak) + 1
    found = [warmup_cosine_dino(step, len(longer), warmup, peak, 1e-6, start) for step in range(len(longer))]
    assert found[:-1] == pytest.approx(longer[:-1], rel=1e-9)
    assert last > 1e-6, "approached, never reached"
    temps = [method.current_teacher_temp(epoch) for epoch in range(c["epochs"])]
    assert temps == pytest.approx(record["teacher_temp_schedule"], rel=1e-12)


def test_what_decays_in_the_official_code() -> None:
    """Positions, the class token and the prototypes' lengths do."""
    method, record = golden_dino(), load("dino_step")[0]
    names = {id(p): name for name, p in method.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in parameter_groups(method, method.no_weight_decay)]
    assert groups == [{ours(name) for name in group["params"]} for group in record["param_groups"]]


def test_initialisation_of_the_official_code() -> None:
    record = load("dino_step")[0]
    torch.manual_seed(0)
    method = golden_dino()
    for official, (mean, std, largest) in record["param_init_mean_std_absmax"].items():
        values = method.get_parameter(ours(official)).detach()
        if std == 0:
            assert (values == mean).all(), official
            continue
        assert values.std().item() == pytest.approx(std, rel=5 / values.numel() ** 0.5), official
        assert values.mean().abs() < 5 * std / values.numel() ** 0.5, official
        if "weight_v" in official or "patch_embed" in official:  # uniform: the largest of many is near the bound
            assert values.abs().max().item() == pytest.approx(largest, rel=4 / values.numel() ** 0.5), official


def test_stochastic_depth_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    record, tensors = load("dino_utils")
    uniform = tensors["droppath.uniform"]
    monkeypatch.setattr(Tensor, "bernoulli_", lambda draw, keep: draw.copy_(torch.floor(keep + uniform)))
    dropped = DropPath(record["config"]["drop_prob"])(tensors["droppath.x"])
    assert_close(dropped, tensors["droppath.out"])


def test_lars_of_the_official_code() -> None:
    """For its ResNets. A 0-D parameter, which no network here has, it would scale and decay, unlike ours."""
    record, tensors = load("dino_utils")
    c = record["config"]["lars"]
    w, b = (nn.Parameter(tensors[f"lars.w0.{name}"].clone()) for name in "wb")
    groups = [{"params": [w]}, {"params": [b], "decay": False, "weight_decay": 0.0}]
    optimizer = LARS(groups, 0.0, c["momentum"], c["wd"], c["eta"])
    for step, lr in enumerate(c["lrs"]):
        for group in optimizer.param_groups:
            group["lr"] = lr
        w.grad, b.grad = tensors[f"lars.g{step}.w"].clone(), tensors[f"lars.g{step}.b"].clone()
        optimizer.step()
        assert_close(w, tensors[f"lars.w{step + 1}.w"])
        assert_close(b, tensors[f"lars.w{step + 1}.b"])


# The paper's loss in loops


@pytest.mark.parametrize(("crops", "images", "count"), [(2, 1, 3), (2, 5, 17), (3, 2, 8), (12, 3, 64)])
@pytest.mark.parametrize(("student_temp", "teacher_temp"), [(0.1, 0.04), (0.2, 0.07)])
def test_loss_is_the_papers(crops: int, images: int, count: int, student_temp: float, teacher_temp: float) -> None:
    torch.manual_seed(crops)
    temps = {"teacher_temp": teacher_temp, "warmup_teacher_temp_epochs": 0}
    method = dino(prototypes=count, student_temp=student_temp, **temps)
    student = (0.3 * torch.randn(crops, images, count)).requires_grad_()
    teacher, centre = 0.1 * torch.randn(2, images, count), 0.1 * torch.randn(1, count)
    method.centre.center.copy_(centre)
    loss = crop_cross_entropy(student, method.soft_targets(teacher), method.student_temp)
    (gradient,) = torch.autograd.grad(loss, student)
    exact = student.detach().double().requires_grad_()
    expected = paper_loss(exact, teacher.double(), centre[0].double(), student_temp, teacher_temp)
    assert_close(loss, expected)
    assert_close(gradient, torch.autograd.grad(expected, exact)[0])


@pytest.mark.parametrize("name", ["vit_pico_patch4_32", "resnet_nano"])
@pytest.mark.parametrize("local_views", [0, 1, 4])
def test_loss_joins_networks_and_crops(name: str, local_views: int) -> None:
    """Crops in their order, student on all, teacher on two; a batch norm sees those of one size together."""
    method = dino(name, local_views=local_views, local_size=16)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    views = views_of(method, 3)
    assert [view.shape[-1] for view in views] == [32, 32] + [16] * local_views
    method.centre.center.normal_(std=0.01)
    centre = method.centre.center[0].clone()
    with torch.no_grad():
        student = method.backbone(torch.cat(views[:2]))
        if local_views:
            student = torch.cat([student, method.backbone(torch.cat(views[2:]))])
        student = method.head(student).reshape(len(views), 3, -1)
        teacher = method.teacher(torch.cat(views[:2])).reshape(2, 3, -1)
    expected = paper_loss(student.double(), teacher.double(), centre.double(), 0.1, 0.04)
    assert_close(method.loss(views), expected)
    assert_close(method.centre.center[0], 0.9 * centre + 0.1 * teacher.mean((0, 1)))


# One property at a time


def test_pairs_by_hand() -> None:
    """Answers that are certain: only the pairs (teacher 1, student 2) and (teacher 2, student 1) count.

    The student says 0 of its first crop and 1 of its second, the teacher the reverse, so that each agrees with the
    other's other crop: the loss is nearly 0, and 10 per pair the other way around.
    """
    method = dino(prototypes=2, student_temp=0.1, warmup_teacher_temp=0.01)
    student, teacher = torch.eye(2)[:, None], torch.eye(2)[[1, 0]][:, None]
    assert crop_cross_entropy(student, method.soft_targets(teacher), method.student_temp).item() == pytest.approx(
        math.log1p(math.exp(-10)), rel=1e-2
    )
    loss = crop_cross_entropy(student, method.soft_targets(teacher.flip(0)), method.student_temp)
    assert loss.item() == pytest.approx(10 + math.log1p(math.exp(-10)), rel=1e-5)


def test_loss_begins_near_the_logarithm_of_the_prototypes() -> None:
    method = dino(prototypes=4096, bottleneck_dim=256, warmup_teacher_temp=100.0)
    assert method.loss(views_of(method, 4)).item() == pytest.approx(math.log(4096), rel=0.04)


def test_first_loss_has_a_centre_of_zero_and_the_second_the_first_mean() -> None:
    method = dino()
    views = views_of(method, 4)
    teacher = method.teacher(torch.cat(views[:2]))
    assert not method.centre.center.any()
    first = method.loss(views)
    assert_close(method.centre.center, 0.1 * teacher.mean(0, keepdim=True))
    second = method.loss(views)
    assert abs(first - second) > 1e-4
    method.centre.center.zero_()
    assert_close(method.loss(views), first)


def test_teacher_sees_global_crops_only_and_each_size_passes_once() -> None:
    method = dino(local_views=5)
    seen: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": [], "head": []}

    def record(who: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda module, args: seen[who].append(tuple(args[0].shape)))

    record("student", method.backbone)
    record("teacher", method.teacher.module)
    record("head", method.head)
    method.loss(views_of(method, 3))
    assert seen["teacher"] == [(6, 3, 32, 32)]
    assert seen["student"] == [(6, 3, 32, 32), (15, 3, 16, 16)]
    assert seen["head"] == [(21, 48)]


def test_temperature_is_of_the_epoch() -> None:
    method = dino(warmup_teacher_temp=0.02, teacher_temp=0.06, warmup_teacher_temp_epochs=5)
    found = [method.current_teacher_temp(epoch) for epoch in range(7)]
    assert found == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06, 0.06, 0.06])
    assert dino(warmup_teacher_temp_epochs=0).current_teacher_temp(0) == 0.07
    assert dino(warmup_teacher_temp_epochs=1).current_teacher_temp(0) == 0.04
    assert dino(warmup_teacher_temp_epochs=1).current_teacher_temp(1) == 0.07


def test_temperature_stays_within_an_epoch_and_prototypes_move_after_it() -> None:
    """Four steps in two epochs: the first temperature twice, then the second; prototypes frozen in the first."""
    method = dino(warmup_teacher_temp_epochs=2, optim=Optim(warmup_epochs=0))
    temperatures, moved = [], []
    temperature = method.current_teacher_temp

    def recorded(epoch: int) -> float:
        temperatures.append(temperature(epoch))
        return temperatures[-1]

    method.current_teacher_temp = recorded  # type: ignore[method-assign]
    start = method.head.last_layer.weight_v.clone()

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            moved.append(not torch.equal(method.head.last_layer.weight_v, start))

    batches = [views_of(method, 2, seed=seed) for seed in (0, 1)]
    trainer(max_epochs=2, callbacks=[Watch()]).fit(method, datamodule=GivenViews(batches))
    assert temperatures == [0.04, 0.04, 0.07, 0.07]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize("frozen", [True, False])
def test_lengths_of_prototypes_learn_or_do_not(frozen: bool) -> None:
    optim = Optim(base_lr=1.0, weight_decay=0.1, warmup_epochs=0)
    method = dino(norm_last_layer=frozen, freeze_last_layer=0, optim=optim)
    trainer().fit(method, datamodule=GivenViews([views_of(method, 2, seed=seed) for seed in (0, 1)]))
    last = method.head.last_layer
    assert torch.equal(last.weight_g, torch.ones_like(last.weight_g)) is frozen
    assert not torch.equal(last.weight_v, method.teacher.module.head.last_layer.weight_v)


def test_each_gradient_is_clipped_by_itself() -> None:
    large, small = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    large.grad, small.grad = torch.tensor([10.0]), torch.tensor([0.1])
    clip_gradients([large, small], 3.0, dino().optim.clip_per)
    assert (large.grad.item(), small.grad.item()) == pytest.approx((3.0, 0.1))


def test_teacher_starts_as_its_student_and_has_no_stochastic_depth() -> None:
    method = dino(drop_path=0.5)
    views = torch.cat(views_of(method, 4)[:2])
    assert torch.equal(method.teacher(views), method.teacher(views))
    assert not torch.equal(method.backbone(views), method.backbone(views))
    assert torch.equal(method.teacher(views), method.head(method.backbone.eval()(views)))


def test_teacher_is_what_is_evaluated() -> None:
    method = dino()
    assert method.evaluated is method.teacher.module.backbone
    assert method.evaluated is not method.backbone
    assert not any(p.requires_grad for p in method.evaluated.parameters())


def test_batch_norms_of_the_teacher_are_its_own() -> None:
    method = dino("resnet_nano")
    method.loss(views_of(method, 4))
    own, student = method.teacher.module.backbone.model.bn1, method.backbone.model.bn1
    assert own.training
    assert own.num_batches_tracked == 1
    assert student.num_batches_tracked == 2  # global, then local crops
    assert not torch.equal(own.running_mean, student.running_mean)


def test_softmaxes_are_float32_in_half_precision() -> None:
    method = dino()
    views = views_of(method, 4)
    with torch.autocast("cpu", torch.bfloat16):
        teacher = method.teacher(torch.cat(views[:2])).unflatten(0, (2, -1))
        student = method.head(method.backbone(torch.cat(views[:2]))).unflatten(0, (2, -1))
        loss = method.loss(views[:2])
    assert (teacher.dtype, student.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (loss.dtype, method.centre.center.dtype) == (torch.float32, torch.float32)
    assert_close(loss, paper_loss(student.double(), teacher.double(), torch.zeros(40), 0.1, 0.04))


def test_names_are_those_of_official_checkpoints() -> None:
    """A checkpoint of theirs for the student's network and head loads by replacing one prefix."""
    official = weights(load("dino_weights")[1], "student/")
    own = golden_dino().state_dict()
    assert {ours(name) for name in official} == {n for n in own if n.startswith(("backbone.", "head."))}
    assert {ours(name, "teacher") for name in official} == {n for n in own if n.startswith("teacher.")}
    assert set(own) - {ours(n, w) for n in official for w in ("student", "teacher")} == {"centre.center"}


# Views, options and recipe


def test_views_are_those_of_the_official_code() -> None:
    method = DINO(Backbone(BackboneOptions("vit_tiny_patch16_224", depth=1)), prototypes=8, hidden_dim=8)
    first, second, local = method.views()
    assert [(v.size, v.count, v.scale) for v in (first, second)] == [(224, 1, (0.25, 1.0))] * 2
    assert (local.size, local.count, local.scale) == (96, 10, (0.05, 0.25))
    assert [v.blur for v in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [v.solarize for v in (first, second, local)] == [0.0, 0.2, 0.0]
    for view in (first, second, local):
        assert (view.jitter, view.jitter_p, view.grayscale, view.flip) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5)
        assert (view.interpolation, view.ratio, view.blur_sigma) == ("bicubic", (3 / 4, 4 / 3), (0.1, 2.0))
        assert view.taps >= 13
    tokens = method.backbone.tokens(torch.rand(1, 3, 96, 96))
    assert tokens.shape[1] == 37


def test_views_are_options() -> None:
    given: dict[str, Any] = {"blur": [0.0, 0.2, 0.3], "global_scale": [0.5, 0.9], "local_scale": [0.1, 0.2]}
    first, second, local = dino(local_size=12, solarize=0.1, **given).views()
    assert [(v.size, v.scale, v.blur, v.solarize) for v in (first, second, local)] == [
        (32, (0.5, 0.9), 0.0, 0.0),
        (32, (0.5, 0.9), 0.2, 0.1),
        (12, (0.1, 0.2), 0.3, 0.0),
    ]
    assert len(dino(local_views=0).views()) == 2


@pytest.mark.parametrize(
    ("name", "size", "patch", "local"),
    [
        ("vit_pico_patch4_32", 32, None, 16),
        ("vit_pico_patch4_32", 64, 8, 32),
        ("vit_pico_patch4_32", 224, 16, 96),
        ("vit_pico_patch4_32", 224, 14, 98),
        ("vit_pico_patch4_32", 224, 8, 96),
        ("resnet_nano", 32, None, 16),
        ("resnet_nano", 224, None, 96),
    ],
)
def test_local_crops_are_in_proportion(name: str, size: int, patch: int | None, local: int) -> None:
    backbone = Backbone(BackboneOptions(name, img_size=size, patch_size=patch))
    assert DINO(backbone, prototypes=8, hidden_dim=8).local_size == local


@pytest.mark.parametrize("name", ["swin_pico_patch2_32", "beit_pico_patch4_32"])
def test_networks_of_one_size_take_no_local_crops(name: str) -> None:
    with pytest.raises(UserError, match=r"^\w+ takes no views of \d+ pixels.*--method.local_views 0"):
        dino(name)
    method = dino(name, local_views=0)
    method.loss(views_of(method, 2)).backward()
    method = dino(name, local_views=2, local_size=32)
    views = views_of(method, 2)
    assert len(views) == 4
    assert method.loss(views).isfinite()


def test_a_swin_that_takes_any_size_takes_local_crops() -> None:
    backbone = Backbone(BackboneOptions("swin_pico_patch2_32", timm_args={"strict_img_size": False}))
    method = DINO(backbone, **SMALL)
    views = views_of(method, 2)
    assert [view.shape[-1] for view in views[1:3]] == [32, 16]
    method.loss(views).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_a_beit_with_absolute_positions_takes_local_crops() -> None:
    args = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": False}
    backbone = Backbone(BackboneOptions("beit_pico_patch4_32", timm_args=args))
    method = DINO(backbone, **SMALL)
    views = views_of(method, 2)
    assert views[2].shape[-1] == 16
    method.loss(views).backward()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"local_size": 18}, "--method.local_size 18 is no multiple of the patch size 4: try 16"),
        ({"local_size": 0}, "--method.local_size 0 .* try 4"),
        ({"local_views": -1}, "--method.local_views -1 must be 0 or more"),
        ({"teacher_temp": 0.0}, "must be above 0"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dino(**given)


def test_defaults_are_those_of_the_published_vit() -> None:
    method = DINO(Backbone(BackboneOptions("vit_pico_patch4_32")))
    assert method.head.last_layer.weight_v.shape == (65536, 256)
    assert [module.out_features for module in method.head.mlp[::2]] == [2048, 2048, 256]
    assert method.head.last_layer.weight_g.requires_grad
    assert (method.student_temp, method.teacher_temp, method.warmup_teacher_temp) == (0.1, 0.07, 0.04)
    assert (method.warmup_teacher_temp_epochs, method.freeze_last_layer) == (30, 1)
    assert (method.teacher.momentum, method.teacher.final_momentum, method.centre.momentum) == (0.996, 1.0, 0.9)
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.betas) == ("adamw", 5e-4, "linear", (0.9, 0.999))
    assert (optim.weight_decay, optim.weight_decay_end, optim.schedule) == (0.04, 0.4, "cosine_dino")
    assert (optim.warmup_epochs, optim.clip, optim.clip_per) == (10, None, "tensor")
    assert StepSchedule(optim, 1024, 100, 1).floor == pytest.approx(1e-5)
