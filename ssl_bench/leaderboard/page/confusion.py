"""Per class: how many of its test images were classified rightly, and which classes are taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_bench.records.predictions import read_predictions
from ssl_bench.records.result import Result
from ssl_bench.records.store import Run

MAIN = ("linear", "finetune", "knn", "logistic", "ridge", "attentive", "classifier")
MOST_PAIRS = 5
MOST_CLASSES = 2000  # of which there is a matrix


@dataclass(frozen=True)
class Classes:
    """What a protocol's predictions say of classes.

    Args:
        protocol: Its name.
        accuracy: Class and share of its test images that were classified rightly, the worst first.
        confused: Class, what it was taken for, and the share of its images that was; most often first.
    """

    protocol: str
    accuracy: tuple[tuple[str, float], ...]
    confused: tuple[tuple[str, str, float], ...]


def classes(run: Run) -> Classes | None:
    """Those of a run's most telling protocol on its own images; None where there is no such protocol, or no classes.

    Raises:
        UserError: Its predictions are missing or damaged.
    """
    results = {result.protocol: result for result in run.results if result.data.identity == run.info.data.identity}
    found = [results[name] for name in MAIN if name in results]
    found += [
        result
        for result in results.values()
        if result.value is not None and result.metric == "accuracy" and result.protocol not in MAIN
    ]
    return _classes(run, found[0]) if found else None


def _classes(run: Run, result: Result) -> Classes | None:
    import numpy as np

    read = read_predictions(run.predictions_of(result))
    labels, guesses = np.asarray(read.labels), np.asarray(read.variants["prediction"])  # (N,), (R, N)
    if not len(labels) or min(labels.min(), guesses.min()) < 0:
        return None
    k = int(max(labels.max(), guesses.max())) + 1
    if k > MOST_CLASSES:
        return None
    counts = np.bincount((labels[None] * k + guesses).ravel(), minlength=k * k).reshape(k, k)
    totals = counts.sum(1)
    names = _names(result.data.fingerprint.get("classes"), k)
    there = np.flatnonzero(totals)
    right = counts[there, there] / totals[there]
    shares = counts / np.maximum(1, totals)[:, None]
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(-shares, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(int(at) // k, int(at) % k) for at in order]
    return Classes(
        result.protocol,
        tuple(sorted(((names[int(c)], float(p)) for c, p in zip(there, right, strict=True)), key=lambda pair: pair[1])),
        tuple((names[a], names[b], float(shares[a, b])) for a, b in pairs if shares[a, b] > 0),
    )


def _names(known: object, count: int) -> Sequence[str]:
    if isinstance(known, list) and len(known) >= count:
        return [str(name) for name in known]
    return [str(number) for number in range(count)]
