"""VICReg against the official code, the paper's formula in loops, and lightly."""

from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from lightly.loss import VICRegLoss
from official_steps import check_gradients, check_losses, check_state, official_views, renamed, resnet, take_steps
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.vicreg import VICReg, regularised_distance, spread_and_covariance
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import LARS, StepSchedule, build_optimizer

NAMES = {"backbone.": "backbone.model.", "projector.": "projector."}


def vicreg(backbone: str = "resnet_nano", **given: Any) -> VICReg:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"projection_dims": (20, 12)}
    return VICReg(Backbone(BackboneOptions(backbone, img_size=16)), **sizes | given)


def paper_loss(z0: Tensor, z1: Tensor, weights: tuple[float, float, float] = (25, 25, 1)) -> Tensor:
    """The paper's equations 1 to 6 in loops, float64, but for the half on the variance term that the code has."""
    z0, z1 = z0.double(), z1.double()
    invariance, variance, covariance = weights
    loss = invariance * (z0 - z1).square().mean()
    for z in (z0, z1):
        images, dim = z.shape
        centred = z - z.mean(0)
        for i in range(dim):
            deviation = (centred[:, i].square().sum() / (images - 1) + 1e-4).sqrt()
            loss = loss + variance / 2 * (1 - deviation).clamp(min=0) / dim
            for j in set(range(dim)) - {i}:
                loss = loss + covariance * ((centred[:, i] * centred[:, j]).sum() / (images - 1)) ** 2 / dim
    return loss


# The official code


def official() -> tuple[VICReg, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load("vicreg_step")
    c = record["config"]
    optim = Optim("lars", c["base_lr"], weight_decay=c["wd"], warmup_epochs=10, min_lr=c["base_lr"] / 1000)
    method = VICReg(resnet(c), c["sim"], c["std"], c["cov"], projection_dims=tuple(c["mlp"]), optim=optim)
    return method, record, tensors


def test_outputs_and_loss_of_the_official_code() -> None:
    method, record, tensors = official()
    start = renamed(weights(tensors, "w."), NAMES)
    method.load_state_dict(start)
    z = [method.projector(method.backbone(view)) for view in official_views(tensors)[0]]
    for name, value in {"z1": z[0], "z2": z[1]}.items():
        assert_close(value, tensors[f"out.{name}"], record["noise"][f"out.{name}"]["max_abs"])
    terms = [spread_and_covariance(value) for value in z]
    assert_close((terms[0][0] + terms[1][0]) / 2, record["terms_float64"]["std"])
    assert_close(terms[0][1] + terms[1][1], record["terms_float64"]["cov"])
    method.load_state_dict(start)
    loss = method.loss(official_views(tensors)[0])
    assert_close(loss, record["loss_float64"], noise=abs(record["loss"] - record["loss_float64"]))


def test_two_steps_of_the_official_code() -> None:
    """The last of the warm-up's curve and the last of the cosine's: gradients, LARS, rates, running averages."""
    method, record, tensors = official()
    c = record["config"]
    start = renamed(weights(tensors, "w."), NAMES)
    steps = take_steps(method, official_views(tensors), start, record["first_step"], c["steps"], c["epochs"])
    check_losses(record, steps.losses)
    assert steps.rates == [pytest.approx(rates * 2) for rates in record["step_lr"]]
    check_gradients(record, tensors, NAMES, steps.gradients)
    assert check_state(record, tensors, NAMES, steps.after) == 98


def test_rates_of_the_official_code() -> None:
    method, record, _ = official()
    c = record["config"]
    schedule = StepSchedule(method.optim, c["B"], c["epochs"] * c["L"], c["L"])
    for step, (rate,) in enumerate(record["lr_schedule_per_group"]):
        assert schedule.lr(step) == pytest.approx(rate)


def test_lars_leaves_biases_and_norms_to_plain_momentum_at_the_same_rate() -> None:
    method = vicreg()
    optimizer = build_optimizer(method, method.optim, groups=method.parameter_groups())
    assert isinstance(optimizer, LARS) and not optimizer.defaults["rate_in_momentum"]
    StepSchedule(method.optim, 256, 100, 5).apply(optimizer, 50)
    decayed, plain = optimizer.param_groups
    assert (decayed["decay"], plain["decay"], plain["weight_decay"]) == (True, False, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in plain["params"])
    assert decayed["lr"] == plain["lr"] == pytest.approx(0.2)


def test_initial_weights_are_those_of_the_official_code() -> None:
    torch.manual_seed(0)
    small = BackboneOptions("resnet50", img_size=32, timm_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]})
    method = VICReg(Backbone(small), projection_dims=(256, 256, 128))
    linear = [m for m in method.projector if isinstance(m, nn.Linear)]
    assert [m.weight.shape for m in linear] == [(256, 256), (256, 256), (128, 256)]
    assert [m.bias is None for m in linear] == [False, False, True]
    for module in linear:
        bound = module.in_features**-0.5
        assert module.weight.abs().max() <= bound
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        if module.bias is not None:
            assert module.bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    closed = [block.bn3.weight for stage in (1, 2, 3, 4) for block in getattr(method.backbone.model, f"layer{stage}")]
    assert all((weight == 0).all() for weight in closed)


def test_defaults_are_the_official_ones() -> None:
    method = VICReg(Backbone(BackboneOptions("resnet_nano", img_size=224)))
    optim = method.optim
    assert [m.out_features for m in method.projector if isinstance(m, nn.Linear)] == [8192, 8192, 8192]
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("lars", 0.2, "linear", 1e-6)
    assert (optim.warmup_epochs, optim.min_lr) == (10, 0.2 / 1000)
    assert (method.invariance_weight, method.variance_weight, method.covariance_weight) == (25, 25, 1)
    first, second = method.views()
    for view in (first, second):
        assert (view.size, view.count, view.scale, view.interpolation, view.flip) == (224, 1, (0.08, 1), "bicubic", 0.5)
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert view.blur_sigma == (0.1, 2.0)
    assert [(view.blur, view.solarize) for view in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]


# The loss


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
@pytest.mark.parametrize(("images", "dim"), [(5, 4), (12, 10), (64, 3)])
def test_loss_is_the_papers_formula(images: int, dim: int, scale: float) -> None:
    coefficients = (3.0, 7.0, 0.5)
    torch.manual_seed(images)
    z0 = (scale * torch.randn(images, dim) + 2).requires_grad_()
    z1 = (0.5 * z0 + 2 * torch.randn(images, dim)).detach()
    loss, expected = regularised_distance(z0, z1, *coefficients), paper_loss(z0, z1, coefficients)
    assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, z0), torch.autograd.grad(expected, z0)
    assert_close(found, wanted, noise=1e-7)
    theirs = VICRegLoss(lambda_param=3.0, mu_param=7.0, nu_param=0.5)(z0, z1)
    assert_close(loss, theirs)


def test_a_collapse_costs_the_variance_weight_but_a_hundredth() -> None:
    z = torch.ones(6, 5)
    assert regularised_distance(z, z).item() == pytest.approx(25 * (1 - 1e-4**0.5))


def test_loss_is_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = vicreg()
    monkeypatch.setattr(method, "projector", nn.Identity())
    monkeypatch.setattr(method.backbone, "forward", lambda rows: rows)
    z0, z1 = (300 * torch.randn(6, 5)).half(), torch.randn(6, 5).half()  # whose squares do not fit
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss([z0, z1])
    assert loss.dtype == torch.float32
    assert_close(loss, paper_loss(z0, z1))


def test_batch_norms_see_one_view_at_a_time() -> None:
    method = vicreg()
    seen: list[int] = []
    for part in (method.backbone, method.projector):
        part.register_forward_hook(lambda _, args, output: seen.append(len(args[0])))
    method.loss([torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)])
    assert seen == [4] * 4


def test_unusable_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"--method.projection_dims \[0, 3\] must be"):
        vicreg(projection_dims=(0, 3))
