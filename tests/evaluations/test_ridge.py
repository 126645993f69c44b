"""Ridge against scikit-learn and against really leaving each image out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from ssl_bench.evaluation.solvers import ridge
from ssl_bench.evaluation.solvers.ridge import LeastSquares
from ssl_bench.evaluations.ridge import Ridge

PENALTIES = (1e-5, 1e-2, 1.0, 30.0)


def classes(count: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, dim) correlated features of four overlapping classes of unlike sizes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, size=count, p=[0.1, 0.2, 0.3, 0.4])
    mix = rng.normal(size=(dim, dim)) * np.geomspace(1, 0.03, dim)
    return (4 / dim**0.5 * rng.normal(size=(4, dim))[labels] + 1.5 * rng.normal(size=(count, dim))) @ mix + 3, labels


def problem_of(features: np.ndarray, labels: np.ndarray, chunk: int = 64) -> LeastSquares:
    given = torch.tensor(features)
    return LeastSquares(lambda: given.split(chunk), torch.tensor(labels), 4)


@pytest.mark.parametrize("shape", [(200, 30), (40, 90), (50, 50)])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("chunk", [7, 64])
def test_classifier_against_scikit_learn(shape: tuple[int, int], penalty: float, chunk: int) -> None:
    features, labels = classes(*shape)
    weight, bias = problem_of(features, labels, chunk).classifier(penalty)
    oracle = SklearnRidge(alpha=penalty * len(labels), solver="svd").fit(features, 2 * np.eye(4)[labels] - 1)
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias.numpy(), oracle.intercept_, rtol=1e-6, atol=1e-7)
    new = classes(100, shape[1], seed=1)[0]
    found = (torch.tensor(new) @ weight.T + bias).argmax(1).numpy()
    expected = RidgeClassifier(alpha=penalty * len(labels), solver="svd").fit(features, labels).predict(new)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.integration
@pytest.mark.parametrize("dim", [20, 220])
def test_leave_one_out_against_leaving_each_of_200_out(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "TILE", 40 * dim)  # in several parts
    features, labels = classes(200, dim)
    targets = 2 * np.eye(4)[labels] - 1
    found = problem_of(features, labels).leave_one_out(PENALTIES)
    for penalty, accuracy, error in zip(PENALTIES, found.accuracy, found.error, strict=True):
        scores = np.empty((200, 4))
        for out in range(200):
            others = np.delete(np.arange(200), out)
            oracle = SklearnRidge(alpha=200 * penalty, solver="cholesky").fit(features[others], targets[others])
            scores[out] = oracle.predict(features[out : out + 1])
        assert accuracy == pytest.approx((scores.argmax(1) == labels).mean(), abs=1e-12)
        assert error == pytest.approx(((targets - scores) ** 2).mean(), rel=1e-6)
    assert len(set(found.accuracy)) > 1 and min(found.accuracy) < 0.9


def test_the_page_from_end_to_end(problem: Callable) -> None:
    """Standardised over train and validation; the best leave-one-out accuracy chooses penalty and feature type."""
    good, labels = classes(400, 12)
    values = {"avg": torch.tensor(classes(400, 5, seed=3)[0]), "cls": torch.tensor(good), "cls_raw": torch.tensor(good)}
    backbone, train, validation, test = problem(values, labels, 250, 50)
    protocol = Ridge(penalties=PENALTIES)
    fit = protocol.fit(backbone, train, validation)
    assert fit.features == ("avg", "cls") and fit.chosen["features"] == "cls"
    scaler = StandardScaler().fit(good[:300].astype(np.float32).astype(np.float64))
    inputs = scaler.transform(good.astype(np.float32).astype(np.float64))
    left_out = problem_of(inputs[:300], labels[:300]).leave_one_out(PENALTIES)
    assert fit.curve["leave-one-out accuracy"] == pytest.approx(left_out.accuracy)
    best = min(zip([-a for a in left_out.accuracy], left_out.error, PENALTIES, strict=True))[2]
    assert fit.chosen["penalty"] == fit.chosen["penalty cls"] == best and fit.grid["penalty"] == list(PENALTIES)
    oracle = RidgeClassifier(alpha=300 * best, solver="svd").fit(inputs[:300], labels[:300])
    found = {p.variant: p.labels.numpy() for p in protocol.predict(backbone, fit, test)}
    assert list(found) == ["chosen", "avg", "cls"]
    np.testing.assert_array_equal(found["chosen"], oracle.predict(inputs[300:]))
    np.testing.assert_array_equal(found["chosen"], found["cls"])
    assert (found["avg"] != found["cls"]).any() and (found["cls"] == labels[300:]).mean() > 0.5


def test_without_selection_images(problem: Callable) -> None:
    features, labels = classes(80, 6)
    backbone, train, validation, test = problem({"cls": torch.tensor(features)}, labels, 60, 0)
    fit = Ridge().fit(backbone, train, validation)
    assert Ridge().predict(backbone, fit, test)[0].labels.shape == (20,)


def test_scale_shift_and_constant_features_change_nothing(problem: Callable) -> None:
    features, labels = classes(300, 8)
    scaled = np.concatenate([features * np.geomspace(1e-3, 1e3, 8) + 10, np.full((300, 2), 7.3)], 1)
    found = []
    for values in (features, scaled):
        backbone, train, validation, test = problem({"cls": torch.tensor(values)}, labels, 150, 50)
        fit = Ridge(penalties=(1e-3,)).fit(backbone, train, validation)
        found.append(Ridge().predict(backbone, fit, test)[0].labels)
    assert torch.equal(*found)


def test_the_end_of_the_grid_is_flagged(problem: Callable) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    features = np.concatenate([labels[:, None] * 1.0, 3 * rng.normal(size=(60, 50))], 1) + rng.normal(size=(60, 51))
    splits = problem({"cls": torch.tensor(features)}, labels, 40, 10)
    low = Ridge(penalties=(1e-9, 1e-8)).fit(*splits[:3])
    enough = Ridge().fit(*splits[:3])
    assert not enough.at_grid_boundary and enough.chosen["penalty"] > 1e-8
    same = low.curve["leave-one-out accuracy"][0] == low.curve["leave-one-out accuracy"][1]
    assert low.at_grid_boundary and low.boundary_tied == same
    one = Ridge(penalties=(1.0,)).fit(*splits[:3])
    assert not one.at_grid_boundary and one.chosen["penalty"] == 1.0


@pytest.mark.parametrize("penalties", [(), (0.0, 1.0), (1.0, 0.1), (1.0, 1.0)])
def test_bad_options(penalties: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="above 0 and rise"):
        Ridge(penalties=penalties)
