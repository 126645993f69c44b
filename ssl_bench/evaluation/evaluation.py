"""The contract of an evaluation: fit on training images, choose on the validation split, predict the test images.

An evaluation receives a frozen backbone, never a method. Nothing that learns or chooses is handed the test split: `fit`
takes a TrainSplit and a ValidationSplit, `predict` the TestImages, which have no labels: predictions are scored
outside.

Shapes: N images, D features, K classes.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ssl_bench.data.splits import Split, TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.evaluation.cost import Cost
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.statistics.bootstrap import Statistic

Fitted = TypeVar("Fitted")
ROWS = 1024  # of features at once, so that no copy of all is made


@dataclass(frozen=True)
class Prediction:
    """Predicted classes of the test images, by one variant of a protocol.

    Args:
        variant: Short name, such as `k20` or `cls+avg`; the primary variant's number is the protocol's.
        labels: (N,) int64 predicted class of each test image, in the split's order; or (R, N), as often as something
            was repeated. The accuracy is then the mean of the R.
        repeats: What the R are. `draws` at random (of a few labelled images, say): the interval is that of new draws
            and new test images. `conditions` that are all there are (kinds of noise): of new test images alone.
    """

    variant: str
    labels: Tensor
    repeats: Literal["draws", "conditions"] = "draws"


class Scored(ABC):
    """What an evaluation says of the test images when it is no class of each: masks, rankings, probabilities.

    It is scored outside of the evaluation, as classes are, by its own metric: one in which more is better.
    """

    @abstractmethod
    def scores(self, test: TestSplit) -> dict[str, Statistic]:
        """Variant -> its number, the primary first; of each, a row of sums for each test image."""

    def diagnostics(self, test: TestSplit) -> dict[str, float]:
        """Name -> another number, recorded and never ranked."""
        return {}

    def curves(self, test: TestSplit) -> dict[str, list[float]]:
        """Name -> a series to draw, such as a reliability curve."""
        return {}


@dataclass(frozen=True)
class Fit(Generic[Fitted]):
    """What `fit` learned, and what it chose on the validation split.

    Args:
        state: Whatever `predict` needs.
        features: Feature types it looked at.
        chosen: Option -> chosen value, empty when nothing was chosen.
        grid: Option -> the values it was chosen from.
        at_grid_boundary: Whether a chosen value lies at an end of its grid: a wider one may give more.
        curve: Named series over the fit, such as validation accuracy per epoch.
        chosen_on: The validation split, or the training images themselves by cross-validation or leave-one-out.
        diagnostics: Name -> a number that describes the features; recorded, never ranked.
        boundary_tied: Whether the value next to that end of the grid is as accurate, where that was looked at.
    """

    state: Fitted
    features: tuple[str, ...] = ()
    chosen: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    at_grid_boundary: bool = False
    curve: dict[str, list[float]] = field(default_factory=dict)
    chosen_on: Literal["validation", "train"] = "validation"
    diagnostics: dict[str, float] = field(default_factory=dict)
    boundary_tied: bool = False


class FeatureSource(Protocol):
    """All that protocols ask for which look at neither images nor a network.

    `FeatureExtractor` computes features of images; `GivenFeatures` has those of arrays.

    Attributes:
        primary_feature_type: Of features, where one must be picked beforehand.
        device: Where features are returned.
        used: Splits whose features were asked for since last cleared, and what they cost.
        spent: On features that were computed for this, as opposed to found.
    """

    primary_feature_type: str
    device: torch.device
    used: dict[str, Cost]
    spent: Cost

    @property
    def feature_types(self) -> tuple[str, ...]:
        """Names of the features that there are."""

    def features(
        self, split: Split, feature_type: str, rows: slice | Tensor = slice(None), view: int | None = None
    ) -> Tensor:
        """(N, D) features of a split in its order, or of some ``rows`` of it, or of a random crop of each image."""

    def state_hash(self) -> str:
        """sha256 of all that features depend on and that could learn."""


class Evaluation(ABC, Generic[Fitted]):
    """One protocol. Its options are its constructor's typed signature, each kept under its own name.

    Attributes:
        version: Raised whenever the same options would give other numbers.
        trains: Whether it trains copies of the backbone, which takes far longer than looking at its features.
        metric: What its number is.
        needs: What must be known of images: their class, or the class of each of their pixels.
    """

    version: ClassVar[int] = 1
    trains: ClassVar[bool] = False
    metric: ClassVar[str] = "accuracy"
    needs: ClassVar[Literal["classes", "masks"]] = "classes"

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        """Why it cannot be run on a backbone; None if it can."""
        return backbone.untrainable if self.trains else None

    @abstractmethod
    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Fitted]:
        """Learn from the training images; choose, if there is anything to choose, on the validation split."""

    @abstractmethod
    def predict(self, backbone: FeatureExtractor, fit: Fit[Fitted], test: TestImages) -> Sequence[Prediction] | Scored:
        """Classes of the test images, the primary variant first; none if it only diagnostics; or what is scored."""

    def options(self) -> dict[str, Any]:
        """Option -> value; what a record says of how a number was made."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def moments(
    source: FeatureSource, splits: Sequence[Split], feature_type: str, views: Sequence[int | None] = (None,)
) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each feature over all images of the splits, in all of some views.

    Two (D,) float64 tensors.
    """
    parts = [(s, slice(at, at + ROWS), v) for v in views for s in splits for at in range(0, len(s), ROWS)]
    count = len(views) * sum(len(split) for split in splits)
    sums = [source.features(s, feature_type, rows, v).double().sum(0) for s, rows, v in parts]
    mean = torch.stack(sums).sum(0) / count
    squares = [(source.features(s, feature_type, rows, v).double() - mean).square().sum(0) for s, rows, v in parts]
    return mean, torch.stack(squares).sum(0) / count
