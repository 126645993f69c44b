"""Protocols on features that someone has already.

Shapes: N images, D features.
"""

from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssl_bench.api.protocols import Protocols, protocol_flags
from ssl_bench.api.results import result_rows
from ssl_bench.config.parser import errors_raised
from ssl_bench.errors import UserError
from ssl_bench.evaluation.command import instance
from ssl_bench.evaluation.evaluate_config import parse_evaluate
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.given_features import FeatureSplits, GivenFeatures, feature_splits
from ssl_bench.evaluation.runner import run_evaluation
from ssl_bench.records.result import Result
from ssl_bench.records.run import DataRecord
from ssl_bench.runtime.devices import own_device


def evaluate_features(
    X_train: Any,
    y_train: Any,
    X_test: Any,
    y_test: Any,
    protocols: Protocols = ("knn", "ridge", "logistic"),
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Accuracies of protocols on features, with 95 % intervals: the numbers of `ssl-bench evaluate` on the same ones.

    Args:
        X_train: (N, D) array or tensor.
        y_train: (N,) labels: numbers or text.
        X_test: (N, D) of the test images; nothing is chosen on them.
        y_test: Their labels.
        protocols: Names, or name -> options, of those that need features alone: `knn`, `ridge`, `logistic`, `fewshot`.
        val_fraction: Part of each class of the training features on which anything is chosen.
        split_seed: Fixes that part.
        device: Where it is computed.

    Returns:
        One row for each protocol and variant, as `load_results` has them.

    Raises:
        UserError: Arrays that do not fit together, or a protocol that needs images or a network.
    """
    train, test = _checked("train", X_train, y_train), _checked("test", X_test, y_test)
    if train[0].shape[1] != test[0].shape[1]:
        raise UserError(f"X_train has {train[0].shape[1]} features and X_test {test[0].shape[1]}")
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: give a part of 1, such as 0.1")
    splits = feature_splits(train, test, val_fraction, split_seed)
    with errors_raised():
        asked = parse_evaluate(["pixels", *protocol_flags(protocols)], {})
    rows = []
    for name in asked.protocols:
        rows += result_rows(_measured(name, instance(asked, name), splits, own_device(device)))
    return pd.DataFrame(rows)


def _measured(name: str, evaluation: Any, splits: FeatureSplits, device: str) -> Result:
    if evaluation.trains:
        raise UserError(f"{name}: it trains the network, and here are features alone")
    blank = Result(
        name, evaluation.version, evaluation.options(), "", None, None, len(splits.test), DataRecord("features")
    )
    features = cast(FeatureExtractor, GivenFeatures(device))
    try:
        images = splits.test.unlabelled()
        return run_evaluation(features, evaluation, splits.train, splits.validation, splits.test, images, blank)[0]
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _checked(which: str, features: Any, labels: Any) -> tuple[Tensor, np.ndarray]:
    """(N, D) float32 features and (N,) labels.

    Raises:
        UserError: They have other shapes, or values that are no numbers.
    """
    if not isinstance(features, Tensor):
        features = torch.as_tensor(np.asarray(features))
    x = features.detach().cpu()
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise UserError(f"X_{which} is {tuple(x.shape)} and y_{which} {y.shape}: give (N, D) features and N labels")
    x = x.to(torch.float32).contiguous()
    if not bool(x.isfinite().all()):
        raise UserError(f"X_{which} holds values that are not finite")
    return x, y
