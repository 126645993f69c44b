"""The linear probe: its stream of crops, its two recipes against PyTorch's own training, and what it chooses."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths import GOLDEN
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import ssl_bench.evaluations.linear as page
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import Split, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.probe_heads import Head, Heads, Norm
from ssl_bench.evaluations.linear import Candidate, Course, Linear, stream
from ssl_bench.optim.optimizers import LARS
from ssl_bench.runtime.precision import full_precision


def blobs(count: int, dim: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    return centres[labels] + 1.5 * torch.randn(count, dim, generator=generator), labels.numpy()


class Crops:
    """Given features that differ from view to view, by a shift and a stretch that follow from its number."""

    def __init__(self, given: Any) -> None:
        self.given, self.feature_types, self.primary_feature_type, self.device = (
            given,
            given.feature_types,
            given.primary_feature_type,
            given.device,
        )
        self.asked: set[tuple[type[Split], int | None]] = set()

    def features(self, split: Split, feature_type: str, rows: Any = slice(None), view: int | None = None) -> Tensor:
        self.asked.add((type(split), view))
        found: Tensor = self.given.features(split, feature_type, rows)
        return found if view is None else found * (1 + 0.1 * view) + view


@pytest.fixture
def crops(problem: Callable) -> Callable:
    def build(*given: Any) -> tuple[Crops, TrainSplit, ValidationSplit, TestSplit]:
        backbone, *splits = problem(*given)
        return Crops(backbone), *splits  # type: ignore[return-value]

    return build


def still(dim: int) -> Norm:
    """A norm that changes nothing."""
    return Norm(torch.zeros(dim), torch.ones(dim))


# --- the stream


@pytest.mark.parametrize("read", [1, 300, 2**24])
def test_each_epoch_takes_every_image_once_from_the_next_view(
    crops: Callable, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are read at once. Features tell the image; views tell themselves by their fraction."""
    monkeypatch.setattr(page, "READ", read)
    number = torch.arange(1.0, 31.0)[:, None]
    backbone, train, *_ = crops({"gap": torch.cat([number, torch.zeros(30, 1)], 1)}, np.arange(30), 10, 10)
    course = Course("gap", still(2), (0.1,), batch_size=4, steps=13)
    batches = list(stream(backbone, train, course, (0, 1, 2), seed=3))
    assert [(len(rows), tuple(inputs.shape)) for rows, inputs in batches] == [(4, (4, 2))] * 13
    rows, inputs = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for at in range(52):
        view = (at // 10) % 3
        image = 1.0 + rows[at]
        torch.testing.assert_close(inputs[at], torch.tensor([image * (1 + 0.1 * view) + view, view]))
    orders = [rows[10 * epoch : 10 * epoch + 10].tolist() for epoch in range(5)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5, "another order each time"
    again = torch.cat([rows for rows, _ in stream(backbone, train, course, (None,), seed=3)])
    other = torch.cat([rows for rows, _ in stream(backbone, train, course, (None,), seed=4)])
    assert torch.equal(rows, again) and not torch.equal(rows, other)


def test_the_backbone_is_asked_for_each_view_and_selection_and_test_images_as_they_are(crops: Callable) -> None:
    features, labels = blobs(100)
    for views, expected in ((3, {0, 1, 2}), (1, {0}), (0, {None})):
        backbone, train, validation, test = crops({"gap": features}, labels, 60, 20)
        protocol = Linear(iterations=4, batch_size=16, views=views)
        protocol.predict(backbone, protocol.fit(backbone, train, validation), test)
        assert backbone.asked == {(TrainSplit, view) for view in expected} | {
            (ValidationSplit, None),
            (TestSplit, None),
        }


def test_features_of_many_images_are_never_read_at_once(problem: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream reads no more than it is allowed to, or one batch."""
    monkeypatch.setattr(page, "READ", 12 * 100)
    features, labels = blobs(2000)
    backbone, train, *_ = problem({"gap": features}, labels, 1900, 50)
    assert sum(1 for _ in stream(backbone, train, Course("gap", still(12), (0.1,), 32, 200), (0, 1), seed=0)) == 200
    assert backbone.most_rows == 96


# --- the recipes


def inputs_over_views(backbone: Crops, train: TrainSplit, views: int) -> nn.BatchNorm1d:
    """An affine-free batch norm that has seen all crops of all training images in one batch, in float64."""
    every = torch.cat([backbone.features(train, "gap", view=view) for view in range(views)]).double()
    norm = nn.BatchNorm1d(every.shape[1], eps=1e-6, affine=False, momentum=None).double()
    norm(every)
    norm.running_var *= (len(every) - 1) / len(every)  # PyTorch keeps the unbiased variance, normalises by the biased
    return norm.eval()


def test_exact_statistics_of_all_views(crops: Callable) -> None:
    features, labels = blobs(200)
    features = features * torch.logspace(-2, 2, 12) + 100
    features[:, 5] = 3.0
    backbone, train, validation, test = crops({"gap": features}, labels, 120, 40)
    state = Linear(iterations=2, views=3).fit(backbone, train, validation).state
    expected = inputs_over_views(backbone, train, 3)(features[160:].double()).float()
    for head in state.values():
        torch.testing.assert_close(head.norm(backbone.features(test, "gap")), expected, rtol=1e-4, atol=1e-3)


def trained(
    start: Tensor, optimizer: Callable, schedule: Callable, batches: list[tuple[Tensor, Tensor]], labels: Tensor
) -> nn.Linear:
    """By PyTorch's own layer, loss and gradients."""
    head = nn.Linear(start.shape[1], len(start), dtype=torch.float64)
    nn.init.zeros_(head.bias)
    head.weight.data.copy_(start)
    steps = optimizer(head)
    for step, (rows, inputs) in enumerate(batches):
        for group in steps.param_groups:
            group["lr"] = schedule(step)
        steps.zero_grad()
        F.cross_entropy(head(inputs.double()), labels[rows]).backward()
        steps.step()
    return head


def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What each stack of heads begins with, from now on."""
    starts: list[Tensor] = []
    original = Heads.__init__

    def spy(self: Heads, start: Tensor, *given: Any, **named: Any) -> None:
        starts.append(start.clone())
        original(self, start, *given, **named)

    monkeypatch.setattr(Heads, "__init__", spy)
    return starts


def test_the_grid_is_sgd_with_momentum_and_a_cosine(crops: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(400)
    backbone, train, validation, _ = crops({"gap": features}, labels, 250, 100)
    starts = first_weights(monkeypatch)
    found = Linear(iterations=150, batch_size=64, lrs=(0.8,), views=2, seeds=2).fit(backbone, train, validation)
    norm = inputs_over_views(backbone, train, 2)
    course = Course("gap", still(12), (0.8,), 64, 150)
    batches = [(rows, norm(inputs.double())) for rows, inputs in stream(backbone, train, course, (0, 1), seed=0)]
    cosine = [0.8 * 64 / 256 * 0.5 * (1 + math.cos(math.pi * step / 150)) for step in range(150)]
    expected = trained(
        starts[0][0],
        lambda head: torch.optim.SGD(head.parameters(), 1.0, momentum=0.9),
        lambda step: cosine[step],
        batches,
        torch.tensor(train.labels),
    )
    head = found.state["chosen"]
    assert (head.weight - expected.weight).abs().max() < 1e-5 and (head.bias - expected.bias).abs().max() < 1e-5
    assert (head.weight - starts[0][0]).norm() > 10 * starts[0][0].norm()


def test_maes_recipe(crops: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """LARS at 0.1 x batch / 256 on the primary features, biases at the raw rate; nine epochs, one of them warm-up."""
    monkeypatch.setattr(page, "MAE_BATCH", 50)
    features, labels = blobs(3000)
    backbone, train, validation, test = crops({"gap": features, "avg": features[:, :3]}, labels, 2500, 200)
    starts = first_weights(monkeypatch)
    protocol = Linear(iterations=1, feature_types=("avg",), views=2, seeds=2, epochs=9)
    found = protocol.fit(backbone, train, validation)
    norm = inputs_over_views(backbone, train, 2)
    course = Course("gap", still(12), (0.1,), 50, 450)
    batches = [(rows, norm(inputs.double())) for rows, inputs in stream(backbone, train, course, (0, 1), seed=0)]
    peak = 0.1 * 50 / 256

    def rate(step: int) -> float:
        """MAE's util/lr_sched.py: the epoch with its fraction, a warm-up of one epoch of 50 steps, a minimum of 0."""
        epoch = step / 50
        return peak * epoch if epoch < 1 else peak * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 8))

    def lars(head: nn.Linear) -> LARS:
        return LARS([{"params": [head.weight]}, {"params": [head.bias], "decay": False}], lr=0.0)

    expected = trained(starts[1][0], lars, rate, batches, torch.tensor(train.labels))
    head = found.state["mae"]
    assert (head.weight - expected.weight).abs().max() < 1e-6 and (head.bias - expected.bias).abs().max() < 1e-5
    assert (head.weight - starts[1][0]).norm() > 0.02 * starts[1][0].norm() and head.bias.abs().max() > 0.01
    assert head.feature_type == "gap" and set(found.features) == {"avg", "gap"}
    assert list(found.state) == ["chosen", "avg", "mae"]
    assert "lr gap" not in found.chosen and found.grid["features"] == ["avg"], "nothing was chosen for it"
    logits = F.linear(norm(features[2500:2700].double()), head.weight.double(), head.bias.double())
    accuracies = found.curve["mae validation accuracy"]
    assert found.curve["mae step"][-1] == 450 and len(accuracies) == len(found.curve["mae step"]) == 20
    first = (logits.argmax(1).numpy() == validation.labels).mean()
    assert accuracies[-1] == pytest.approx(first, abs=2 * found.curve["mae deviation over seeds"][-1] + 1e-9)
    assert [p.variant for p in protocol.predict(backbone, found, test)] == ["chosen", "avg", "mae"]


def test_maes_schedule_and_first_weights(problem: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """90 epochs of one batch: nothing at step 0, all of it at step 10, half in the middle, next to nothing last."""
    seen: list[float] = []
    original = Heads.step

    def spy(self: Heads, inputs: Tensor, labels: Tensor, schedule: float) -> None:
        seen.append(schedule)
        original(self, inputs, labels, schedule)

    monkeypatch.setattr(Heads, "step", spy)
    starts = first_weights(monkeypatch)
    features, labels = blobs(400, dim=300)
    Linear(iterations=1, batch_size=16).fit(*problem({"gap": features}, labels, 256, 100)[:3])
    mae = seen[1:]
    assert len(mae) == 90
    assert (mae[0], mae[9], mae[10]) == pytest.approx((0.0, 0.9, 1.0)) and mae[50] == pytest.approx(0.5)
    assert mae[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 79 / 80)))
    grid, lars = starts
    assert (len(grid), len(lars)) == (39, 3)
    assert lars.std().item() == pytest.approx(0.01, rel=0.05) and abs(lars.mean().item()) < 1e-3
    assert torch.equal(grid[:3], lars) and torch.equal(grid[:3], grid[36:]), "each rate has the same three beginnings"
    assert not torch.equal(lars[0], lars[1])


def test_no_epochs_leave_maes_recipe_out(problem: Callable) -> None:
    features, labels = blobs(100)
    fit = Linear(iterations=2, feature_types=("avg",), epochs=0).fit(
        *problem({"cls": features, "avg": features}, labels, 60, 20)[:3]
    )
    assert list(fit.state) == ["chosen", "avg"] and fit.features == ("avg",)
    assert not any("mae" in name for name in fit.curve)


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


def test_thirteen_learning_rates_of_dinov2() -> None:
    grid = json.loads((GOLDEN / "dinov2_vit.json").read_text())
    given = grid["linear_grid_args"]
    assert Linear().lrs == tuple(given["learning_rates"]) and len(Linear().lrs) == 13
    assert (Linear().iterations, Linear().epochs, Linear().views, Linear().seeds) == (12_500, 90, 10, 3)
    scaled = {lr * given["batch"] * given["world"] / 256 for lr in Linear().lrs}
    assert {entry["lr"] for entry in grid["linear_grid"]} <= scaled | {1e-5}


# --- the choice


def test_the_choice_is_the_selection_splits(problem: Callable) -> None:
    """Features by which training and test images are told apart perfectly, but not the validation images, lose."""
    good, labels = blobs(900, seed=2)
    perfect = torch.eye(4)[labels].clone()
    perfect[500:700] = torch.eye(4)[torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))]
    backbone, train, validation, test = problem({"cls": perfect, "avg": good}, labels, 500, 200)
    protocol = Linear(iterations=100, batch_size=128, lrs=(0.05, 0.1))
    fit = protocol.fit(backbone, train, validation)
    assert fit.chosen["features"] == "avg"
    assert fit.chosen["lr"] == fit.chosen["lr avg"] and set(fit.chosen) == {"lr", "features", "lr cls", "lr avg"}
    assert fit.grid == {"lr": list(protocol.lrs), "features": ["cls", "avg"]}
    predictions = {p.variant: p.labels for p in protocol.predict(backbone, fit, test)}
    assert list(predictions) == ["chosen", "cls", "avg", "mae"]
    assert torch.equal(predictions["chosen"], predictions["avg"])
    assert (predictions["cls"].numpy() == test.labels).all(), "would have won on the test images"


def test_the_last_step_is_reported_and_the_curve_kept(problem: Callable) -> None:
    features, labels = blobs(400)
    backbone, train, validation, _ = problem({"gap": features}, labels, 250, 100)
    fit = Linear(iterations=205, batch_size=64, seeds=1).fit(backbone, train, validation)
    logits = fit.state["chosen"].logits(backbone.features(validation, "gap"))
    accuracy = (logits.argmax(1).numpy() == validation.labels).mean()
    assert fit.curve["validation accuracy"][-1] == pytest.approx(accuracy)
    assert len(fit.curve["step"]) == len(fit.curve["validation accuracy"]) == 20
    assert fit.curve["step"][0] == 10 and fit.curve["step"][-1] == 205
    assert fit.curve["deviation over seeds"] == [0.0] * 20


def test_the_mean_over_seeds_chooses_and_the_first_one_predicts(
    problem: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = blobs(300)
    scores: list[Tensor] = []
    stacks: list[Heads] = []
    original = Heads.score

    def spy(self: Heads, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The second rate's first seed is best, the third rate's mean."""
        accuracy = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.1, 0.2, 0.5, 0.6, 0.7], dtype=torch.float64)
        scores.append(accuracy - 0.01 * len(scores))
        stacks.append(self)
        return scores[-1], original(self, inputs, targets)[1]

    monkeypatch.setattr(Heads, "score", spy)
    protocol = Linear(iterations=3, lrs=(0.01, 0.02, 0.05), epochs=0)
    fit = protocol.fit(*problem({"gap": features}, labels, 200, 50)[:3])
    assert fit.chosen["lr"] == 0.05 and fit.at_grid_boundary
    assert fit.curve["validation accuracy"] == pytest.approx([0.6, 0.59, 0.58])
    assert fit.curve["deviation over seeds"] == pytest.approx([0.1, 0.1, 0.1])
    assert torch.equal(fit.state["chosen"].weight, stacks[-1].weight[:, 6])


def test_seeds_differ_in_their_beginning_alone(problem: Callable) -> None:
    features, labels = blobs(300)
    splits = problem({"gap": features}, labels, 200, 50)[:3]
    one, three = (Linear(iterations=20, seeds=seeds, lrs=(0.05,)).fit(*splits) for seeds in (1, 3))
    for variant in ("chosen", "mae"):
        torch.testing.assert_close(one.state[variant].weight, three.state[variant].weight, rtol=0, atol=1e-6)
    spread = Linear(iterations=20, seeds=8, lrs=(0.001,)).fit(*splits).curve["deviation over seeds"]
    assert len(spread) == 20 and 0 < spread[0] < 0.5


def test_fewer_steps_than_points(problem: Callable) -> None:
    features, labels = blobs(100)
    fit = Linear(iterations=3).fit(*problem({"gap": features}, labels, 60, 20)[:3])
    assert fit.curve["step"] == [1, 2, 3]


def _candidate(accuracy: float, loss: float, lr: float) -> Candidate:
    nothing = torch.empty(0)
    return Candidate(Head("cls", still(0), nothing, nothing), lr, loss, [0.0, accuracy], [0.0, 0.0])


def test_ties_go_to_the_lower_loss_then_the_lower_lr() -> None:
    best = [_candidate(0.6, 0.4, 2), _candidate(0.6, 0.4, 3), _candidate(0.6, 0.5, 1), _candidate(0.5, 0.1, 1)]
    assert sorted([best[i] for i in (3, 1, 2, 0)], key=lambda candidate: candidate.order) == best


@pytest.mark.parametrize(("lrs", "edge"), [((1e-9, 2e-9), True), ((1e-9, 0.05, 1e9), False), ((0.05,), False)])
def test_a_choice_on_the_grids_edge_is_flagged(problem: Callable, lrs: tuple[float, ...], edge: bool) -> None:
    features, labels = blobs(400)
    fit = Linear(iterations=50, lrs=lrs).fit(*problem({"gap": features}, labels, 250, 100)[:3])
    assert fit.at_grid_boundary == edge


def test_diverged_heads_are_never_chosen(problem: Callable) -> None:
    features, labels = blobs(300)
    splits = problem({"gap": features}, labels, 200, 50)[:3]
    alone, together = (Linear(iterations=40, lrs=lrs).fit(*splits) for lrs in ((0.01,), (0.01, 1e39)))
    assert together.chosen["lr"] == 0.01
    torch.testing.assert_close(together.state["chosen"].weight, alone.state["chosen"].weight, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="diverged"):
        Linear(iterations=40, lrs=(1e39,)).fit(*splits)


def test_every_accuracy_of_the_grid_is_kept(problem: Callable) -> None:
    """So that the choice can be checked, feature type by feature type; rates that diverged are not among them."""
    features, labels = blobs(300)
    values = {"cls": features, "avg": features.flip(1)}
    fit = Linear(iterations=20, batch_size=32, views=0, epochs=0, lrs=(1e-3, 1e-2, 1e39)).fit(
        *problem(values, labels, 200, 50)[:3]
    )
    for feature_type in ("cls", "avg"):
        lrs, accuracy = fit.curve[f"lr of {feature_type}"], fit.curve[f"validation accuracy of {feature_type}"]
        assert lrs == [1e-3, 1e-2] and len(accuracy) == 2
        assert accuracy[lrs.index(fit.chosen[f"lr {feature_type}"])] == max(accuracy)


def test_a_diverged_recipe_of_maes_is_left_out(problem: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAE_LR", 1e39)
    features, labels = blobs(300)
    fit = Linear(iterations=5).fit(*problem({"gap": features}, labels, 200, 50)[:3])
    assert list(fit.state) == ["chosen", "gap"] and not any("mae" in name for name in fit.curve)


def test_seeds(problem: Callable) -> None:
    features, labels = blobs(300)
    splits = problem({"gap": features}, labels, 200, 50)[:3]
    for variant in ("chosen", "mae"):
        first, again, other = (
            Linear(iterations=20, lrs=(0.1,), seed=seed).fit(*splits).state[variant].weight for seed in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_raw_features_are_left_out_unless_asked_for(problem: Callable) -> None:
    features, labels = blobs(200)
    splits = problem({"cls": features, "cls_raw": features}, labels, 120, 40)[:3]
    assert Linear(iterations=2).fit(*splits).features == ("cls",)
    assert Linear(iterations=2, feature_types=("cls_raw",)).fit(*splits).features == ("cls_raw", "cls")


def test_a_class_that_only_the_selection_split_has(problem: Callable) -> None:
    features, labels = blobs(200)
    labels[:120] %= 3
    labels[130] = 6
    fit = Linear(iterations=2).fit(*problem({"cls": features}, labels, 120, 40)[:3])
    assert all(len(head.weight) == 7 for head in fit.state.values())


def test_an_empty_selection_split(problem: Callable) -> None:
    features, labels = blobs(100)
    with pytest.raises(UserError, match="val_fraction"):
        Linear(iterations=2).fit(*problem({"gap": features}, labels, 80, 0)[:3])


@pytest.mark.parametrize("option", ["iterations", "batch_size", "seeds"])
def test_options_that_must_be_at_least_1(option: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Linear(**{option: 0})


@pytest.mark.parametrize("option", ["views", "epochs"])
def test_options_that_must_be_at_least_0(option: str) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Linear(**{option: -1})


# --- float16


class Projected(nn.Module):
    """A random layer on pixels: features of very different scales, far from 0."""

    feature_types = ("gap",)
    primary_feature_type = "gap"
    img_size = 4
    spec = {"architecture": "projected"}

    def __init__(self, rounded: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(64, 48, generator=generator))  # tanh is hardly saturated
        self.rounded = rounded  # to five bits of precision, to see that the test would notice

    def features(self, images: Tensor, feature_types: tuple[str, ...]) -> dict[str, Tensor]:
        with full_precision():
            found = F.linear(images.flatten(1), self.weight).tanh() * torch.logspace(-1, 3, 64) + 3
        if self.rounded:
            mantissa, exponent = found.frexp()
            found = torch.ldexp((32 * mantissa).round() / 32, exponent)
        return {"gap": found}


def test_float16_in_the_cache_costs_no_accuracy(problem: Callable) -> None:
    """10,000 images: the same head on float32 features is right as often, to 0.05 points of accuracy."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (16_000,), generator=generator)
    centres = torch.randint(90, 166, (4, 3, 4, 4), generator=generator).float()
    noise = 60 * torch.randn(16_000, 3, 4, 4, generator=generator)
    images = (centres[labels] + noise).clamp(0, 255).to(torch.uint8)
    pool = ResidentPool(images=images, labels=labels.numpy(), ids=[str(i) for i in range(16_000)])
    rows = np.arange(16_000)
    splits = TrainSplit(pool, rows[:5000]), ValidationSplit(pool, rows[5000:6000])
    test = TestSplit(pool, rows[6000:])
    protocol = Linear(iterations=200, batch_size=256, lrs=(0.01, 0.05, 0.1), views=0, seeds=1, epochs=0)

    def right(backbone: Any) -> float:
        fit = protocol.fit(backbone, *splits)
        return float((protocol.predict(backbone, fit, test)[0].labels.numpy() == test.labels).mean())

    network = Projected()
    with torch.inference_mode():
        exact = network.features((images / 255 - 0.5) / 0.25, ("gap",))["gap"].clone()
    full = right(problem({"gap": exact}, labels.numpy(), 5000, 1000)[0])
    half, coarse = (
        right(FeatureExtractor(Projected(rounded), (0.5,) * 3, (0.25,) * 3, {}))  # type: ignore[arg-type]
        for rounded in (False, True)
    )
    assert 0.5 < full < 0.95, "neither chance nor so easy that nothing could be lost"
    assert abs(half - full) < 0.0005 < abs(coarse - full)
