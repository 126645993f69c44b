"""LARC by hand; the golden steps of SwAV compare it with apex's."""

import pytest
import torch
from golden_files import assert_close
from torch import Tensor, nn

from ssl_bench.config.options import Optim
from ssl_bench.optim.larc import LARC
from ssl_bench.optim.optimizers import LARS, StepSchedule, build_optimizer, single_group


def by_hand(weight: Tensor, gradients: list[Tensor], rates: list[float], momentum: float, decay: float) -> Tensor:
    """apex's LARC without clipping around SGD, in float64."""
    w, buffer = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient.double()
        length, slope = w.norm(), g.norm()
        if length > 0 and slope > 0:
            g = 0.001 * length / (slope + decay * length + 1e-8) * (g + decay * w)
        buffer = momentum * buffer + g
        w = w - rate * buffer
    return w


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_apexs(decay: float) -> None:
    """Matrices, biases and norms alike; rates change outside the momentum."""
    torch.manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 3, 3), (1,)]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    start = [p.detach().clone() for p in params]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    rates = [50.0, 120.0, 20.0]
    optimizer = LARC(params, lr=0.0, momentum=0.8, weight_decay=decay)
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        for p, g in zip(params, gradients[step], strict=True):
            p.grad = g
        optimizer.step()
    for i, p in enumerate(params):
        assert_close(p, by_hand(start[i], [g[i] for g in gradients], rates, 0.8, decay))


def test_weights_or_gradients_of_zero_have_plain_sgd_without_decay() -> None:
    zero, still, none = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    zero.grad, still.grad = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    optimizer = LARC([zero, still, none], lr=0.5, weight_decay=0.1)
    optimizer.step()
    assert zero.tolist() == [-0.5, -1.0, -1.5]
    assert still.tolist() == none.tolist() == [1.0] * 3
    assert none not in optimizer.state


def test_a_group_without_decay_has_plain_sgd() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, -1.0])
    LARC([{"params": [p], "decay": False}], lr=0.1, weight_decay=0.1).step()
    assert_close(p, torch.tensor([0.9, 1.1]))


def test_it_is_not_lars() -> None:
    """The sum of the norms is not the norm of the sum."""
    steps = []
    for kind in (LARC, LARS):
        p = nn.Parameter(torch.tensor([1.0, 0.0]))
        p.grad = torch.tensor([0.0, 1.0])
        kind([p], lr=1.0, weight_decay=1.0).step()
        steps.append(p.detach())
    assert_close(steps[0], torch.tensor([1 - 0.0005, -0.0005]))
    assert_close(steps[1], torch.tensor([1 - 0.001 / 2**0.5, -0.001 / 2**0.5]))


def test_a_single_group_holds_everything_that_learns_and_decays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].bias.requires_grad_(False)
    optimizer = build_optimizer(model, Optim("larc", weight_decay=0.2), groups=single_group(model))
    assert isinstance(optimizer, LARC)
    (group,) = optimizer.param_groups
    assert [p.shape for p in group["params"]] == [(4, 3), (4,), (4,)]
    StepSchedule(Optim("larc", weight_decay=0.2), 256, 10, 5).apply(optimizer, 0)
    assert group["weight_decay"] == 0.2


def test_a_group_may_keep_its_rate_at_the_peak() -> None:
    parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    groups = [
        g | extra
        for part, extra in zip(parts, ({}, {"constant_lr": True, "lr_scale": 0.5}), strict=True)
        for g in single_group(part)
    ]
    optim = Optim("sgd", base_lr=2.0, warmup_epochs=0)
    optimizer = build_optimizer(parts, optim, groups=groups)
    schedule = StepSchedule(optim, 256, 10, 5)
    for step in (0, 5, 9):
        schedule.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == [schedule.lr(step), 1.0]


@pytest.mark.parametrize(("per_epoch", "warmup"), [(1, 0), (3, 0), (4, 2)])
def test_a_rate_per_epoch(per_epoch: int, warmup: int) -> None:
    """That of the epoch's first step under the schedule per step; a warm-up is per step all the same."""
    by_step = StepSchedule(Optim("sgd", warmup_epochs=warmup), 256, 6 * per_epoch, per_epoch)
    by_epoch = StepSchedule(Optim("sgd", schedule="cosine_epoch", warmup_epochs=warmup), 256, 6 * per_epoch, per_epoch)
    for step in range(6 * per_epoch):
        first = step if step < warmup * per_epoch else step // per_epoch * per_epoch
        assert by_epoch.lr(step) == by_step.lr(first)
    if warmup:
        assert 0 < by_epoch.lr(1) < by_epoch.lr(2)
