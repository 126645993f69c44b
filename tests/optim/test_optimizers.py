"""Optimisers, groups, clipping and per-step values against official codes, torch and hand-worked numbers."""

import math
from typing import Any

import pytest
import torch
from golden_files import assert_close, load
from torch import Tensor, nn

from ssl_bench.config.options import Optim
from ssl_bench.optim.optimizers import LARS, StepSchedule, build_optimizer, clip_gradients, parameter_groups


def run_lars(tensors: dict[str, Tensor], excluded: list[str], rates: list[float], **given: Any) -> dict[str, Tensor]:
    """Three steps on the golden gradients; the weights after each, as w1.name, w2.name, w3.name, and the buffers."""
    names = [name.removeprefix("w0.") for name in tensors if name.startswith("w0.")]
    params = {name: nn.Parameter(tensors[f"w0.{name}"].clone()) for name in names}
    groups = [
        {"params": [p for n, p in params.items() if n not in excluded]},
        {"params": [params[n] for n in excluded], "decay": False},
    ]
    optimizer = LARS(groups, lr=0.0, **given)
    found = {}
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, param in params.items():
            param.grad = tensors[f"g{step}.{name}"]
        optimizer.step()
        found |= {f"w{step + 1}.{name}": param.detach().clone() for name, param in params.items()}
    return found | {f"buffer.{name}": optimizer.state[param]["momentum_buffer"] for name, param in params.items()}


# LARS


def test_lars_of_simclr() -> None:
    record, tensors = load("simclr_lars")
    c = record["config"]
    names = [name.removeprefix("w0.") for name in tensors if name.startswith("w0.")]
    excluded = [name for name in names if any(part in name for part in c["exclude"])]
    given = {"momentum": c["momentum"], "weight_decay": c["weight_decay"], "trust": c["eeta"]}
    classic = run_lars(tensors, excluded, c["lrs"], rate_in_momentum=True, **given)
    popular = run_lars(tensors, excluded, c["lrs"], rate_in_momentum=False, **given)
    for name in names:
        for step in (1, 2, 3):
            assert_close(classic[f"w{step}.{name}"], tensors[f"w{step}.{name}"])
        assert_close(classic[f"buffer.{name}"], tensors[f"momentum.{name}"])
    for name in excluded:  # elsewhere its "popular" form measures the buffer, which no other code does, nor ours
        assert_close(popular[f"w3.{name}"], tensors[f"popular.w3.{name}"])


def test_lars_of_mae_and_moco_v3() -> None:
    record, tensors = load("mae_lars")
    c = record["config"]
    excluded = [n.removeprefix("w0.") for n, t in tensors.items() if n.startswith("w0.") and t.ndim < 2]
    found = run_lars(tensors, excluded, c["lrs"], momentum=c["mom"], weight_decay=c["wd"], trust=c["tc"])
    for name, value in found.items():
        official = name.replace("buffer.", "mu.")
        assert_close(value, tensors[official], record["noise"][official]["max_abs"])


def test_lars_of_byol() -> None:
    record, tensors = load("byol_lars_schedules")
    c = record["config"]
    names = [name.removeprefix("w0.") for name in tensors if name.startswith("w0.")]
    excluded = [n for n in names if n.endswith("/b") or "norm" in n]
    given = {"momentum": c["momentum"], "weight_decay": c["weight_decay"], "trust": c["eta"]}
    found = run_lars(tensors, excluded, c["lrs"], **given)
    for name, value in found.items():
        if not name.startswith("buffer."):
            assert_close(value, tensors[name], record["noise"][name]["max_abs"])


@pytest.mark.parametrize(
    ("inside", "weights_by_hand", "biases_by_hand"),
    [(True, (1.8, 1.34, 1.043), (0.0, -2.5, -4.25)), (False, (1.8, 1.24, 1.108), (0.0, -3.0, -3.875))],
    ids=["rate inside the momentum", "rate outside"],
)
def test_lars_by_hand(inside: bool, weights_by_hand: tuple[float, ...], biases_by_hand: tuple[float, ...]) -> None:
    """Gradients of 1, momentum 0.5, trust 0.1, rates 1, 2, 0.5: the adapted step is 0.1 w, the plain one 1.

    Inside:  v = 0.2, 0.1 + 2 * 0.18, 0.23 + 0.5 * 0.134 and w -= v.
    Outside: v = 0.2, 0.1 + 0.18, 0.14 + 0.124 and w -= rate * v.
    """
    weight, bias = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weight]}, {"params": [bias], "decay": False}]
    optimizer = LARS(groups, lr=0.0, momentum=0.5, trust=0.1, rate_in_momentum=inside)
    found = []
    for rate in (1.0, 2.0, 0.5):
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad, bias.grad = torch.ones(1, 1), torch.ones(1)
        optimizer.step()
        found.append((weight.item(), bias.item()))
    assert tuple(w for w, _ in found) == pytest.approx(weights_by_hand)
    assert tuple(b for _, b in found) == pytest.approx(biases_by_hand)


def test_lars_measures_the_gradient_with_weight_decay_in_it() -> None:
    """g + w = (6, 0) has norm 6, w norm 5: the step is 0.1 * 5 / 6 * (6, 0). Biases see neither."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    groups = [{"params": [weight]}, {"params": [bias], "decay": False}]
    optimizer = LARS(groups, lr=1.0, weight_decay=1.0, trust=0.1)
    weight.grad, bias.grad = torch.tensor([[3.0, -4.0]]), torch.tensor([3.0, -4.0])
    optimizer.step()
    assert_close(weight, torch.tensor([[2.5, 4.0]]))
    assert_close(bias, torch.tensor([0.0, 8.0]))


def test_lars_with_no_weight_or_no_gradient_takes_the_plain_step() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([zero, still, unused], lr=0.5)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert_close(zero, torch.full((2, 2), -0.5))
    assert torch.equal(still, torch.ones(2, 2))
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_lars_resumes_from_its_state() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(4, 3, 4)

    def steps(optimizer: LARS, parameter: nn.Parameter, which: range) -> None:
        for i in which:
            parameter.grad = gradients[i]
            optimizer.step()

    whole = nn.Parameter(start.clone())
    steps(LARS([whole], lr=0.1, weight_decay=0.1), whole, range(4))
    half = nn.Parameter(start.clone())
    first = LARS([half], lr=0.1, weight_decay=0.1)
    steps(first, half, range(2))
    second = LARS([half], lr=0.1, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, half, range(2, 4))
    assert torch.equal(half, whole)


# AdamW and SGD


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_trajectory_is_torchs(name: str) -> None:
    torch.manual_seed(0)
    optim = Optim(name, weight_decay=0.1, momentum=0.8, betas=(0.9, 0.95))  # type: ignore[arg-type]
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    decayed = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference: torch.optim.Optimizer = (
        torch.optim.AdamW(decayed, lr=0.0, betas=(0.9, 0.95), foreach=False)
        if name == "adamw"
        else torch.optim.SGD(decayed, lr=0.0, momentum=0.8, foreach=False)
    )
    optimizer = build_optimizer(ours, optim)
    for rate in (0.1, 0.3, 0.05, 0.0):
        for group in [*optimizer.param_groups, *reference.param_groups]:
            group["lr"] = rate
        x = torch.randn(4, 5)
        for module in (ours, theirs):
            module.zero_grad()
            module(x).square().mean().backward()
        optimizer.step()
        reference.step()
        assert_close(ours.weight, theirs.weight)
        assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize(("name", "inside"), [("lars", False), ("lars_tf", True)])
def test_recipe_of_lars(name: str, inside: bool) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), Optim(name, weight_decay=0.01, momentum=0.8))  # type: ignore[arg-type]
    assert isinstance(optimizer, LARS)
    for group in optimizer.param_groups:
        assert (group["rate_in_momentum"], group["momentum"], group["trust"]) == (inside, 0.8, 0.001)
    assert [(g["decay"], g["weight_decay"]) for g in optimizer.param_groups] == [(True, 0.01), (False, 0.0)]


# Groups


class Parts(nn.Module):
    """A parameter of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.table = nn.Module()
        self.table.bias = nn.Parameter(torch.zeros(2, 2))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


def test_groups() -> None:
    """Tokens decay, as in DINO's, iBOT's, MAE's and CAE's code; what is named bias does not, whatever its shape."""
    parts = Parts()
    names = {id(p): name for name, p in parts.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(parts))
    assert decayed == ["token", "linear.weight"]
    assert set(plain) == {"scale", "linear.bias", "norm.weight", "norm.bias", "table.bias"}
    in_optimizer = {id(p) for g in build_optimizer(parts, Optim()).param_groups for p in g["params"]}
    assert in_optimizer == {id(p) for p in parts.parameters()} - {id(parts.frozen)}


def test_names_without_weight_decay() -> None:
    parts = Parts()
    decayed, plain = (group["params"] for group in parameter_groups(parts, {"token"}))
    assert [id(p) for p in decayed] == [id(parts.linear.weight)]
    assert id(parts.token) in {id(p) for p in plain}
    with pytest.raises(AssertionError, match="no such parameters"):
        parameter_groups(parts, {"tokens"})


def test_an_optimizer_has_no_empty_group() -> None:
    assert len(build_optimizer(nn.Linear(2, 2, bias=False), Optim()).param_groups) == 1


# What changes with the step


def scheduled(optim: Optim, images_per_step: int, total: int, per_epoch: float) -> tuple[StepSchedule, Any]:
    optimizer = build_optimizer(nn.Linear(2, 2), optim)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))], "decay": True, "lr_scale": 0.5})
    return StepSchedule(optim, images_per_step, total, per_epoch), optimizer


@pytest.mark.parametrize("case", load("mae_optim_groups")[0]["lr_sched"], ids=lambda c: f"warm-up {c['warmup']}")
def test_rates_of_mae_with_layer_decay(case: dict[str, Any]) -> None:
    optim = Optim("adamw", case["lr"], "none", warmup_epochs=case["warmup"], min_lr=case["min_lr"])
    schedule, optimizer = scheduled(optim, 4096, case["epochs"] * case["iters_per_epoch"], case["iters_per_epoch"])
    for step, (_, plain, half) in enumerate(case["values"]):
        schedule.apply(optimizer, step)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([plain, plain, half], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("case", load("simclr_schedule")[0]["schedules"])
def test_rates_of_simclr(case: dict[str, Any]) -> None:
    config = load("simclr_schedule")[0]["config"]
    optim = Optim("lars_tf", config["base_lr"], case["scaling"], warmup_epochs=case["warmup_epochs"])
    per_epoch = config["num_examples"] / config["batch"]
    schedule, _ = scheduled(optim, config["batch"], case["train_steps"], per_epoch)
    for step, lr in enumerate(case["lr"]):
        assert schedule.lr(step) == pytest.approx(lr, rel=1e-6, abs=1e-7 * schedule.peak)


def test_rates_of_byol() -> None:
    lr = load("byol_lars_schedules")[0]["lr"]
    schedule, _ = scheduled(Optim("lars", lr["base"], warmup_epochs=lr["warmup"]), lr["batch"], lr["total"], 1)
    ours = [schedule.lr(step) for step in range(len(lr["values"]))]
    assert ours == pytest.approx(lr["values"], rel=1e-6, abs=1e-8)


def test_rates_weight_decay_of_dino_and_ibot() -> None:
    """Their rates are per 256 images already."""
    for name in ("dino_step", "ibot_step"):
        record = load(name)[0]
        c, values = record["config"], record["schedules"]
        optim = Optim(
            "adamw",
            c["lr"],
            "none",
            c["wd"],
            c["wd_end"],
            schedule="cosine_dino",
            warmup_epochs=c["warm"],
            min_lr=c["min_lr"],
        )
        schedule, optimizer = scheduled(optim, 64, c["epochs"] * c["niter"], c["niter"])
        for step, (lr, decay) in enumerate(zip(values["lr"], values["wd"], strict=True)):
            schedule.apply(optimizer, step)
            groups = optimizer.param_groups
            assert [g["lr"] for g in groups] == pytest.approx([lr, lr, 0.5 * lr], rel=1e-9)
            assert [g["weight_decay"] for g in groups] == pytest.approx([decay, 0.0, decay], rel=1e-9)


@pytest.mark.parametrize("name", ["cosine", "multistep"])
def test_rates_of_simmim(name: str) -> None:
    """Per 512 images there, 2048 a step: base, start and end are scaled alike. A step has the previous one's value."""
    case = load("simmim_schedules")[0]["schedules"][name]
    base, start, end = (case[key] / 8 for key in ("base_lr", "warmup_lr", "min_lr"))
    kind: Any = {"cosine": "cosine_simmim", "multistep": "steps_simmim"}[name]
    given = {"warmup_epochs": case["warmup_epochs"], "warmup_lr": start, "milestones": tuple(case["milestones"])}
    optim = Optim("adamw", base, schedule=kind, min_lr=end, **given)
    total = case["epochs"] * case["iters_per_epoch"]
    schedule, optimizer = scheduled(optim, 2048, total, case["iters_per_epoch"])
    for step in range(total):
        schedule.apply(optimizer, step)
        lr = case["lr_at_update"][max(step - 1, 0)]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr, 0.5 * lr], rel=1e-9)


def test_rates_of_cae() -> None:
    """1.5e-3 whatever the batch, 20 of 100 steps of warm-up; an array as numpy's linspace and cosine make it."""
    optim = Optim("adamw", 1.5e-3, "none", schedule="cosine_dino", warmup_epochs=2, min_lr=1e-5)
    schedule, _ = scheduled(optim, 2048, 100, 10)
    rise = torch.linspace(0, 1.5e-3, 20, dtype=torch.float64)
    fall = 1e-5 + 0.5 * (1.5e-3 - 1e-5) * (1 + torch.cos(math.pi * torch.arange(80, dtype=torch.float64) / 80))
    assert_close(torch.tensor([schedule.lr(step) for step in range(100)]), torch.cat([rise, fall]))


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 2.0), ("sqrt", math.sqrt(512)), ("none", 1.0)])
def test_scaling_by_the_images_of_a_step(scaling: Any, factor: float) -> None:
    schedule, _ = scheduled(Optim("sgd", 0.1, scaling, warmup_epochs=2, min_lr=0.01), 512, 100, 10)
    assert (schedule.lr(0), schedule.lr(10), schedule.lr(20)) == pytest.approx((0.0, 0.05 * factor, 0.1 * factor))
    assert schedule.lr(60) == pytest.approx(0.055 * factor)
    assert schedule.lr(100) == pytest.approx(0.01 * factor)


def test_weight_decay_follows_its_cosine_where_there_is_any() -> None:
    schedule, optimizer = scheduled(Optim(weight_decay=0.04, weight_decay_end=0.4), 256, 8, 1)
    for step, expected in ((0, 0.04), (4, 0.22), (8, 0.4)):
        schedule.apply(optimizer, step)
        assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([expected, 0.0, expected])
    constant, optimizer = scheduled(Optim(weight_decay=0.04), 256, 8, 1)
    constant.apply(optimizer, 5)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.04, 0.0, 0.04]


def test_warmup_longer_than_the_run_ends_with_it() -> None:
    schedule, _ = scheduled(Optim(base_lr=1.0, scaling="none", warmup_epochs=10), 256, 20, 5)
    assert schedule.lr(10) == 0.5
    assert schedule.lr(20) == 1.0


# Clipping


def parameters(*gradients: list[float] | None) -> list[Tensor]:
    found: list[Tensor] = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(len(gradient or [0.0])))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        found.append(parameter)
    return found


def test_clipping_each_tensor_by_hand() -> None:
    """Norms 5 and 0.5 against 1: only the first shrinks."""
    first, second, third = parameters([3.0, 4.0], [0.3, 0.4], None)
    clip_gradients([first, second, third], 1.0, "tensor")
    assert first.grad is not None and second.grad is not None
    assert_close(first.grad, torch.tensor([0.6, 0.8]))
    assert torch.equal(second.grad, torch.tensor([0.3, 0.4]))
    assert third.grad is None


def test_clipping_the_model_by_hand() -> None:
    """Norms 3 and 4 are 5 together; to 1, both shrink five times."""
    first, second = parameters([3.0], [0.0, 4.0])
    clip_gradients([first, second], 1.0, "model")
    assert first.grad is not None and second.grad is not None
    assert_close(first.grad, torch.tensor([0.6]))
    assert_close(second.grad, torch.tensor([0.0, 0.8]))


@pytest.mark.parametrize("clip", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("per", ["model", "tensor"])
def test_clipping_is_torchs(clip: float, per: str) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(n, n).tolist() for n in (2, 3, 4)]
    ours, theirs = ([nn.Parameter(torch.zeros(len(g), len(g))) for g in gradients] for _ in range(2))
    for group in (ours, theirs):
        for parameter, gradient in zip(group, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
    clip_gradients(list(ours), clip, per)
    for part in [theirs] if per == "model" else [[p] for p in theirs]:
        nn.utils.clip_grad_norm_(part, clip)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        assert_close(a.grad, b.grad)


def test_no_clip_touches_nothing() -> None:
    (only,) = parameters([3.0, 4.0])
    clip_gradients([only], None, "model")
    assert only.grad is not None
    assert torch.equal(only.grad, torch.tensor([3.0, 4.0]))


def test_adamw_that_clips_leaves_unscaling_to_the_scaler() -> None:
    """Under 16-mixed a fused AdamW would unscale inside its step, after scaled gradients have been clipped."""
    for clip, inside in ((None, True), (1.0, False)):
        optimizer = build_optimizer(nn.Linear(2, 2), Optim("adamw", clip=clip))
        assert getattr(optimizer, "_step_supports_amp_scaling", False) == inside


@pytest.mark.parametrize("inside", [True, False])
def test_lars_on_a_device_is_lars_on_a_processor(inside: bool) -> None:
    """All tensors at once, as on a device, beside one at a time; a zero weight and a zero gradient among them."""
    torch.manual_seed(0)
    shapes = [(4, 3), (7, 2, 3), (5, 5), (3, 3)]
    apart, together = ([nn.Parameter(torch.randn(s, generator=seeded(i))) for i, s in enumerate(shapes)] for _ in "ab")
    optimizers = [LARS(params, lr=0.3, weight_decay=0.1, rate_in_momentum=inside) for params in (apart, together)]
    for step in range(3):
        for params in (apart, together):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=seeded(10 * step + i))
            with torch.no_grad():
                params[2].zero_()
            params[3].grad = -0.1 * params[3].detach()  # with weight decay nothing is left
        optimizers[0].step()
        with torch.no_grad():
            optimizers[1]._update(list(together), optimizers[1].param_groups[0])
        for p, q in zip(apart, together, strict=True):
            torch.testing.assert_close(p, q)
    assert not torch.equal(apart[0], torch.randn(shapes[0], generator=seeded(0)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
