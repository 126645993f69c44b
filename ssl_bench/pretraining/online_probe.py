"""What is watched while pretraining runs: can the features be used, and have they collapsed?

On a part of the labelled training images as bank and of the validation split as queries; never on test images. The
numbers are diagnostics: results come from `ssl-bench evaluate`.

Shapes: N images of the bank, M queries, D features, K classes.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.options import ProbeOptions
from ssl_bench.console import say
from ssl_bench.data.dataset import Dataset
from ssl_bench.data.files.left_out import UnreadableImage, add_left_out, read_left_out
from ssl_bench.data.splits import LabelledSplit, TrainSplit, ValidationSplit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.representation_metrics import effective_rank, singular_values
from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.evaluation.solvers.ridge import LeastSquares
from ssl_bench.evaluations.knn import votes
from ssl_bench.runtime.distributed import same_buffers


@dataclass(frozen=True)
class Spread:
    """How much of the feature space is used.

    Args:
        deviation: Mean standard deviation of the L2-normalised features times sqrt(D): 1 when spread over the sphere,
            0 when all features are the same.
        rank: Effective rank (Roy & Vetterli 2007) of the centred features: exp of the entropy of their normalised
            singular values, from 1 to the smaller of N and D.
    """

    deviation: float
    rank: float


def spread(features: Tensor) -> Spread:
    """Spread of (N, D) features."""
    unit = F.normalize(features.double(), dim=1)
    deviation = float(unit.std(0, unbiased=False).mean() * math.sqrt(features.shape[1]))
    return Spread(deviation, effective_rank(singular_values(features, centred=True)))


def ridge_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, penalty: float = 1e-3) -> float:
    """Accuracy on M queries of a linear least-squares classifier of N standardised features, in closed form."""
    mean, std = bank.double().mean(0), bank.double().std(0).clamp(min=1e-12)
    x, q = (bank.double() - mean) / std, (queries.double() - mean) / std
    weight, bias = LeastSquares(lambda: [x], labels, int(labels.max()) + 1).classifier(penalty)
    return float((F.linear(q, weight, bias).argmax(1) == answers).double().mean())


@final
class OnlineProbe(pl.Callback):
    """k-NN and linear accuracy, spread and rank of the features, at the start and every few epochs.

    All processes share the work: each computes the features of its part of the images.

    Args:
        data: Its train and validation splits, or its unlabelled images.
        options: How often, on how many images.
        folder: The run's, which remembers images that are found broken; they are left out.
    """

    def __init__(self, data: Dataset, options: ProbeOptions, folder: Path | None = None) -> None:
        self.data, self.options, self.folder = data, options, folder
        self.latest: dict[str, float] = {}
        self.start: Spread | None = None
        rows = data.train.rows if data.train is not None else np.arange(len(data.pretrain))
        pool = data.train.pool if data.train is not None else data.pretrain
        self.bank: LabelledSplit = TrainSplit(pool, _evenly(rows, options.images))
        self.queries: LabelledSplit | None = None
        if data.validation is not None and len(data.validation) and data.known == "classes":
            few = _evenly(data.validation.rows, max(1, options.images // 4))
            self.queries = ValidationSplit(data.validation.pool, few)
        self._leave_out(read_left_out(folder) if folder is not None else {})

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.options.every_n_epochs != 0 and self.start is None:
            self._probe(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epochs = trainer.max_epochs or 1
        every = self.options.every_n_epochs
        every = max(1, epochs // 10) if every is None else every
        done = trainer.current_epoch + 1
        if every and (done % every == 0 or done == epochs):
            self._probe(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {"start": [self.start.deviation, self.start.rank] if self.start else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = Spread(*state_dict["start"]) if state_dict["start"] else None

    def _leave_out(self, names: Collection[str]) -> None:
        self.bank = self.bank.without(names)
        self.queries = self.queries.without(names) if self.queries is not None else None

    def _probe(self, trainer: pl.Trainer, module: Any) -> None:
        """Measure; again without an image that turns out to be broken."""
        while module.product == "backbone":
            try:
                self._measure(trainer, module)
                break
            except UnreadableImage as found:
                if self.data.options.strict:
                    raise
                say(f"{found.name} is left out: {found.why}")
                self._leave_out([found.name])
                if self.folder is not None:
                    add_left_out(self.folder, found.name, found.why)

    def _measure(self, trainer: pl.Trainer, module: Any) -> None:
        frozen = FeatureExtractor(module.evaluated, self.data.mean, self.data.std, {}, device=module.device)
        same_buffers(frozen.network)
        bank = frozen.features(self.bank, frozen.primary_feature_type)  # (N, D)
        now = spread(bank)
        self.latest = {"feature_std": now.deviation, "feature_rank": now.rank}
        if self.queries is not None:
            queries = frozen.features(self.queries, frozen.primary_feature_type)  # (M, D)
            labels, answers = (torch.as_tensor(s.labels, device=bank.device) for s in (self.bank, self.queries))
            classes = int(max(labels.max(), answers.max())) + 1
            unit: Callable[[Tensor], Tensor] = lambda f: F.normalize(f, dim=1)  # noqa: E731
            similarity, row = neighbours(lambda: [unit(queries)], [unit(bank)], 20)
            voted = votes(similarity, labels[row], classes, [20], 0.07)[20]
            self.latest["knn"] = float((voted == answers).double().mean())
            self.latest["linear"] = ridge_accuracy(bank, labels, queries, answers)
        for logger in trainer.loggers:
            logger.log_metrics({**self.latest, "epoch": trainer.current_epoch}, step=trainer.global_step)
        if self.start is None:
            self.start = now
        elif now.rank < max(1.5, 0.1 * self.start.rank) or now.deviation < 0.02 * self.start.deviation:
            say(
                f"warning: the features have collapsed, epoch {trainer.current_epoch + 1}: rank {now.rank:.1f} "
                f"({self.start.rank:.1f} at the start), deviation {now.deviation:.2g}; the loss may not show it"
            )


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the rows, evenly spaced."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
