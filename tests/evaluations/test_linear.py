"""The linear probe's parallel heads against heads trained one by one, and what it chooses."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.evaluations.linear import Head, Heads, Linear, order


def blobs(count: int, dim: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    return centres[labels] + 1.5 * torch.randn(count, dim, generator=generator), labels.numpy()


def alone(start: Tensor, lr: float, inputs: Tensor, labels: Tensor, batches: list[Tensor]) -> nn.Linear:
    """One head, by PyTorch's own layer, loss, optimiser and schedule."""
    head = nn.Linear(start.shape[1], len(start), dtype=start.dtype)
    nn.init.zeros_(head.bias)
    head.weight.data.copy_(start)
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(head(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return head


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_parallel_heads_equal_heads_trained_alone(dtype: torch.dtype, tolerance: float) -> None:
    inputs, targets = blobs(300)
    inputs, labels = inputs.to(dtype), torch.tensor(targets)
    start = 0.01 * torch.randn(4, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    batches = list(order(300, 64, 150, seed=0))
    lrs = [1e-4, 1e38 if dtype == torch.float32 else 1e308, 0.01, 0.3, 0.05]  # the second diverges
    heads = Heads(start, lrs, momentum=0.9)
    for step, batch in enumerate(batches):
        heads.step(inputs[batch], labels[batch], 0.5 * (1 + math.cos(math.pi * step / len(batches))))
    weights, biases = heads.alone()
    accuracy, loss = heads.score(inputs, labels)
    for h, lr in enumerate(lrs):
        expected = alone(start, lr, inputs, labels, batches)
        if h == 1:
            assert not expected.weight.isfinite().all() and not weights[h].isfinite().all()
            assert accuracy[h].isnan() and not loss[h].isfinite()
            continue
        assert (weights[h] - expected.weight).abs().max() < tolerance
        assert (biases[h] - expected.bias).abs().max() < tolerance
        logits = expected(inputs)
        assert loss[h].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert accuracy[h].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert 0.5 < accuracy[3] < 1


def test_order_takes_every_image_once_per_epoch() -> None:
    batches = list(order(10, 4, 10, seed=3))
    assert [len(batch) for batch in batches] == [4] * 10
    stream = torch.cat(batches)
    for epoch in range(4):
        assert sorted(stream[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert torch.equal(stream, torch.cat(list(order(10, 4, 10, seed=3))))
    assert not torch.equal(stream, torch.cat(list(order(10, 4, 10, seed=4))))


def test_inputs_are_an_affine_free_batch_norms(problem: Callable) -> None:
    features, labels = blobs(200)
    features = features * torch.logspace(-2, 2, 12) + 100
    features[:, 5] = 3.0
    backbone, train, selection, test = problem({"gap": features}, labels, 120, 40)
    head = Linear(iterations=2).fit(backbone, train, selection).state[0]
    norm = nn.BatchNorm1d(12, eps=1e-6, affine=False, momentum=None).double()
    norm(features[:120].double())  # all training images in one batch: exact statistics
    norm.running_var *= 119 / 120  # PyTorch keeps the unbiased variance but normalises by the biased one
    expected = norm.eval()(features[160:].double()).float()
    torch.testing.assert_close(head.inputs(backbone, test), expected, rtol=1e-4, atol=1e-3)


def test_accuracy_of_scikit_learns_logistic_regression(problem: Callable) -> None:
    images, labels = load_digits(return_X_y=True)
    backbone, *splits, test = problem({"gap": torch.tensor(images)}, labels, 1100, 200)
    protocol = Linear(iterations=600, batch_size=256)
    fit = protocol.fit(backbone, *splits)
    found = protocol.predict(backbone, fit, test)[0].labels.numpy()
    scaler = StandardScaler().fit(images[:1100])
    oracle = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(images[:1100]), labels[:1100])
    expected = oracle.predict(scaler.transform(images[1300:]))
    accuracy, reference = (found == labels[1300:]).mean(), (expected == labels[1300:]).mean()
    assert abs(accuracy - reference) < 0.015
    assert (found == expected).mean() > 0.95


def test_the_choice_is_the_selection_splits(problem: Callable) -> None:
    """Features by which training and test images are told apart perfectly, but not the selection images, lose."""
    good, labels = blobs(900, seed=2)
    perfect = torch.eye(4)[labels].clone()
    perfect[500:700] = torch.eye(4)[torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))]
    backbone, train, selection, test = problem({"cls": perfect, "avg": good}, labels, 500, 200)
    protocol = Linear(iterations=100, batch_size=128, lrs=(0.05, 0.1))
    fit = protocol.fit(backbone, train, selection)
    assert fit.chosen["features"] == "avg"
    assert fit.chosen["lr"] == fit.chosen["lr avg"] and set(fit.chosen) == {"lr", "features", "lr cls", "lr avg"}
    assert fit.grid == {"lr": list(protocol.lrs), "features": ["cls", "avg"]}
    predictions = {p.variant: p.labels for p in protocol.predict(backbone, fit, test)}
    assert list(predictions) == ["chosen", "cls", "avg"]
    assert torch.equal(predictions["chosen"], predictions["avg"])
    assert (predictions["cls"].numpy() == test.labels).all(), "would have won on the test images"


def test_the_last_step_is_reported_and_the_curve_kept(problem: Callable) -> None:
    features, labels = blobs(400)
    backbone, train, selection, _ = problem({"gap": features}, labels, 250, 100)
    fit = Linear(iterations=205, batch_size=64).fit(backbone, train, selection)
    head = fit.state[0]
    logits = F.linear(head.inputs(backbone, selection), head.weight, head.bias)
    accuracy = (logits.argmax(1).numpy() == selection.labels).mean()
    assert fit.curve["selection accuracy"][-1] == head.accuracy == pytest.approx(accuracy)
    assert len(fit.curve["step"]) == len(fit.curve["selection accuracy"]) == 20
    assert fit.curve["step"][0] == 10 and fit.curve["step"][-1] == 205


def test_fewer_steps_than_points(problem: Callable) -> None:
    features, labels = blobs(100)
    fit = Linear(iterations=3).fit(*problem({"gap": features}, labels, 60, 20)[:3])
    assert fit.curve["step"] == [1, 2, 3]


def _head(accuracy: float, loss: float, lr: float) -> Head:
    nothing = torch.empty(0)
    return Head("cls", nothing, nothing, nothing, nothing, lr, accuracy, loss, [])


def test_ties_go_to_the_lower_loss_then_the_lower_lr() -> None:
    heads = [_head(0.5, 0.1, 1), _head(0.6, 0.5, 1), _head(0.6, 0.4, 3), _head(0.6, 0.4, 2)]
    assert sorted(heads, key=lambda head: head.order) == [heads[3], heads[2], heads[1], heads[0]]


@pytest.mark.parametrize(("lrs", "edge"), [((1e-9, 2e-9), True), ((1e-9, 0.05, 1e9), False), ((0.05,), False)])
def test_a_choice_on_the_grids_edge_is_flagged(problem: Callable, lrs: tuple[float, ...], edge: bool) -> None:
    features, labels = blobs(400)
    fit = Linear(iterations=50, lrs=lrs).fit(*problem({"gap": features}, labels, 250, 100)[:3])
    assert fit.on_edge == edge


def test_diverged_heads_are_never_chosen(problem: Callable) -> None:
    features, labels = blobs(300)
    splits = problem({"gap": features}, labels, 200, 50)[:3]
    alone, together = (Linear(iterations=40, lrs=lrs).fit(*splits).state[0] for lrs in ((0.01,), (0.01, 1e39)))
    assert together.lr == 0.01
    torch.testing.assert_close(together.weight, alone.weight, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="diverged"):
        Linear(iterations=40, lrs=(1e39,)).fit(*splits)


def test_seeds(problem: Callable) -> None:
    features, labels = blobs(300)
    splits = problem({"gap": features}, labels, 200, 50)[:3]
    first, again, other = (Linear(iterations=20, seed=seed).fit(*splits).state[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_thirteen_learning_rates() -> None:
    assert Linear().lrs == (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def test_raw_features_are_left_out_unless_asked_for(problem: Callable) -> None:
    features, labels = blobs(200)
    splits = problem({"cls": features, "cls_raw": features}, labels, 120, 40)[:3]
    assert Linear(iterations=2).fit(*splits).features == ("cls",)
    assert Linear(iterations=2, kinds=("cls_raw",)).fit(*splits).features == ("cls_raw",)


def test_an_empty_selection_split(problem: Callable) -> None:
    features, labels = blobs(100)
    with pytest.raises(UserError, match="selection_fraction"):
        Linear(iterations=2).fit(*problem({"gap": features}, labels, 80, 0)[:3])


@pytest.mark.parametrize("option", ["iterations", "batch_size", "points"])
def test_bad_options(option: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Linear(**{option: 0})
