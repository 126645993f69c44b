"""Protocols on given features against the command's numbers; the estimator against scikit-learn's checks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

from ssl_bench.api.features import evaluate_features
from ssl_bench.api.knn import KNN
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.splits import Split, TrainSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.command import run_evaluate
from ssl_bench.evaluation.evaluate_config import parse_evaluate
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.records.result import read_result

PROTOCOLS: dict[str, Any] = {
    "knn": {"k": [1, 20]},
    "ridge": {"penalties": [0.01, 0.1, 1.0]},
    "logistic": {"cs": [0.01, 0.1]},
    "fewshot": {"shots": [10], "draws": 2},
}


def pixels_of(split: Split, extractor: FeatureExtractor) -> torch.Tensor:
    return extractor.features(split, "pixels")


@pytest.mark.integration
def test_numbers_are_those_of_the_command_on_the_same_features(tmp_path: Path) -> None:
    """Raw pixels of `digits` as the command stores them, every protocol, every variant, every interval."""
    flags = [f"--{name}.{option}={value}" for name, given in PROTOCOLS.items() for option, value in given.items()]
    asked = parse_evaluate(
        ["pixels", "--data=digits", f"--protocols={','.join(PROTOCOLS)}", *flags, f"--runs={tmp_path}"]
    )
    (folder,) = run_evaluate(asked)

    data = load_dataset(DataOptions("digits"))
    extractor = FeatureExtractor(Pixels(data.image_size), data.mean, data.std, {})
    assert data.train is not None and data.test is not None
    everything = TrainSplit(data.train.pool, np.arange(len(data.train.pool)))
    x_train, x_test = pixels_of(everything, extractor), pixels_of(data.test, extractor)
    table = evaluate_features(x_train, everything.labels, x_test, data.test.labels, PROTOCOLS)

    assert table.protocol.unique().tolist() == list(PROTOCOLS)
    for name in PROTOCOLS:
        expected = read_result(Path(folder) / "results" / f"{name}.json")
        rows = table[table.protocol == name].set_index("variant")
        assert len(rows) == len(expected.variants)
        for variant, score in expected.variants.items():
            row = rows.loc[variant.replace("pixels", "features", 1)]
            found = row["value"], (row["low"], row["high"]), (row["class_low"], row["class_high"])
            assert found == (score.value, score.interval, score.over_classes), (name, variant)
        assert rows.index[0] == expected.primary and rows["primary"].tolist() == [True, *[False] * (len(rows) - 1)]


def test_labels_may_be_text_and_arrays_anything_like_one() -> None:
    x, y = load_digits(return_X_y=True)
    words = np.array([f"digit {label}" for label in y])
    plain = evaluate_features(x[:500], y[:500], x[1500:], y[1500:], "knn")
    text = evaluate_features(torch.tensor(x[:500]), words[:500], x[1500:].tolist(), words[1500:].tolist(), "knn")
    assert plain.equals(text)


@pytest.mark.parametrize("protocol", ["linear", "attentive", "finetune", "partial-finetune", "robustness"])
def test_protocols_that_need_more_than_features_say_so(protocol: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    with pytest.raises(UserError, match=f"{protocol}: .*here are features alone"):
        evaluate_features(x, y, x, y, protocol)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X_train": np.zeros((20, 2, 2))}, r"X_train is \(20, 2, 2\)"),
        ({"y_test": np.zeros(3)}, r"X_test is \(20, 3\) and y_test \(3,\)"),
        ({"X_test": np.zeros((20, 5))}, "X_train has 3 features and X_test 5"),
        ({"X_train": np.full((20, 3), np.nan)}, "not finite"),
        ({"y_test": np.full(20, 7)}, "class 7 is in y_test and not in y_train"),
        ({"y_train": np.zeros(20), "y_test": np.zeros(20)}, "one class only"),
        ({"protocols": "ridg"}, "no evaluation 'ridg'; did you mean 'ridge'"),
        ({"protocols": {"knn": {"kk": 3}}}, "no option --knn.kk"),
        ({"protocols": {"knn": {"k": [0]}}}, "--knn.k"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
    ],
)
def test_arrays_and_options_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"X_train": np.eye(20, 3), "y_train": np.arange(20) % 2}
    given |= {"X_test": np.eye(20, 3), "y_test": np.arange(20) % 2}
    with pytest.raises(UserError, match=message) as error:
        evaluate_features(**{**given, **change})
    assert "\n" not in str(error.value)


def test_the_estimator_passes_scikit_learns_checks() -> None:
    results = check_estimator(KNN(k=5), on_fail=None, on_skip=None)
    assert len(results) > 40
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}


def test_the_estimator_votes_as_the_formula_says() -> None:
    """Against scikit-learn's k-NN with cosine distance and the weights exp(s / T)."""
    x, y = load_digits(return_X_y=True)
    x_train, y_train, x_test, y_test = x[:600], y[:600], x[1500:], y[1500:]
    theirs = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = theirs.fit(x_train, y_train).predict(x_test)
    knn = KNN(k=20).fit(x_train, y_train)
    assert (knn.predict(x_test) == expected).mean() > 0.995  # but where float32 makes a tie of the votes
    assert knn.score(x_test, y_test) == evaluate_features(x_train, y_train, x_test, y_test, "knn").value[0]
    assert KNN(k=3, temperature=0.5).get_params() == {"k": 3, "temperature": 0.5, "device": "cpu"}
    search = GridSearchCV(KNN(), {"k": [1, 5]}, cv=2).fit(x_train, y_train)
    assert search.best_params_["k"] in (1, 5)
