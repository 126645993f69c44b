"""Run evaluations on a frozen backbone and write what they found: a record and every prediction.

Shapes: N test images.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ssl_bench
from ssl_bench.console import say
from ssl_bench.data.dataset import Dataset
from ssl_bench.data.files.left_out import UnreadableImage
from ssl_bench.data.splits import TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import Cost, rows_digest, split_name
from ssl_bench.evaluation.evaluation import Evaluation, Prediction, Scored
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.recorded_results import in_words, valid_result, warn_of_boundary
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import EvaluationCost, Result, Score, Selected, SplitRecord, write_result
from ssl_bench.records.run import DataRecord
from ssl_bench.runtime.distributed import all_reduce_sum, rank, world_size
from ssl_bench.runtime.precision import full_precision, peak_memory
from ssl_bench.statistics.intervals import over_classes, over_images


def evaluate(
    target: FeatureExtractor,
    data: Dataset,
    evaluations: dict[str, Evaluation[Any]],
    run_dir: Path,
    force: bool = False,
) -> list[Result]:
    """Results of the evaluations, one after another; those already recorded are read.

    Args:
        target: The backbone; `identity["branch"]` says which of a method's networks it is.
        data: Labelled images, with test images.
        evaluations: Protocol's name -> evaluation.
        run_dir: The run's folder, where its `run.json` is and where results and predictions go.
        force: Evaluate again what is recorded.

    Raises:
        UserError: The data have no test images, or not the labels that an evaluation needs.
        RuntimeError: An evaluation changed the backbone, or did not predict each test image.
    """
    data.require_labels()
    assert data.train is not None and data.validation is not None and data.test is not None
    results, images = [], data.test.unlabelled()
    for protocol, evaluation in evaluations.items():
        data.require_labels(evaluation.needs)
        blank = _blank(target, data, protocol, evaluation)
        result = None if force else valid_result(run_dir, blank)
        if not _all_have(result, target.device):
            result = None
        if result is not None:
            say(f"{protocol}: {in_words(result)}, recorded before")
        else:
            try:
                result, predictions = run_evaluation(
                    target, evaluation, data.train, data.validation, data.test, images, blank
                )
            except UnreadableImage:  # of the images, not of the protocol: who called leaves it out
                raise
            except UserError as error:
                raise UserError(f"{protocol}: {error}") from error
            if rank() == 0:
                path = write_result(run_dir, result, predictions)
                say(f"{protocol}: {in_words(result)}, {result.cost.seconds:.1f} s, {path}")
        warn_of_boundary(result)
        results.append(result)
    return results


def _all_have(result: Result | None, device: torch.device) -> bool:
    """Whether every process found the result: none may leave work to others that wait for it.

    None goes on before all have looked, so that what one writes is not found by another.
    """
    return int(all_reduce_sum(torch.tensor(int(result is not None), device=device))) == world_size()


def run_evaluation(
    target: FeatureExtractor,
    evaluation: Evaluation[Any],
    train: TrainSplit,
    validation: ValidationSplit,
    test: TestSplit,
    images: TestImages,
    blank: Result,
) -> tuple[Result, Predictions]:
    """One evaluation, and the blank record filled in; labels of the test images are read here and by no evaluation."""
    state, spent, start = target.state_hash(), target.spent, time.perf_counter()
    target.used.clear()
    if target.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target.device)
    with full_precision():
        fit = evaluation.fit(target, train, validation)
        predicted = evaluation.predict(target, fit, images)
    own = time.perf_counter() - start - (target.spent.seconds - spent.seconds)
    if target.state_hash() != state:
        raise RuntimeError(f"{blank.protocol} changed the backbone's parameters or buffers: its result is void")
    diagnostics, curve = dict(fit.diagnostics), dict(fit.curve)
    if isinstance(predicted, Scored):
        scores, predictions = _scored(blank.protocol, predicted, test)
        diagnostics |= predicted.diagnostics(test)
        curve |= predicted.curves(test)
    else:
        scores = _scores(blank.protocol, predicted, test)
        found = {p.variant: p.labels.tolist() for p in predicted}
        predictions = Predictions(test.ids, test.labels.tolist(), found)
    if not scores and not diagnostics:
        raise RuntimeError(f"{blank.protocol} predicted nothing and diagnostics nothing")
    primary = next(iter(scores), "")
    cost = sum(target.used.values(), Cost(seconds=own))  # with the features it used, whoever computed them
    result = dataclasses.replace(
        blank,
        primary=primary,
        value=scores[primary].value if primary else None,
        interval=scores[primary].interval if primary else None,
        variants=scores,
        selected=Selected(
            fit.grid,
            fit.chosen,
            fit.at_grid_boundary,
            fit.chosen_on if fit.grid else "none",
            boundary_tied=fit.boundary_tied,
        ),
        curve=curve,
        diagnostics=diagnostics,
        features=list(fit.features),
        cost=EvaluationCost(cost.images, float(cost.flops), cost.seconds, peak_memory(target.device)),
    )
    return result, predictions


def _scored(protocol: str, predicted: Scored, test: TestSplit) -> tuple[dict[str, Score], Predictions]:
    """Variant -> number with its interval, by the bootstrap over test images; and the part of each image."""
    scores, parts = {}, {}
    for variant, statistic in predicted.scores(test).items():
        if len(statistic.sums) != len(test) or not np.isfinite(statistic.value):
            raise RuntimeError(
                f"{protocol} scored {len(statistic.sums)} of {len(test)} test images as variant {variant!r}: "
                f"{statistic.value}"
            )
        scores[variant] = Score(statistic.value, statistic.interval())
        parts[variant] = statistic.parts()
    return scores, Predictions(test.ids, [0] * len(test), {}, parts)


def _scores(protocol: str, predictions: Sequence[Prediction], test: TestSplit) -> dict[str, Score]:
    """Variant -> accuracy with its interval."""
    scores: dict[str, Score] = {}
    for prediction in predictions:
        shape = tuple(prediction.labels.shape)
        if shape[-1:] != (len(test),) or len(shape) > 2 or 0 in shape or prediction.variant in scores:
            raise RuntimeError(
                f"{protocol} gave {shape} predictions for {len(test)} test images as variant "
                f"{prediction.variant!r}; each variant once, each image once"
            )
        right = prediction.labels.cpu().numpy() == test.labels  # (N,) or (R, N)
        repeats = prediction.repeats
        value, interval = over_images(right, repeats)
        wider = over_classes(right, test.labels, repeats)
        scores[prediction.variant] = Score(value, interval, wider, repeats if right.ndim == 2 else "")
    return scores


def _blank(target: FeatureExtractor, data: Dataset, protocol: str, evaluation: Evaluation[Any]) -> Result:
    """What is known of a result before it is: all that says which number it is."""
    assert data.train is not None and data.validation is not None and data.test is not None
    splits = (data.train, data.validation, data.test)
    what = json.dumps([target.network.spec, target.state_hash(), target.mean, target.std], sort_keys=True)
    return Result(
        protocol=protocol,
        version=evaluation.version,
        options=json.loads(json.dumps(evaluation.options())),  # tuples become lists, as they do in the file
        primary="",
        value=None,
        interval=None,
        n_test=len(data.test),
        data=DataRecord(data.title, data.fingerprint),
        splits={split_name(s): SplitRecord(f"{split_name(s)} {rows_digest(s)[:8]}", len(s)) for s in splits},
        geometry=target.geometry,
        metric=evaluation.metric,
        branch=str(target.identity.get("branch", "")),
        backbone=hashlib.sha256(what.encode()).hexdigest(),
        software={"ssl_bench": ssl_bench.__version__, "torch": torch.__version__, "timm": version("timm")},
    )
