"""Few-shot ridge against scikit-learn and direct solves; which images have labels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ssl_bench.evaluation.label_subsets import rank_within_class, subset_features
from ssl_bench.evaluation.solvers import affine_classifier
from ssl_bench.evaluations.fewshot import Fewshot, ridge
from ssl_bench.runtime.seeds import derive


def clusters(count: int, dim: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """(count, dim) features of overlapping classes, of unlike scales and far from 0."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    features = rng.normal(size=(classes, dim))[labels] + 1.5 * rng.normal(size=(count, dim))
    return torch.tensor(features * np.geomspace(0.1, 10, dim) + 5), labels


def predicted(backbone: Any, train: Any, validation: Any, test: Any, **options: Any) -> dict[str, np.ndarray]:
    protocol = Fewshot(**options)
    fit = protocol.fit(backbone, train, validation)
    return {p.variant: p.labels.numpy() for p in protocol.predict(backbone, fit, test)}


# --- the regression


@pytest.mark.parametrize("shape", [(90, 12), (13, 12), (12, 12), (8, 40), (3, 40)])
@pytest.mark.parametrize("penalty", [0.5, 1024.0])
def test_ridge_against_a_direct_solve(shape: tuple[int, int], penalty: float) -> None:
    features, labels = clusters(*shape, 3)
    x = features.numpy()
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    x = np.concatenate([x, np.full((len(x), 1), 100.0)], axis=1)
    y = np.where(np.arange(3) == labels[:, None], 1.0, -1.0)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    head = ridge(features, torch.tensor(labels), 3, penalty)
    logits = features @ head.weight.T + head.bias
    np.testing.assert_allclose(logits, x @ weights, rtol=1e-8, atol=1e-9)
    new = clusters(20, shape[1], 3, seed=1)[0]
    scaled = (new.numpy() - features.numpy().mean(0)) / (features.numpy().std(0) + 1e-5)
    expected = np.concatenate([scaled, np.full((20, 1), 100.0)], axis=1) @ weights
    np.testing.assert_allclose(new @ head.weight.T + head.bias, expected, rtol=1e-8, atol=1e-9)


def test_ridge_against_scikit_learn() -> None:
    """Without an intercept of its own; the constant feature is one of the others."""
    features, labels = clusters(60, 10, 4)
    x = features.numpy()
    x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100.0)
    oracle = Ridge(1024.0, fit_intercept=False, solver="svd").fit(x, 2.0 * np.eye(4)[labels] - 1)
    head = ridge(features, torch.tensor(labels), 4, 1024.0)
    np.testing.assert_allclose(features @ head.weight.T + head.bias, oracle.predict(x), rtol=1e-9, atol=1e-9)


def test_a_feature_that_is_constant_says_nothing() -> None:
    features, labels = clusters(30, 6, 3)
    plain = ridge(features, torch.tensor(labels), 3, 1024.0)
    more = ridge(torch.cat([features, torch.full((30, 1), 3.7).double()], 1), torch.tensor(labels), 3, 1024.0)
    assert more.weight[:, 6].abs().max() < 1e-6
    torch.testing.assert_close(more.weight[:, :6], plain.weight)


# --- the labelled images


def test_ranks_are_an_order_within_each_class() -> None:
    labels = np.random.default_rng(0).integers(5, size=300)
    labels[labels == 3] = 2  # a class without images
    found = rank_within_class(labels, 7)
    for k in (0, 1, 2, 4):
        assert sorted(found[labels == k]) == list(range((labels == k).sum()))
    assert np.array_equal(found, rank_within_class(labels, 7)) and not np.array_equal(
        found, rank_within_class(labels, 8)
    )
    first = [np.flatnonzero((rank_within_class(labels, s) == 0) & (labels == 0))[0] for s in range(200)]
    assert len(set(first)) > 0.8 * (labels == 0).sum(), "every image of a class can be the first"


def test_features_of_several_splits(problem: Callable) -> None:
    backbone, train, validation, _ = problem({"cls": torch.arange(20.0)[:, None]}, np.zeros(20), 8, 6)
    rows = np.array([0, 5, 7, 8, 13])
    assert subset_features(backbone, (train, validation), "cls", rows).flatten().tolist() == rows.tolist()
    assert subset_features(backbone, (train, validation), "cls", rows[3:]).flatten().tolist() == [8, 13]


def test_every_draw_against_scikit_learn(problem: Callable) -> None:
    """The labelled images are found out by who asks for their features; then each draw is solved anew."""
    features, labels = clusters(400, 12, 4)
    backbone, train, validation, test = problem({"cls": features}, labels, 200, 100)
    asked: list[np.ndarray] = []
    original = backbone.features

    def spy(split: Any, feature_type: str, rows: Any = slice(None), view: int | None = None) -> torch.Tensor:
        if split is not test:
            asked.append(np.atleast_1d(split.rows[rows]))
        return original(split, feature_type, rows, view)  # type: ignore[no-any-return]

    backbone.features = spy
    found = predicted(backbone, train, validation, test, shots=(1, 5, 10, 25))
    assert list(found) == ["10-shot", "1-shot", "5-shot", "25-shot"], "the primary first"
    used = iter(asked)
    drawn: dict[int, list[set[int]]] = {}
    for draw in range(3):
        for shots in (1, 5, 10, 25):
            rows: list[int] = []
            while len(rows) < 4 * shots:
                rows += next(used).tolist()
            assert np.bincount(labels[rows]).tolist() == [shots] * 4
            drawn.setdefault(draw, []).append(set(rows))
            x = features[rows].float().double().numpy()
            mean, deviation = x.mean(0), x.std(0) + 1e-5
            scaled, new = (
                np.pad((z - mean) / deviation, ((0, 0), (0, 1)), constant_values=100.0)
                for z in (x, features[300:].float().double().numpy())
            )
            oracle = Ridge(1024.0, fit_intercept=False, solver="svd").fit(scaled, 2.0 * np.eye(4)[labels[rows]] - 1)
            np.testing.assert_array_equal(found[f"{shots}-shot"][draw], oracle.predict(new).argmax(1))
    assert next(used, None) is None
    for nested in drawn.values():
        assert all(few < more for few, more in zip(nested, nested[1:], strict=False)), "few are among more"
    assert len({frozenset(nested[1]) for nested in drawn.values()}) == 3, "each draw has its own images"
    assert any(row >= 200 for row in drawn[0][3]), "the validation part is drawn from as well"
    accuracy = {name: (labels[300:] == p).mean() for name, p in found.items()}
    assert 0.25 < accuracy["1-shot"] < accuracy["10-shot"] < accuracy["25-shot"] < 1


def test_a_class_with_fewer_images_gives_all(problem: Callable) -> None:
    features, labels = clusters(120, 8, 3)
    labels[:60][labels[:60] == 2] = 0
    labels[:4] = 2
    backbone, *splits = problem({"cls": features}, labels, 60, 0)
    fit = Fewshot(shots=(10,), draws=2).fit(backbone, *splits[:2])
    rows = [*np.flatnonzero(labels[:60] == 2)]
    assert rows == [0, 1, 2, 3]
    for draw in range(2):
        place = rank_within_class(labels[:60], derive(0, draw))
        chosen = np.flatnonzero(place < 10)
        assert np.bincount(labels[chosen]).tolist() == [10, 10, 4]
        expected = ridge(features[chosen].float().double(), torch.tensor(labels[chosen]), 3, 1024.0)
        torch.testing.assert_close(fit.state[10][draw].weight, expected.weight)


def test_without_selection_images_and_chunk_by_chunk(problem: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(200, 8, 3)
    given = problem({"cls": features}, labels, 120, 0)
    whole = predicted(*given)
    assert all(p.shape == (3, 80) for p in whole.values())
    monkeypatch.setattr(affine_classifier, "ROWS", 7)
    parts = predicted(*given)
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)


def test_another_seed_draws_others(problem: Callable) -> None:
    features, labels = clusters(300, 8, 3)
    given = problem({"cls": features}, labels, 120, 20)
    first, second = predicted(*given, draws=1), predicted(*given, draws=1, seed=1)
    assert not np.array_equal(first["1-shot"], second["1-shot"])
    assert np.array_equal(first["1-shot"][0], predicted(*given, draws=3)["1-shot"][0])


def test_nothing_is_chosen(problem: Callable) -> None:
    features, labels = clusters(100, 8, 3)
    backbone, *splits = problem({"cls": features}, labels, 60, 10)
    fit = Fewshot().fit(backbone, *splits[:2])
    assert fit.chosen == {} and fit.grid == {} and not fit.at_grid_boundary and fit.features == ("cls",)


@pytest.mark.parametrize(
    "options", [{"primary_shots": 3}, {"shots": (0, 10)}, {"shots": (10, 10)}, {"draws": 0}, {"penalty": 0.0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="add it|at least 1"):
        Fewshot(**options)
