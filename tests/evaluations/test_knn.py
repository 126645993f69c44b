"""k-NN against brute force, scikit-learn and the official code's numbers."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from paths import GOLDEN
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ssl_bench.evaluation.solvers import knn_search as search
from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.evaluations import knn
from ssl_bench.evaluations.knn import Knn, votes

KS = (1, 5, 10, 20, 50, 100, 200)


def clusters(count: int, dim: int, classes: int, seed: int = 0, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """(count, dim) float32 features of overlapping classes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    return (rng.normal(size=(classes, dim))[labels] + spread * rng.normal(size=(count, dim))).astype(np.float32), labels


def brute_force(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, ks: tuple[int, ...], temperature: float
) -> dict[int, np.ndarray]:
    """The protocol in float64 loops, with the official exp(s / T)."""
    unit = [x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, bank)]
    similarity = unit[0] @ unit[1].T
    predictions = {k: np.empty(len(queries), dtype=np.int64) for k in ks}
    for q, row in enumerate(similarity):
        nearest = np.lexsort((np.arange(len(row)), -row))  # falling; of equals the lower index
        for k in ks:
            score = np.zeros(labels.max() + 1)
            for n in nearest[:k]:
                score[labels[n]] += np.exp(row[n] / temperature)
            predictions[k][q] = score.argmax()
    return predictions


def predicted(backbone, train, validation, test, **options) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    protocol = Knn(**options)
    fit = protocol.fit(backbone, train, validation)
    return {p.variant: p.labels.numpy() for p in protocol.predict(backbone, fit, test)}


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_every_k_against_brute_force(problem: Callable, temperature: float) -> None:
    features, labels = clusters(2200, 24, 7)
    found = predicted(*problem({"cls": torch.tensor(features)}, labels, 1500, 500), temperature=temperature)
    expected = brute_force(features[:2000], labels[:2000], features[2000:], KS, temperature)
    for k in KS:
        np.testing.assert_array_equal(found[f"k{k}"], expected[k])
    assert next(iter(found)) == "k20", "the primary comes first"
    assert 0.3 < (expected[20] == labels[2000:]).mean() < 0.99, "the problem is neither trivial nor hopeless"


@pytest.mark.parametrize("k", [1, 20, 200])
def test_against_scikit_learn(problem: Callable, k: int) -> None:
    features, labels = clusters(1000, 16, 5, seed=1)
    found = predicted(*problem({"cls": torch.tensor(features)}, labels, 600, 200))
    oracle = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    expected = oracle.fit(features[:800].astype(np.float64), labels[:800]).predict(features[800:].astype(np.float64))
    np.testing.assert_array_equal(found[f"k{k}"], expected)


def test_standardised_and_raw_variants(problem: Callable) -> None:
    features, labels = clusters(800, 12, 5, seed=2)
    features = features * np.geomspace(0.01, 100, 12, dtype=np.float32) + 50
    features[:, 3] = 7.0  # says nothing
    raw, _ = clusters(800, 9, 5, seed=3)
    values = {"cls": torch.tensor(features), "cls_raw": torch.tensor(raw)}
    found = predicted(*problem(values, labels, 500, 100), k=(5, 20))
    names = ["k20", "k5", "k5-standardised", "k20-standardised", "k5-raw", "k20-raw", "k5-none", "k20-none"]
    assert list(found) == names
    scaled = StandardScaler().fit(features[:600].astype(np.float64)).transform(features.astype(np.float64))
    for suffix, space in {"": features, "-standardised": scaled, "-raw": raw}.items():
        expected = brute_force(space[:600], labels[:600], space[600:], (5, 20), 0.07)
        for k in (5, 20):
            np.testing.assert_array_equal(found[f"k{k}{suffix}"], expected[k])


@pytest.mark.parametrize("k", [1, 20])
def test_features_as_they_are_against_scikit_learn(problem: Callable, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    features, labels = clusters(900, 16, 5, seed=4)
    features *= np.geomspace(0.1, 10, 16, dtype=np.float32)
    features += 30  # far from 0, where float32 has few digits for differences
    monkeypatch.setattr(search, "ROWS", 100)
    found = predicted(*problem({"cls": torch.tensor(features)}, labels, 500, 200), k=(1, 20))
    oracle = KNeighborsClassifier(k, algorithm="brute").fit(features[:700].astype(np.float64), labels[:700])
    np.testing.assert_array_equal(found[f"k{k}-none"], oracle.predict(features[700:].astype(np.float64)))
    assert (found[f"k{k}-none"] != found[f"k{k}"]).any()


def test_official_accuracies_of_dino() -> None:
    about = json.loads((GOLDEN / "dino_knn.json").read_text())
    case = safetensors.numpy.load_file(GOLDEN / "dino_knn.safetensors")
    bank, queries = (F.normalize(torch.tensor(case[f"{part}_features"]), dim=1) for part in ("train", "test"))
    labels = torch.tensor(case["train_labels"]).long()
    ks = tuple(about["config"]["ks"])
    similarity, row = neighbours(lambda: [queries], [bank], max(ks))
    found = votes(similarity, labels[row], about["config"]["nc"], ks, about["config"]["T"])
    for result in about["results"]:
        accuracy = (found[result["k"]].numpy() == case["test_labels"]).mean()
        assert 100 * accuracy == pytest.approx(result["top1"], abs=1e-9)


def test_official_accuracies_of_dinov2() -> None:
    """Its softmax over the largest k's neighbours ranks classes as exp(s / T) does."""
    about = json.loads((GOLDEN / "dinov2_losses.json").read_text())
    case = safetensors.numpy.load_file(GOLDEN / "dinov2_losses.safetensors")
    bank, queries = (F.normalize(torch.tensor(case[f"knn.{name}"]), dim=1) for name in ("train", "query"))
    labels = torch.tensor(case["knn.train_labels"])
    similarity, row = neighbours(lambda: [queries], [bank], 20)
    found = votes(similarity, labels[row], int(labels.max()) + 1, (1, 5, 20), about["config"]["knn_T"])
    for k, accuracy in about["results"]["knn_top1"].items():
        np.testing.assert_array_equal(found[int(k)].numpy(), case[f"knn.probs.k{k}"].argmax(1))
        assert (found[int(k)].numpy() == case["knn.query_labels"]).mean() == pytest.approx(accuracy)


# --- ties, sizes, memory


@pytest.mark.integration
@pytest.mark.parametrize("sizes", [(1, 400, 50, 1), (7, 40, 3, 100), (512, 3000, 64, 2000), (512, 2**25, 2**16, 2**22)])
def test_chunks_change_nothing(
    problem: Callable, sizes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    features = rng.integers(-1, 2, size=(660, 4)).astype(np.float32)  # full of exact ties
    labels = rng.integers(4, size=660)
    monkeypatch.setattr(knn, "QUERIES", sizes[0])
    monkeypatch.setattr(knn, "BANK_VALUES", sizes[1])
    monkeypatch.setattr(search, "ROWS", sizes[2])
    monkeypatch.setattr(search, "CANDIDATES", sizes[3])
    found = predicted(*problem({"cls": torch.tensor(features)}, labels, 500, 150), k=(1, 5, 20), temperature=0.07)
    similarity = F.normalize(torch.tensor(features[650:]), dim=1) @ F.normalize(torch.tensor(features[:650]), dim=1).T
    nearest = similarity.sort(dim=1, descending=True, stable=True)
    expected = votes(nearest.values[:, :20], torch.tensor(labels)[nearest.indices[:, :20]], 4, (1, 5, 20), 0.07)
    for k in (1, 5, 20):
        np.testing.assert_array_equal(found[f"k{k}"], expected[k])


def test_votes_tie_to_the_lower_class() -> None:
    found = votes(torch.zeros(1, 2), torch.tensor([[3, 1]]), 5, (1, 2), 0.07)
    assert {k: voted.tolist() for k, voted in found.items()} == {1: [3], 2: [1]}


def test_a_bank_smaller_than_k(problem: Callable) -> None:
    features, labels = clusters(40, 8, 3, seed=5)
    found = predicted(*problem({"cls": torch.tensor(features)}, labels, 12, 3))
    expected = brute_force(features[:15], labels[:15], features[15:], KS, 0.07)
    for k in KS:
        np.testing.assert_array_equal(found[f"k{k}"], expected[k])


def test_without_selection_images(problem: Callable) -> None:
    features, labels = clusters(60, 8, 3, seed=6)
    found = predicted(*problem({"cls": torch.tensor(features)}, labels, 40, 0), k=(1, 20))
    np.testing.assert_array_equal(found["k20"], brute_force(features[:40], labels[:40], features[40:], (20,), 0.07)[20])


@pytest.mark.integration
def test_no_large_part_of_the_bank_is_held_at_once(problem: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(9000, 4, 3)
    monkeypatch.setattr(knn, "BANK_VALUES", 400)
    backbone, *splits = problem({"cls": torch.tensor(features)}, labels, 8900, 50)
    monkeypatch.setattr(knn, "QUERIES", 30)
    protocol = Knn()
    fit = protocol.fit(backbone, *splits[:2])
    backbone.most_rows = 0
    protocol.predict(backbone, fit, splits[2])
    assert backbone.most_rows == 100


def test_ends_of_cosines_and_ties_are_monitored(problem: Callable) -> None:
    """The bank: twice the direction of the query, three at one angle, of which k = 3 takes one, and one opposite."""
    bank = np.array([[2.0, 0.0], [3.0, 0.0], [0.6, 0.8], [1.2, 1.6], [0.6, -0.8], [-1.0, 0.0]], np.float32)
    values = torch.tensor(np.concatenate([bank, [[1.0, 0.0]]]))
    backbone, *splits = problem({"cls": values}, np.array([0, 1, 0, 1, 0, 1, 0]), 6, 0)
    for k, tied in ((2, 0.0), (3, 1.0), (5, 0.0)):
        protocol = Knn(k=(k, 6), primary_k=k)
        fit = protocol.fit(backbone, *splits[:2])
        protocol.predict(backbone, fit, splits[2])
        ends = fit.diagnostics["smallest cosine"], fit.diagnostics["largest cosine"]
        assert ends == pytest.approx((-1, 1)) and fit.diagnostics[f"tied at k{k}"] == tied
        assert {"smallest cosine-standardised", f"tied at k{k}-standardised"} <= set(fit.diagnostics)


def test_nothing_is_chosen(problem: Callable) -> None:
    features, labels = clusters(60, 8, 3)
    backbone, *splits = problem({"cls": torch.tensor(features)}, labels, 40, 10)
    fit = Knn().fit(backbone, *splits[:2])
    assert fit.chosen == {} and fit.grid == {} and not fit.at_grid_boundary and fit.features == ("cls",)


@pytest.mark.parametrize("options", [{"primary_k": 3}, {"k": (0, 20)}, {"temperature": 0.0}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match="add it|above 0"):
        Knn(**options)
