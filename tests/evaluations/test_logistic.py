"""Logistic regression against scikit-learn and against the gradient written out."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ssl_bench.errors import UserError
from ssl_bench.evaluation.solvers import logistic
from ssl_bench.evaluation.solvers.logistic import Problem, path
from ssl_bench.evaluations.logistic import Logistic

CS = (1e-4, 1e-2, 0.1, 1.0, 10.0)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(features), labels


def oracle(c: float, tolerance: float = 1e-8) -> LogisticRegression:
    return LogisticRegression(C=c, tol=tolerance, max_iter=20_000)


def overlapping(count: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, dim) features of three overlapping classes, as correlated as networks' are, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=count, p=[0.2, 0.3, 0.5])
    independent = 2 * rng.normal(size=(3, dim))[labels] / dim**0.5 + rng.normal(size=(count, dim))
    features = independent * np.geomspace(1, 0.01, dim) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return features / features.std(0), labels


def steepest(inputs: np.ndarray, labels: np.ndarray, weight: Tensor, bias: Tensor, c: float) -> float:
    """Largest entry of the gradient, written out in float64."""
    w, b = weight.double().numpy(), bias.double().numpy()
    logits = inputs @ w.T + b
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    share[np.arange(len(labels)), labels] -= 1
    n = len(labels)
    return float(max(np.abs(share.T @ inputs / n + w / (c * n)).max(), np.abs(share.mean(0)).max()))


@pytest.mark.integration
def test_coefficients_of_scikit_learn(digits: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = digits
    found = path(torch.tensor(inputs), torch.tensor(labels), 10, CS, tolerance=1e-8)
    for c, (weight, bias) in zip(CS, found, strict=True):
        expected = oracle(c).fit(inputs, labels)
        np.testing.assert_allclose(weight.numpy(), expected.coef_, atol=1e-3)
        np.testing.assert_allclose(bias - bias.mean(), expected.intercept_ - expected.intercept_.mean(), atol=1e-3)
        scores = torch.tensor(inputs) @ weight.T + bias
        np.testing.assert_array_equal(scores.argmax(1), expected.predict(inputs))
        assert np.abs(expected.coef_).max() > 0.03


def test_float32_reaches_the_tolerance(digits: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = digits
    given = torch.tensor(inputs, dtype=torch.float32)
    for c, (weight, bias) in zip(CS, path(given, torch.tensor(labels), 10, CS), strict=True):
        assert weight.dtype == bias.dtype == torch.float32
        assert steepest(inputs, labels, weight, bias, c) < 1.1e-5
        predicted = (given @ weight.T + bias).argmax(1).numpy()
        assert (predicted == oracle(c).fit(inputs, labels).predict(inputs)).mean() > 0.997


@pytest.mark.integration
def test_float64_where_float32_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = overlapping(500, 10)
    formats: list[torch.dtype] = []
    original = Problem.minimum

    def spy(self: Problem, *given: object) -> object:
        formats.append(self.axes.dtype)
        return original(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Problem, "minimum", spy)
    inputs = torch.tensor(features).float()
    weight, bias = list(path(inputs, torch.tensor(labels), 3, [1.0, 100.0], tolerance=1e-9))[-1]
    assert formats == [torch.float32, torch.float64] * 2
    expected = oracle(100.0, 1e-10).fit(inputs.double().numpy(), labels)
    np.testing.assert_allclose(weight.numpy(), expected.coef_, atol=1e-4)
    formats.clear()
    list(path(inputs, torch.tensor(labels), 3, [1.0]))
    assert formats == [torch.float32]


@pytest.mark.integration
@pytest.mark.parametrize("shape", [(600, 40), (30, 80), (60, 60)])
def test_correlated_features(shape: tuple[int, int]) -> None:
    features, labels = overlapping(*shape)
    cs = (1e-3, 1.0, 10.0)
    found = list(path(torch.tensor(features) + 2, torch.tensor(labels), 3, cs, tolerance=1e-9))
    for c, (weight, bias) in zip(cs, found, strict=True):
        expected = oracle(c, 1e-10).fit(features + 2, labels)
        np.testing.assert_allclose(weight.numpy(), expected.coef_, atol=1e-3)
        assert steepest(features + 2, labels, weight, bias, c) < 1e-8


def test_a_path_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaling the axes is what it is for: without it, these features take thousands."""
    features, labels = overlapping(2000, 60)
    passes = 0
    original = Problem.loss

    def counted(self: Problem, point: Tensor, penalty: float) -> tuple[float, Tensor, float]:
        nonlocal passes
        passes += 1
        return original(self, point, penalty)

    monkeypatch.setattr(Problem, "loss", counted)
    list(path(torch.tensor(features).float(), torch.tensor(labels), 3, Logistic().cs))
    assert passes < 350


def test_the_minimum_does_not_depend_on_the_path_nor_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = overlapping(400, 12)
    inputs, target = torch.tensor(features), torch.tensor(labels)
    along = list(path(inputs, target, 3, CS, 1e-9))[-1]
    monkeypatch.setattr(logistic, "TILE", 13 * 37)
    alone = next(path(inputs, target, 3, CS[-1:], 1e-9))
    assert torch.allclose(along[0], alone[0], atol=1e-5)
    assert torch.allclose(along[1] - along[1].mean(), alone[1] - alone[1].mean(), atol=1e-5)


def test_a_class_without_images_is_given_no_chance() -> None:
    features, labels = overlapping(100, 5)
    inputs = torch.tensor(features).float()
    weight, bias = list(path(inputs, torch.tensor(labels) * 2, 6, CS))[-1]
    scores = inputs @ weight.T + bias
    assert scores.isfinite().all() and set(scores.argmax(1).tolist()) <= {0, 2, 4}
    assert scores.softmax(1)[:, [1, 3, 5]].max() < 1e-3


def test_large_logits_do_not_overflow() -> None:
    features, labels = overlapping(50, 4)
    problem = Problem(torch.tensor(features).float(), torch.tensor(labels), 3)
    loss, gradient, _ = problem.loss(1e4 * torch.ones(3, 5).cumsum(0), 0.0)
    assert 0 < loss < 1e6 and gradient.isfinite().all()


# --- the evaluation


def test_the_page_from_end_to_end(problem: Callable) -> None:
    """C and feature type by accuracy on the validation split, then learned from train and validation together."""
    good, labels = overlapping(900, 20)
    good = good.astype(np.float32).astype(np.float64)
    cls = 30 * torch.tensor(good) + 4
    values = {"avg": torch.tensor(overlapping(900, 6, 5)[0]), "cls": cls, "cls_raw": cls}
    backbone, train, validation, test = problem(values, labels, 400, 200)
    protocol = Logistic(cs=CS, tolerance=1e-7)
    fit = protocol.fit(backbone, train, validation)
    accuracy = []
    for c in CS:
        scaler = StandardScaler().fit(good[:400])
        model = oracle(c).fit(scaler.transform(good[:400]), labels[:400])
        accuracy.append(model.score(scaler.transform(good[400:600]), labels[400:600]))
    assert fit.chosen["features"] == "cls" and fit.curve["validation accuracy"] == pytest.approx(accuracy)
    best = CS[int(np.argmax(accuracy))]
    assert len(set(accuracy)) > 2 and accuracy.count(max(accuracy)) == 1
    assert fit.chosen["C"] == fit.chosen["C cls"] == best and fit.grid == {"C": list(CS), "features": ["avg", "cls"]}
    scaler = StandardScaler().fit(good[:600])
    model = oracle(best).fit(scaler.transform(good[:600]), labels[:600])
    found = {p.variant: p.labels.numpy() for p in protocol.predict(backbone, fit, test)}
    assert list(found) == ["chosen", "avg", "cls", "avg-none", "avg-l2"]
    np.testing.assert_array_equal(found["chosen"], model.predict(scaler.transform(good[600:])))
    np.testing.assert_array_equal(found["chosen"], found["cls"])
    plain = values["avg"].numpy()
    for how, inputs in (("none", plain), ("l2", plain / np.linalg.norm(plain, axis=1, keepdims=True))):
        scores = [oracle(c).fit(inputs[:400], labels[:400]).score(inputs[400:600], labels[400:600]) for c in CS]
        assert scores[CS.index(fit.chosen[f"C avg-{how}"])] == max(scores)
        model = oracle(fit.chosen[f"C avg-{how}"]).fit(inputs[:600], labels[:600])
        np.testing.assert_array_equal(found[f"avg-{how}"], model.predict(inputs[600:]))


@pytest.mark.parametrize(
    ("accuracies", "tried", "chosen"),
    [
        ((0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), 6, 2),
        ((0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.4), 7, 1),
        ((0.9, 0.8, 0.7, 0.6, 0.5, 1.0, 0.4), 5, 1),
        ((0.4, 0.3, 0.2, 0.1, 0.5, 0.6, 0.6), 7, 6),
    ],
)
def test_no_larger_c_after_four_falls(
    accuracies: tuple[float, ...], tried: int, chosen: int, problem: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(inputs: Tensor, labels: Tensor, *_: object) -> Iterator[tuple[Tensor, Tensor]]:
        for accuracy in accuracies:
            yield torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, accuracy - 1])

    monkeypatch.setattr(logistic, "path", scripted)
    values = torch.cat([torch.tensor([-1.0, 1.0] * 10), (torch.arange(20) + 0.5) / 20])[:, None]
    labels = np.array([0, 1] * 10 + [1] * 20)
    fit = Logistic(cs=tuple(float(c) for c in range(1, 8))).fit(*problem({"cls": values}, labels, 20, 20)[:3])
    assert fit.curve["validation accuracy"] == pytest.approx(accuracies[:tried])
    assert fit.curve["C"] == list(range(1, tried + 1))
    assert fit.chosen["C"] == chosen and fit.at_grid_boundary == (chosen == 1)


def test_it_needs_a_selection_split(problem: Callable) -> None:
    features, labels = overlapping(60, 4)
    with pytest.raises(UserError, match="val_fraction"):
        Logistic().fit(*problem({"cls": torch.tensor(features)}, labels, 40, 0)[:3])


@pytest.mark.parametrize(
    "options", [{"cs": ()}, {"cs": (1.0, 0.1)}, {"cs": (0.0,)}, {"patience": 0}, {"tolerance": 0.0}]
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Logistic(**options)
