"""Retrieval against torchmetrics, loops and DINO's numbers; out-of-distribution detection against scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve

from ssl_bench.errors import UserError
from ssl_bench.evaluation.solvers.average_precision import average_precision
from ssl_bench.evaluations import ood
from ssl_bench.evaluations.ood import Detected, Ood, above, false_positives
from ssl_bench.evaluations.retrieval import Descriptors, Retrieval, gem, whitened


def clusters(count: int = 300, dim: int = 12, classes: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=count)
    labels[-1] = classes  # the only one of its class
    centres = rng.normal(size=(classes + 1, dim))
    return torch.tensor(centres[labels] + 1.5 * rng.normal(size=(count, dim)), dtype=torch.float32), labels


def test_every_query_against_a_loop(problem: Callable) -> None:
    features, labels = clusters()
    backbone, train, validation, test = problem({"cls": features}, labels, 0, 0)
    protocol = Retrieval(k=(1, 5))
    fit = protocol.fit(backbone, train, validation)
    found = protocol.predict(backbone, fit, test.unlabelled()).scores(test)
    unit = F.normalize(features, dim=1).double()
    precisions, hits = [], {1: [], 5: []}
    for query in range(len(labels) - 1):
        others = [i for i in np.argsort(-(unit @ unit[query]).numpy(), kind="stable") if i != query]
        right = [labels[i] == labels[query] for i in others]
        precisions.append(average_precision(np.array(right)))
        for k, hit in hits.items():
            hit.append(any(right[:k]))
    assert found["mAP"].value == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found["recall@1"].value == pytest.approx(np.mean(hits[1])) and list(found) == ["mAP", "recall@1", "recall@5"]
    assert found["recall@5"].value == pytest.approx(np.mean(hits[5]))
    parts = found["recall@1"].parts()
    np.testing.assert_allclose(parts[:-1] * 299 / 300 + (1 - 299 / 300) * found["recall@1"].value, hits[1], atol=0.01)


def test_perfect_descriptors_and_none_to_retrieve(problem: Callable) -> None:
    labels = np.arange(40) % 4
    _, _, _, test = problem({"cls": torch.zeros(40, 4)}, labels, 0, 0)
    perfect = Descriptors(F.one_hot(torch.tensor(labels)).float(), (1,)).scores(test)
    assert perfect["mAP"].value == perfect["recall@1"].value == 1
    _, _, _, alone = problem({"cls": torch.zeros(4, 4)}, np.arange(4), 0, 0)
    with pytest.raises(UserError, match="no two test images are of one class"):
        Descriptors(torch.eye(4), (1,)).scores(alone)


def test_generalised_mean() -> None:
    patches = torch.tensor([[1.0, -5.0], [2.0, 3.0], [3.0, 1e-6]])
    expected = [(sum(x**4 for x in (1, 2, 3)) / 3) ** 0.25, (81 / 3) ** 0.25]
    assert gem(patches, 4.0).tolist() == pytest.approx(expected, rel=1e-5)
    assert gem(patches.clamp(min=0), 1.0)[0] == pytest.approx(2.0), "p = 1 is the mean"
    assert gem(100 * patches, 400.0)[0] / 100 == pytest.approx(3.0, rel=0.01), "a large p the maximum"


def test_whitening_against_scikit_learn(problem: Callable) -> None:
    features, labels = clusters()
    features = features @ torch.diag(torch.logspace(-1, 1, 12))
    found = whitened(features)(features)
    assert torch.allclose(found.T.cov(), torch.eye(12) * 300 / 299, atol=1e-3)
    expected = PCA(whiten=True).fit_transform(features.numpy())
    ours, theirs = found @ found.T, torch.tensor(expected @ expected.T) * 300 / 299
    assert torch.allclose(ours, theirs.float(), atol=0.05), "the same but for a rotation"
    flat = torch.cat([features, torch.ones(300, 1)], 1)
    assert whitened(flat).projection.shape == (13, 12), "what does not vary is left out"
    backbone, train, validation, test = problem({"cls": features}, labels, 150, 0)
    protocol = Retrieval(whitening=True)
    scores = protocol.predict(backbone, protocol.fit(backbone, train, validation), test.unlabelled()).scores(test)
    plain = Retrieval().predict(backbone, Retrieval().fit(backbone, train, validation), test.unlabelled()).scores(test)
    assert scores["mAP"].value != plain["mAP"].value


def test_auroc_and_false_positives_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)  # with ties
    truth, scores = np.r_[np.ones(300), np.zeros(200)], np.r_[own, other]
    assert above(own, other).mean() == pytest.approx(roc_auc_score(truth, scores))
    wrong, right, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert false_positives(own, other) == pytest.approx(wrong[np.argmax(right >= 0.95)])
    found = Detected({"knn": own}, {"a": {"knn": other}, "b": {"knn": other - 5}})
    both = found.scores(None)  # type: ignore[arg-type]
    assert both["AUROC knn"].value == pytest.approx((roc_auc_score(truth, scores) + above(own, other - 5).mean()) / 2)
    assert set(both) == {"AUROC knn", "AUROC knn a", "AUROC knn b"}
    assert found.diagnostics(None).keys() == {"FPR95 knn a", "FPR95 knn b"}  # type: ignore[arg-type]


def test_other_images_are_found_by_each_score(problem: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test images lie where training images do; the others between classes, where distance and softmax are low."""
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=600)
    centres = 8 * np.eye(3)
    inside = centres[labels] + rng.normal(size=(600, 3))
    features = np.concatenate([inside, rng.normal(size=(100, 3)) + 8 / 3]).astype(np.float32)
    values = torch.tensor(np.concatenate([features, np.ones((700, 1))], 1), dtype=torch.float32)
    backbone, train, validation, test = problem({"cls": values}, np.r_[labels, np.zeros(100, int)], 400, 100)
    others = type(test)(test.pool, test.rows[-100:])
    monkeypatch.setattr(ood.Ood, "_images", lambda self, name: others.unlabelled())
    monkeypatch.setattr(type(test.pool), "digest", lambda self: str(id(self)))
    protocol = Ood(against=("between",), k=10)
    own = type(test)(test.pool, test.rows[:100])
    fit = protocol.fit(backbone, train, validation)
    scores = protocol.predict(backbone, fit, own.unlabelled()).scores(own)
    assert list(scores) == ["AUROC knn", "AUROC energy", "AUROC softmax"]
    assert scores["AUROC knn"].value > 0.95 and scores["AUROC softmax"].value > 0.95
    bank, query = (F.normalize(values[part], dim=1) for part in (train.rows, own.rows))
    tenth = (query @ bank.T).sort(1, descending=True).values[:, 9]
    other = (F.normalize(values[others.rows], dim=1) @ bank.T).sort(1, descending=True).values[:, 9]
    truth = np.r_[np.ones(100), np.zeros(100)]
    assert scores["AUROC knn"].value == pytest.approx(roc_auc_score(truth, np.r_[tenth, other]), abs=1e-4)
