"""Features without images or a network: arrays that someone else's network gave, as protocols see a backbone.

Shapes: N images of a split, D features.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_bench.data.pool import Pool
from ssl_bench.data.splits import Split, TestSplit, TrainSplit, ValidationSplit, stratified_validation
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import Cost

NO_IMAGES = "it looks at images or at the network, and here are features alone"


@final
@dataclass(frozen=True, kw_only=True)
class FeaturePool(Pool):
    """Features in the place of images.

    Args:
        features: (N, D) float32.
    """

    features: Tensor

    @property
    def channels(self) -> int:
        raise UserError(NO_IMAGES)

    def image(self, row: int) -> Image.Image:
        raise UserError(NO_IMAGES)

    def take(self, rows: np.ndarray) -> Self:
        return replace(self, features=self.features[torch.as_tensor(rows)], **self._part(rows))  # type: ignore[arg-type]

    def _hashed(self) -> Iterable[bytes | memoryview]:
        yield str(tuple(self.features.shape)).encode()
        yield self.features.contiguous().numpy().reshape(-1).view(np.uint8).data


@final
class GivenFeatures:
    """A `FeatureSource` of features as they are given.

    Args:
        device: Where features are returned.
    """

    feature_types = ("features",)
    primary_feature_type = "features"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.used: dict[str, Cost] = {}
        self.spent = Cost()

    def features(
        self, split: Split, feature_type: str, rows: slice | Tensor = slice(None), view: int | None = None
    ) -> Tensor:
        """(N, D) features of a split in its order, or of some ``rows`` of it: a copy, which may be changed.

        Raises:
            UserError: Other features are wanted, or those of a random crop.
        """
        if feature_type not in self.feature_types or view is not None:
            raise UserError(NO_IMAGES)
        assert isinstance(split.pool, FeaturePool)
        of_split = torch.as_tensor(split.rows)[rows.cpu() if isinstance(rows, Tensor) else rows]
        return split.pool.features[of_split].to(self.device)

    def state_hash(self) -> str:
        """No parameter, nothing to change."""
        return ""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise UserError(NO_IMAGES)


@dataclass(frozen=True)
class FeatureSplits:
    """Train, validation and test of features, split as images are.

    Args:
        classes: What the K labels were, in the order of the numbers that stand for them.
    """

    train: TrainSplit
    validation: ValidationSplit
    test: TestSplit
    classes: np.ndarray


def feature_splits(
    train: tuple[Tensor, np.ndarray], test: tuple[Tensor, np.ndarray], val_fraction: float, split_seed: int
) -> FeatureSplits:
    """Splits of (N, D) float32 features with their (N,) labels of any type.

    Args:
        train: All that may be learned from; in the order of a set's training images, it is split as that set is.
        test: What is predicted.
        val_fraction: Of each class of the training features, on which anything is chosen.
        split_seed: Fixes that part.

    Raises:
        UserError: A class has test features but no training ones.
    """
    classes = np.unique(train[1])
    unseen = np.setdiff1d(test[1], classes)
    if len(unseen):
        raise UserError(f"class {unseen[0]!s} is in y_test and not in y_train")
    if len(classes) < 2:
        raise UserError(f"y_train has one class only ({classes[0]!s}): evaluations need two")
    pools = [
        FeaturePool(labels=np.searchsorted(classes, labels), ids=[str(row) for row in range(len(labels))], features=x)
        for x, labels in (train, test)
    ]
    assert pools[0].labels is not None
    chosen = stratified_validation(pools[0].labels, val_fraction, split_seed)
    return FeatureSplits(
        TrainSplit(pools[0], np.flatnonzero(~chosen)),
        ValidationSplit(pools[0], np.flatnonzero(chosen)),
        TestSplit(pools[1], np.arange(len(test[1]))),
        classes,
    )
