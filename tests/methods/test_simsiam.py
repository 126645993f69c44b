"""SimSiam against the official code, the paper's formula in loops, lightly, and what makes it collapse."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from lightly.loss import NegativeCosineSimilarity
from official_steps import check_gradients, check_losses, check_state, official_views, renamed, resnet, take_steps
from small import GivenViews, trainer
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.simsiam import SimSiam
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer

NAMES = {"encoder.fc.": "projector.", "encoder.": "backbone.model.", "predictor.": "predictor."}


def simsiam(backbone: str = "resnet_nano", **given: Any) -> SimSiam:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"projection_dim": 24, "prediction_dim": 8}
    return SimSiam(Backbone(BackboneOptions(backbone, img_size=16)), **sizes | given)


def pair(images: int = 4, seed: int = 0) -> list[Tensor]:
    """Two views whose statistics differ."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.rand(images, 3, 16, 16, generator=generator) for scale in (1.0, 0.3)]


def paper_loss(p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    """Equations 1 and 2 of the paper in loops, float64."""
    loss = torch.zeros((), dtype=torch.float64)
    for prediction, projection in ((p0, z1), (p1, z0)):
        for p, z in zip(prediction.double(), projection.double(), strict=True):
            loss = loss - (p * z).sum() / ((p * p).sum().sqrt() * (z * z).sum().sqrt()) / 2
    return loss / len(p0)


# The official code


def official() -> tuple[SimSiam, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load("simsiam_step")
    c = record["config"]
    assert c["fix_pred_lr"]
    optim = Optim("sgd", c["lr"], "none", c["wd"], momentum=c["momentum"], schedule="cosine_epoch", warmup_epochs=0.0)
    method = SimSiam(resnet(c), projection_dim=c["dim"], prediction_dim=c["pred"], optim=optim)
    return method, record, tensors


def test_outputs_and_loss_of_the_official_code() -> None:
    method, record, tensors = official()
    start = renamed(weights(tensors, "w."), NAMES)
    method.load_state_dict(start)
    z = [method.projector(method.backbone(view)) for view in official_views(tensors)[0]]
    p = [method.predictor(projection) for projection in z]
    for name, value in {"p1": p[0], "p2": p[1], "z1": z[0], "z2": z[1]}.items():
        assert_close(value, tensors[f"out.{name}"], record["noise"][f"out.{name}"]["max_abs"])
    method.load_state_dict(start)
    loss = method.loss(official_views(tensors)[0])
    assert_close(loss, record["loss_float64"], noise=abs(record["loss"] - record["loss_float64"]))
    deviation = F.normalize(z[0], dim=1).std(0, correction=0).mean()
    assert deviation.item() == pytest.approx(
        record["std_of_normalized_z"], rel=0.15
    )  # of which z, and how, it says not


def test_two_steps_of_the_official_code() -> None:
    """Gradients, SGD with decay of everything, the predictor's own rate, a rate per epoch, and what norms have seen."""
    method, record, tensors = official()
    c = record["config"]
    start = renamed(weights(tensors, "w."), NAMES)
    steps = take_steps(method, official_views(tensors), start, c["epoch"] * c["niter"], c["niter"], c["epochs"])
    check_losses(record, steps.losses)
    assert steps.rates == [pytest.approx(record["lr_per_epoch_and_group"][c["epoch"]])] * c["niter"]
    check_gradients(record, tensors, NAMES, steps.gradients)
    assert check_state(record, tensors, NAMES, steps.after) == 86
    bias = "projector.6.bias"
    assert torch.equal(steps.after[bias], start[bias])
    assert (start[bias] != 0).all()


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7])
def test_rates_of_the_official_code_stay_through_an_epoch(fixed: bool, steps_per_epoch: int) -> None:
    record = load("simsiam_step")[0]
    method = simsiam(fix_pred_lr=fixed)
    optim = Optim("sgd", record["config"]["lr"], "none", schedule="cosine_epoch", warmup_epochs=0)
    optimizer = build_optimizer(method, optim, groups=method.parameter_groups())
    epochs = record["config"]["epochs"]
    schedule = StepSchedule(optim, 5, epochs * steps_per_epoch, steps_per_epoch)
    for step in range(epochs * steps_per_epoch):
        schedule.apply(optimizer, step)
        encoder, predictor = record["lr_per_epoch_and_group"][step // steps_per_epoch]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [encoder, predictor if fixed else encoder]
        )


@pytest.mark.parametrize("fixed", [True, False])
def test_everything_that_learns_decays_the_predictor_too(fixed: bool) -> None:
    method = simsiam(fix_pred_lr=fixed)
    optimizer = build_optimizer(method, Optim("sgd", weight_decay=0.3), groups=method.parameter_groups())
    StepSchedule(Optim("sgd", weight_decay=0.3), 4, 10, 5).apply(optimizer, 0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3]
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for p in method.predictor.parameters()}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_initial_weights_are_those_of_the_official_code(layers: int) -> None:
    """PyTorch's own for linear layers; the last one's bias is drawn, too, and frozen."""
    torch.manual_seed(0)
    method = SimSiam(Backbone(BackboneOptions("resnet18", img_size=32)), 256, 128, projection_layers=layers)
    linear = [m for m in [*method.projector, *method.predictor] if isinstance(m, nn.Linear)]
    assert len(linear) == layers + 2
    for module in linear:
        bound = module.in_features**-0.5
        assert module.weight.abs().max() <= bound
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert [m.bias is None for m in linear] == [True] * (layers - 1) + [False, True, False]
    assert {n for n, p in method.named_parameters() if not p.requires_grad} == {f"projector.{3 * (layers - 1)}.bias"}
    assert (linear[layers - 1].bias != 0).all()
    assert all(
        (block.bn2.weight == 0).all()
        for stage in (1, 2, 3, 4)
        for block in getattr(method.backbone.model, f"layer{stage}")
    )
    official = load("init_statistics")[0]["methods"]["simsiam"]["parameters"]
    theirs = {n: s for n, s in official.items() if n.startswith("encoder.fc")}
    assert {n.rpartition(".")[2]: s[4] for n, s in theirs.items() if n.startswith("encoder.fc.6")} == {
        "weight": True,
        "bias": False,
    }
    assert theirs["encoder.fc.6.bias"][1] > 0


def test_defaults_are_the_official_ones() -> None:
    method = SimSiam(Backbone(BackboneOptions("resnet_nano", img_size=224)))
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("sgd", 0.05, "linear", 1e-4)
    assert (optim.momentum, optim.warmup_epochs, optim.min_lr, optim.schedule) == (0.9, 0, 0.0, "cosine_epoch")
    assert method.fix_pred_lr
    assert [m.weight.shape for m in method.projector if isinstance(m, nn.Linear)] == [
        (256, 256),
        (256, 256),
        (2048, 256),
    ]
    assert [m.weight.shape for m in method.predictor if isinstance(m, nn.Linear)] == [(512, 2048), (2048, 512)]
    last = method.projector[-1]
    assert isinstance(last, nn.BatchNorm1d) and not last.affine
    (view,) = method.views()
    assert (view.size, view.count, view.scale, view.interpolation, view.flip) == (224, 2, (0.2, 1.0), "bilinear", 0.5)
    assert (view.jitter, view.jitter_p, view.grayscale, view.blur) == ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5)
    assert (view.blur_sigma, view.solarize) == ((0.1, 2.0), 0.0)


# The loss


@pytest.mark.parametrize("backbone", ["resnet_nano", "vit_pico_patch4_32", "swin_pico_patch2_32"])
def test_loss_compares_each_prediction_with_the_other_views_projection(backbone: str) -> None:
    method, views = simsiam(backbone), pair(5)
    with torch.no_grad():
        z0, z1 = (method.projector(method.backbone(view)) for view in views)
        p0, p1 = method.predictor(z0), method.predictor(z1)
        expected = paper_loss(p0, p1, z0, z1)
        assert_close(method.loss(views), expected)
        assert abs(expected - paper_loss(p0, p1, z1, z0)) > 1e-3  # and not its own
        theirs = NegativeCosineSimilarity()
        assert_close((theirs(p0, z1) + theirs(p1, z0)) / 2, expected, noise=1e-7)


def test_gradient_flows_through_predictions_alone() -> None:
    """Without the stopped gradient in either role, the gradient would be another."""
    method, views = simsiam(), pair(5)
    method.loss(views).backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    z0, z1 = (method.projector(method.backbone(view)) for view in views)
    fixed = z0.detach().clone(), z1.detach().clone()
    method.zero_grad()
    paper_loss(method.predictor(z0), method.predictor(z1), *fixed).backward()
    for name, gradient in found.items():
        expected = method.get_parameter(name).grad
        assert expected is not None
        assert_close(gradient, expected, noise=1e-6)
    for role in ((None, fixed[1]), (fixed[0], None)):
        z0, z1 = (method.projector(method.backbone(view)) for view in views)
        method.zero_grad()
        other = [given if given is not None else z for given, z in zip(role, (z0, z1), strict=True)]
        paper_loss(method.predictor(z0), method.predictor(z1), *other).backward()
        gradient = method.projector[0].weight.grad
        assert gradient is not None
        assert (gradient - found["projector.0.weight"]).abs().max() > 1e-2 * gradient.abs().max()


def test_norms_see_one_view_at_a_time_in_training_mode() -> None:
    method, views = simsiam(), pair()
    seen: list[tuple[int, bool]] = []
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 4
    for norm in norms:
        norm.register_forward_hook(lambda norm, args, _: seen.append((len(args[0]), norm.training)))
    trainer().fit(method, datamodule=GivenViews([views]))
    assert seen == [(4, True)] * 8


def test_a_collapsed_network_has_a_loss_of_minus_one() -> None:
    method, views = simsiam(), pair()
    with torch.no_grad():
        method.predictor[3].weight.zero_()
        for norm in (method.projector[1], method.projector[4]):
            norm.weight.zero_()
        method.projector[7] = nn.Identity()
        method.predictor[3].bias.copy_(method.projector(method.backbone(views[0]))[0])
        assert_close(method.loss(views), -1.0)


def test_loss_is_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = simsiam()
    x, y = torch.randn(6, 24).bfloat16(), torch.randn(6, 24).bfloat16()
    for part in ("projector", "predictor"):
        monkeypatch.setattr(method, part, nn.Identity())
    monkeypatch.setattr(method.backbone, "forward", lambda rows: rows)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss([x, y])
    assert loss.dtype == torch.float32
    assert_close(loss, paper_loss(x, y, x, y))


def test_a_projector_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"--method.projection_layers 0 must be at least 1"):
        simsiam(projection_layers=0)
