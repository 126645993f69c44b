"""Barlow Twins against the official code, also on two devices, the paper's formula in loops, and lightly."""

from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from lightly.loss import BarlowTwinsLoss
from official_steps import check_gradients, check_losses, check_state, official_views, renamed, resnet, take_steps
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.barlow_twins import BarlowTwins, correlations
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import LARS, StepSchedule, build_optimizer

NAMES = {"backbone.": "backbone.model.", "projector.": "projector.", "bn.": "norm."}


def barlow_twins(backbone: str = "resnet_nano", **given: Any) -> BarlowTwins:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"projection_dims": (20, 12)}
    return BarlowTwins(Backbone(BackboneOptions(backbone, img_size=16)), **sizes | given)


def identity(monkeypatch: pytest.MonkeyPatch, dim: int, **given: Any) -> BarlowTwins:
    """A method whose projections are its views."""
    method = barlow_twins(projection_dims=(dim,), **given)
    monkeypatch.setattr(method, "projector", nn.Identity())
    monkeypatch.setattr(method.backbone, "forward", lambda rows: rows)
    return method


def paper_loss(z0: Tensor, z1: Tensor, weight: float = 0.0051, eps: float = 1e-5) -> Tensor:
    """Equations 1 and 2 of the paper in loops, float64, with the small constant of a batch norm."""
    z0, z1 = ((z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (z0.double(), z1.double()))
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(z0.shape[1]):
        for j in range(z0.shape[1]):
            c = (z0[:, i] * z1[:, j]).sum() / len(z0)
            loss = loss + ((1 - c) ** 2 if i == j else weight * c**2)
    return loss


# The official code


def official() -> tuple[BarlowTwins, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load("barlow_twins_step")
    c = record["config"]
    optim = Optim("lars", c["lrw"], weight_decay=c["wd"], warmup_epochs=10, min_lr=c["lrw"] / 1000)
    method = BarlowTwins(resnet(c), c["lambd"], projection_dims=tuple(c["mlp"]), bias_lr=c["lrb"], optim=optim)
    return method, record, tensors


def test_outputs_correlations_and_loss_of_the_official_code() -> None:
    method, record, tensors = official()
    start = renamed(weights(tensors, "w."), NAMES)
    method.load_state_dict(start)
    z = [method.projector(method.backbone(view)) for view in official_views(tensors)[0]]
    for name, value in {"z1": z[0], "z2": z[1], "c": correlations(*z, method.norm)}.items():
        assert_close(value, tensors[f"out.{name}"], record["noise"][f"out.{name}"]["max_abs"])
    method.load_state_dict(start)
    loss = method.loss(official_views(tensors)[0])
    assert_close(loss, record["loss_float64"], noise=abs(record["loss"] - record["loss_float64"]))


def test_three_steps_of_the_official_code() -> None:
    """From the end of warm-up on: gradients, LARS in two groups, both rates, running averages over both views."""
    method, record, tensors = official()
    c = record["config"]
    start = renamed(weights(tensors, "w."), NAMES)
    steps = take_steps(method, official_views(tensors), start, record["first_step"], c["steps"], c["epochs"])
    check_losses(record, steps.losses)
    assert steps.rates == [pytest.approx(rates) for rates in record["step_lr"]]
    check_gradients(record, tensors, NAMES, steps.gradients)
    assert check_state(record, tensors, NAMES, steps.after) == 78


def test_rates_of_the_official_code() -> None:
    method, record, _ = official()
    c = record["config"]
    optimizer = build_optimizer(method, method.optim, groups=method.parameter_groups())
    schedule = StepSchedule(method.optim, c["B"], c["epochs"] * c["L"], c["L"])
    for step, rates in enumerate(record["lr_schedule_per_group"]):
        schedule.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


def test_biases_and_norms_have_a_rate_of_their_own_and_plain_momentum() -> None:
    for bias_lr, factor in ((0.0048, 0.024), (0.1, 0.5), (None, 1.0)):
        method = barlow_twins(bias_lr=bias_lr)
        optimizer = build_optimizer(method, method.optim, groups=method.parameter_groups())
        assert isinstance(optimizer, LARS) and not optimizer.defaults["rate_in_momentum"]
        decayed, plain = optimizer.param_groups
        assert (decayed["decay"], plain["decay"], plain["weight_decay"]) == (True, False, 0.0)
        assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in plain["params"])
        StepSchedule(method.optim, 256, 100, 5).apply(optimizer, 50)
        assert decayed["lr"] == pytest.approx(0.2)
        assert plain["lr"] == pytest.approx(0.2 * factor)


def test_initial_weights_are_those_of_the_official_code() -> None:
    torch.manual_seed(0)
    method = BarlowTwins(Backbone(BackboneOptions("resnet18", img_size=32)), projection_dims=(256, 128, 128))
    linear = [m for m in method.projector if isinstance(m, nn.Linear)]
    assert [m.weight.shape for m in linear] == [(256, 512), (128, 256), (128, 128)]
    for module in linear:
        bound = module.in_features**-0.5
        assert module.bias is None
        assert module.weight.abs().max() <= bound
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    closed = [block.bn2.weight for stage in (1, 2, 3, 4) for block in getattr(method.backbone.model, f"layer{stage}")]
    assert len(closed) == 8 and all((weight == 0).all() for weight in closed)
    assert isinstance(method.projector[1], nn.BatchNorm1d) and isinstance(method.projector[2], nn.ReLU)
    assert isinstance(method.norm, nn.BatchNorm1d) and not method.norm.affine


def test_defaults_are_the_official_ones() -> None:
    method = BarlowTwins(Backbone(BackboneOptions("resnet_nano", img_size=224)))
    optim = method.optim
    assert [m.out_features for m in method.projector if isinstance(m, nn.Linear)] == [8192, 8192, 8192]
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("lars", 0.2, "linear", 1e-6)
    assert (optim.warmup_epochs, optim.min_lr, method.bias_lr) == (10, 0.2 / 1000, 0.0048)
    assert (method.off_diagonal_weight, method.exact_gradient) == (0.0051, False)
    first, second = method.views()
    for view in (first, second):
        assert (view.size, view.count, view.scale, view.interpolation, view.flip) == (224, 1, (0.08, 1), "bicubic", 0.5)
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert view.blur_sigma == (0.1, 2.0)
    assert [(view.blur, view.solarize) for view in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]


# The loss


@pytest.mark.parametrize(("images", "dim", "weight"), [(5, 4, 0.0051), (12, 10, 0.2), (64, 3, 1.0)])
def test_loss_is_the_papers_formula(monkeypatch: pytest.MonkeyPatch, images: int, dim: int, weight: float) -> None:
    method = identity(monkeypatch, dim, off_diagonal_weight=weight)
    torch.manual_seed(images)
    z0 = torch.randn(images, dim, requires_grad=True)
    z1 = (0.5 * z0 + 2 * torch.randn(images, dim) + 1).detach()
    loss, expected = method.loss([z0, z1]), paper_loss(z0, z1, weight)
    assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, z0), torch.autograd.grad(expected, z0)
    assert_close(found, wanted, noise=1e-7)  # the diagonal among it
    theirs = BarlowTwinsLoss(lambda_param=weight)(z0, z1)  # without the batch norm's small constant
    assert_close(loss, theirs, noise=1e-3)


def test_running_averages_see_the_first_view_then_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    method = identity(monkeypatch, 3)
    z0, z1 = torch.randn(6, 3), 3 + torch.randn(6, 3)
    method.loss([z0, z1])
    assert method.norm.running_mean is not None
    assert_close(method.norm.running_mean, 0.09 * z0.mean(0) + 0.1 * z1.mean(0))


def test_collapsed_features_cost_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    method = identity(monkeypatch, 7)
    assert method.loss([torch.ones(5, 7), torch.ones(5, 7)]).item() == pytest.approx(7)


def test_loss_is_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = identity(monkeypatch, 5)
    z0, z1 = (100 * torch.randn(6, 5)).bfloat16(), torch.randn(6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss([z0, z1])
    assert loss.dtype == torch.float32
    assert_close(loss, paper_loss(z0, z1))


def test_batch_norms_see_one_view_at_a_time() -> None:
    method = barlow_twins()
    seen: list[int] = []
    for part in (method.backbone, method.projector, method.norm):
        part.register_forward_hook(lambda _, args, output: seen.append(len(args[0])))
    method.loss([torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)])
    assert seen == [4] * 6


def test_unusable_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"--method.projection_dims \[\] must be"):
        barlow_twins(projection_dims=())
    with pytest.raises(UserError, match=r"--optim.base_lr 0.0: with --method.bias_lr"):
        barlow_twins(optim=Optim("lars", base_lr=0.0))
