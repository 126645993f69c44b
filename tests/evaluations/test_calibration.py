"""Calibration against torchmetrics, scikit-learn's classifier, a loop, and labels drawn from the probabilities."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchmetrics.functional.classification import multiclass_calibration_error

from ssl_bench.evaluations.calibration import (
    Calibration,
    Probabilities,
    bin_of,
    calibration_statistic,
    fitted_temperature,
)


def logits_and_labels(n: int = 3000, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from softmax(logits); the logits given out are ``scale`` times as large."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(n, 6, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return scale * logits, labels


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_error_against_torchmetrics(bins: int) -> None:
    logits, labels = logits_and_labels(scale=2.0)
    probabilities = logits.softmax(1)
    expected = float(multiclass_calibration_error(probabilities, labels, 6, n_bins=bins, norm="l1"))
    confidence, right = probabilities.amax(1).numpy(), (logits.argmax(1) == labels).double().numpy()
    assert calibration_statistic(confidence, right, bins).value == pytest.approx(1 - expected, abs=1e-6)


def test_error_against_a_loop_and_its_parts() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.2, 1, 200), (rng.random(200) < 0.6).astype(float)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    statistic = calibration_statistic(confidence, right, 15)
    assert statistic.value == pytest.approx(1 - error)
    assert statistic.parts().mean() == pytest.approx(1 - error, abs=1e-9)
    low_end, high_end = statistic.interval()
    assert low_end < 1 - error < high_end
    assert bin_of(np.array([0.0, 1 / 15, 0.9999, 1.0]), 15).tolist() == [0, 0, 14, 14]


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    logits, labels = logits_and_labels(scale=scale)
    expected = minimize_scalar(
        lambda t: float(F.cross_entropy(logits / t, labels)),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    ).x
    found = fitted_temperature(logits, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(scale, rel=0.1), "the labels were drawn from logits / scale"


def test_an_overconfident_classifier_gains_by_its_temperature(problem: Callable) -> None:
    logits, labels = logits_and_labels(scale=4.0)
    _, _, _, test = problem({"cls": torch.zeros(len(labels), 1)}, labels.numpy(), 0, 0)
    found = Probabilities(logits, fitted_temperature(logits, labels), 15)
    scores, numbers, curves = found.scores(test), found.diagnostics(test), found.curves(test)
    assert list(scores) == ["1-ECE", "1-ECE scaled", "accuracy"]
    assert scores["1-ECE"].value < 0.9 < 0.97 < scores["1-ECE scaled"].value
    assert numbers["ECE"] == pytest.approx(1 - scores["1-ECE"].value)
    assert numbers["cross entropy scaled"] < numbers["cross entropy"]
    expected = ((logits.softmax(1) - F.one_hot(labels)) ** 2).sum(1).mean()
    assert numbers["Brier score"] == pytest.approx(float(expected))
    assert sum(curves["images in bins"]) == len(labels)
    gap = np.abs(np.array(curves["confidence of bins"]) - curves["accuracy of bins"])
    assert (gap * curves["images in bins"]).sum() / len(labels) == pytest.approx(numbers["ECE"])


def test_the_classifier_is_logistic_regression_of_the_training_images(problem: Callable) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=900)
    features = (rng.normal(size=(4, 10))[labels] + 2 * rng.normal(size=(900, 10))).astype(np.float32)
    backbone, train, validation, test = problem({"cls": torch.tensor(features)}, labels, 500, 200)
    protocol = Calibration(cs=(0.1,))
    fit = protocol.fit(backbone, train, validation)  # type: ignore[arg-type]
    scaled = StandardScaler().fit(features[:500])
    oracle = LogisticRegression(C=0.1, tol=1e-9, max_iter=5000)
    # ours: mean loss + |W|^2 / (2 C n); scikit-learn's: C' sum loss + |W|^2 / 2, so C' = C
    oracle.fit(scaled.transform(features[:500]), labels[:500])
    predicted = protocol.predict(backbone, fit, test.unlabelled())  # type: ignore[arg-type]
    expected = oracle.predict_proba(scaled.transform(features[700:]))
    np.testing.assert_allclose(
        predicted.logits.softmax(1).numpy(), expected, atol=1e-3
    )  # a slope of 1e-5 over a curvature of 1 / (C n) = 0.02
    assert fit.chosen == {"C": 0.1, "temperature": fit.state.temperature}
