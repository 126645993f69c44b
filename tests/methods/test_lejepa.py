"""LeJEPA against the official code, its statistic by numerical integration, and the limits it must have."""

import math
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from official_steps import check_gradients, check_losses, check_state, renamed, take_steps
from small import GivenViews, trainer
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.lejepa import LeJEPA
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import StepSchedule

NAMES = {
    "backbone.head.": "embedding.",
    "backbone.": "backbone.model.",
    "proj.0.": "projector.0.",
    "proj.1.": "projector.1.",
    "proj.4.": "projector.3.",
    "proj.5.": "projector.4.",
    "proj.8.": "projector.6.",
}


def lejepa(backbone: str = "vit_pico_patch4_32", **given: Any) -> LeJEPA:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_dim": 20, "hidden_dim": 24, "projection_dim": 6, "directions": 32}
    sizes |= {"local_views": 2, "local_size": 16}
    return LeJEPA(Backbone(BackboneOptions(backbone, img_size=32)), **sizes | given)


def crops(images: int = 4, seed: int = 0, local: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(images, 3, s, s, generator=generator) for s in [32, 32, *[16] * local]]


def paper_statistic(x: Tensor, knots: int = 17, last: float = 3.0) -> Tensor:
    """Of (N,) numbers, in loops: N times the integral over the whole line, by the trapezoidal rule, float64."""
    x = x.double()
    total = torch.zeros((), dtype=torch.float64)
    step = last / (knots - 1)
    for k in range(-(knots - 1), knots):
        t = k * step
        gaussian = math.exp(-(t**2) / 2)
        real, imaginary = torch.cos(t * x).mean() - gaussian, torch.sin(t * x).mean()
        edge = 0.5 if abs(k) == knots - 1 else 1.0
        total = total + edge * step * gaussian * (real**2 + imaginary**2)
    return len(x) * total


# The official code


def official() -> tuple[LeJEPA, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load("lejepa_step")
    c = record["config"]
    size = {"width": c["dim"], "depth": c["depth"], "num_heads": c["heads"], "timm_args": {"mlp_ratio": 2.0}}
    options = BackboneOptions("vit_tiny_patch16_224", img_size=c["img"], patch_size=c["patch"], **size)
    method = LeJEPA(
        Backbone(options),
        c["lamb"],
        embedding_dim=c["emb"],
        hidden_dim=c["hid"],
        projection_dim=c["proj"],
        directions=256,
        global_views=c["V"],
        local_views=0,
        optim=Optim("adamw", c["lr"], "none", c["wd"], warmup_epochs=0, min_lr=c["lr"]),
    )
    return method, record, tensors


def stored(tensors: dict[str, Tensor], step: int) -> list[Tensor]:
    return list(tensors[f"in.step{step}.views"].unbind(1))


def test_outputs_and_loss_of_the_official_code() -> None:
    method, record, tensors = official()
    method.load_state_dict(renamed(weights(tensors, "w."), NAMES))
    found: dict[str, Tensor] = {}
    method.projector.register_forward_hook(lambda _, args, out: found.update(emb=args[0], proj=out))
    loss = method.loss(stored(tensors, 0), directions=tensors["in.directions"])
    views = record["config"]["V"]
    by_image = found["emb"].unflatten(0, (views, -1)).transpose(0, 1).flatten(0, 1)
    assert_close(by_image, tensors["out.emb"], record["noise"]["out.emb"]["max_abs"])
    assert_close(found["proj"].unflatten(0, (views, -1)), tensors["out.proj"], record["noise"]["out.proj"]["max_abs"])
    assert_close(loss, record["loss_float64"])


def test_two_steps_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, AdamW with decay of everything, and what the projector's norms have seen: all views at once."""
    method, record, tensors = official()
    monkeypatch.setattr(method, "draw_directions", lambda z: tensors["in.directions"].double())
    start = renamed(weights(tensors, "w."), NAMES)
    steps = take_steps(method, [stored(tensors, step) for step in range(2)], start, 0, record["config"]["steps"], 1)
    check_losses(record, steps.losses)
    check_gradients(record, tensors, NAMES, steps.gradients)
    kept = {n: sums for n, sums in record["after_checks_float64"].items() if not n.endswith("qkv.bias")}
    noisy = {n: sums for n, sums in kept.items() if n not in ("proj.0.bias", "proj.4.bias")}  # before a batch norm
    assert check_state(record | {"after_checks_float64": noisy}, tensors, NAMES, steps.after) >= 40


def test_statistic_of_the_official_code() -> None:
    record, tensors = load("lejepa_sigreg")
    method = lejepa()
    z = tensors["in.proj"].requires_grad_()
    found = torch.stack([method.deviation(view @ tensors["in.directions"]) for view in z])
    name = "out.statistic_per_view_and_slice"
    assert_close(found, tensors[name], record["noise"][name]["max_abs"])
    assert_close(found.mean(), record["statistic_mean_float64"])
    (gradient,) = torch.autograd.grad(found.mean(), z)
    name = "grad.proj_of_mean_statistic"
    assert_close(gradient, tensors[name], record["noise"][name]["max_abs"])
    assert_close(method.knots, tensors["out.t"])
    assert_close(method.spacing * (-method.knots.square() / 2).exp(), tensors["out.weights"])
    for value, key in ((0.0, "statistic_of_constant_zero"), (100.0, "statistic_of_constant_100")):
        same = torch.full((record["config"]["N"], 3), value)
        assert method.deviation(same).mean().item() == pytest.approx(record[key], rel=1e-4)


def test_objective_and_directions_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    record, tensors = load("lejepa_sigreg")
    c = record["config"]
    method = lejepa(gaussian_weight=c["lamb"], directions=c["slices"], local_views=0)
    monkeypatch.setattr(type(method), "global_step", c["step"])
    assert torch.equal(method.draw_directions(tensors["in.proj"]), tensors["in.directions"])
    for part in ("backbone", "embedding", "projector"):
        monkeypatch.setattr(method, part, nn.Identity())
    loss = method.loss(list(tensors["in.proj"]), directions=tensors["in.minimal_directions"])
    assert_close(loss, record["minimal_terms_float64"]["loss"])


def test_rates_of_the_official_code() -> None:
    record = load("lejepa_sigreg")[0]
    c = record["config"]
    optim = Optim("adamw", c["lr"], "none", warmup_epochs=1, warmup_lr=c["lr"] / 100, min_lr=1e-3)  # of MINIMAL.md
    schedule = StepSchedule(optim, 8, c["epochs"] * c["L"], c["L"])
    for step, (rate, _) in enumerate(record["lr_schedule_network_and_probe"]):
        assert schedule.lr(step) == pytest.approx(rate)


def test_defaults_are_the_readmes() -> None:
    method = LeJEPA(Backbone(BackboneOptions("vit_pico_patch4_32", img_size=224)))
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("adamw", 5e-4, "none", 5e-2)
    assert (optim.warmup_epochs, optim.warmup_lr, optim.min_lr) == (1, 5e-6, 5e-7)
    assert (method.gaussian_weight, method.directions, len(method.knots)) == (0.02, 1024, 17)
    assert [m.out_features for m in method.projector if isinstance(m, nn.Linear)] == [2048, 2048, 16]
    big, small = method.views()
    assert (big.size, big.count, big.scale) == (224, 2, (0.3, 1.0))
    assert (small.size, small.count, small.scale) == (96, 6, (0.05, 0.3))
    for view in (big, small):
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (view.blur, view.solarize) == (0.5, 0.2)
    (group,) = method.parameter_groups()
    assert group["decay"] and len(group["params"]) == len(list(method.parameters()))


# The loss


@pytest.mark.parametrize(("knots", "last"), [(17, 3.0), (5, 2.0), (33, 5.0)])
def test_statistic_is_the_integral_over_the_whole_line(knots: int, last: float) -> None:
    method = lejepa(knots=knots, knot_range=last)
    torch.manual_seed(0)
    x = 1.5 * torch.randn(9, 4) + 0.3
    expected = torch.stack([paper_statistic(column, knots, last) for column in x.unbind(1)])
    assert_close(method.deviation(x), expected)


def test_limits_of_the_statistic() -> None:
    """About 1 for a Gaussian however many there are; else it grows with their number."""
    method = lejepa()
    torch.manual_seed(0)
    for count in (64, 512):
        assert method.deviation(torch.randn(count, 2000)).mean().item() == pytest.approx(1.05, abs=0.05)
        assert method.deviation(torch.zeros(count, 1)).item() == pytest.approx(0.402 * count, rel=1e-2)
        wide = 1e4 * torch.randn(count, 500, dtype=torch.float64)
        # sqrt(2 pi / 3) for a function that is 0 everywhere; but at its first knot, 0, every one is 1
        vanishing = math.sqrt(2 * math.pi / 3) - 3 / 16
        assert method.deviation(wide).mean().item() == pytest.approx(vanishing * count, rel=0.04)


@pytest.mark.parametrize("local", [0, 3])
def test_loss_is_of_each_view_and_pulls_to_the_mean_of_all(local: int) -> None:
    method, views = lejepa(local_views=local, gaussian_weight=0.3), crops(5, local=local)
    found: dict[str, Tensor] = {}
    method.projector.register_forward_hook(lambda _, args, out: found.update(z=out.detach()))
    loss = method.loss(views)
    z = found["z"].unflatten(0, (len(views), -1)).double()  # (V, B, P)
    directions = method.draw_directions(z).double()
    statistics = [paper_statistic(view @ direction) for view in z for direction in directions.T]
    mean = sum(z) / len(z)
    invariance = sum(((view - mean) ** 2).mean() for view in z) / len(z)
    assert_close(loss, 0.3 * sum(statistics) / len(statistics) + 0.7 * invariance)


def test_gradient_of_the_invariance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    method = lejepa(gaussian_weight=0.0, local_views=0)
    for part in ("backbone", "embedding", "projector"):
        monkeypatch.setattr(method, part, nn.Identity())
    z0, z1 = torch.randn(2, 4, 6).requires_grad_().unbind()
    (gradient,) = torch.autograd.grad(method.loss([z0, z1]), z0)
    assert_close(gradient, (z0 - z1) / 2 / z0.numel())


def test_directions_are_new_in_every_step_and_come_back_on_resuming() -> None:
    method = lejepa(optim=Optim("sgd", base_lr=0.0, warmup_epochs=0), local_views=0)
    drawn: list[Tensor] = []
    draw = method.draw_directions
    method.draw_directions = lambda z: (drawn.append(draw(z)), drawn[-1])[1]  # type: ignore[method-assign]
    trainer(max_epochs=2).fit(method, datamodule=GivenViews([crops(seed=s, local=0) for s in range(2)]))
    assert len(drawn) == 4
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    for step, directions in enumerate(drawn):
        assert_close(directions.norm(dim=0), torch.ones(32))
        expected = torch.randn(6, 32, generator=torch.Generator().manual_seed(step))
        assert_close(directions, expected / expected.norm(dim=0))


def test_projector_sees_all_views_at_once() -> None:
    method = lejepa(local_views=3)
    seen: dict[str, list[int]] = {}
    for name, part in {"trunk": method.backbone, "projector": method.projector}.items():
        part.register_forward_hook(lambda _, args, __, name=name: seen.setdefault(name, []).append(len(args[0])))
    method.loss(crops(4, local=3))
    assert seen == {"trunk": [8, 12], "projector": [20]}


def test_statistic_is_float32_in_half_precision() -> None:
    method = lejepa()
    seen: list[torch.dtype] = []
    deviation = method.deviation
    method.deviation = lambda x: (seen.append(x.dtype), deviation(x))[1]  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(crops())
    assert loss.dtype == torch.float32
    assert seen == [torch.float32] * 4


@pytest.mark.parametrize(
    "given", [{"gaussian_weight": 1.5}, {"global_views": 0}, {"knots": 1}, {"directions": 0}, {"knot_range": 0.0}]
)
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(given))}"):
        lejepa(**given)
