"""Few labelled images: which ones they are, and the protocol that learns from a share of all labels.

Shapes: N images of all splits together, n labelled ones, D features, K classes, R draws.
"""

import hashlib
import re
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data.splits import LabelledSplit, Split, TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers import logistic
from ssl_bench.runtime.precision import full_precision
from ssl_bench.runtime.seeds import derive

FIXED_C = 0.1  # where no class has a second image to choose it on
PATIENCE = 4  # values of C without a better one, after which larger ones are not tried
ROWS = 8192  # images at a time
LISTS = "https://github.com/google-research/simclr/tree/master/imagenet_subsets"
IMAGENET = re.compile(r"^(n\d{8}_\d+)(_n\d{8})?(\.[a-zA-Z]+)$")  # Hugging Face's copy repeats the class


@dataclass(frozen=True)
class Affine:
    """A classifier of features as they are: weight (K, D) and bias (K,), float64."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of_standardised(cls, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> "Affine":
        """From weights for (features - mean) / deviation."""
        own = weight.double() / deviation
        return cls(own, bias.double() - own @ mean)

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) classes."""
        return F.linear(features.double(), self.weight, self.bias).argmax(1)


def voted(heads: Sequence[Affine], backbone: FeatureExtractor, feature_type: str, test: TestImages) -> Tensor:
    """(R, N) int64 classes of the test images, by each of R heads."""
    parts = []
    for at in range(0, len(test), ROWS):
        features = backbone.features(test, feature_type, slice(at, at + ROWS)).double()
        parts.append(torch.stack([head(features).cpu() for head in heads]))
    return torch.cat(parts, 1)


def places(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N,) place of each image in a random order of the images of its class, counted from 0.

    The images whose place is below k are k of each class, or all of a class that has fewer; more include the fewer.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, at random within each
    counts = np.bincount(labels)
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def share(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(n,) rising rows of a fraction of each class, rounded, but at least one image; more include the fewer."""
    each = np.maximum(1, np.floor(fraction * np.bincount(labels) + 0.5))
    return np.flatnonzero(places(labels, seed) < each[labels])


def labels_of(splits: Sequence[LabelledSplit]) -> np.ndarray:
    """(N,) classes of the images of the splits, one after another."""
    return np.concatenate([split.labels for split in splits])


def labelled(
    splits: Sequence[LabelledSplit], fraction: float, subset: str | None, seeds: Sequence[int], md5: str, option: str
) -> list[np.ndarray]:
    """(n,) rising rows, among the images of all splits, of a share of all labels: one draw for each seed, or a list.

    Args:
        splits: Whose images they are.
        fraction: The share.
        subset: File that names the images; drawn when not given.
        seeds: Of the draws.
        md5: Of ImageNet's published list of that share.
        option: Of the command line, for messages.

    Raises:
        UserError: ImageNet's subset would be drawn, or the file does not fit.
    """
    labels = labels_of(splits)
    imagenet = is_imagenet(splits, labels)
    if subset is not None:
        return [listed(Path(subset), splits, labels, md5 if imagenet else None, option)]
    if imagenet:  # numbers from another 1 % than everyone's are not comparable
        raise UserError(f"{option}: ImageNet's subset is a published list: give the file from {LISTS}")
    return [share(labels, fraction, seed) for seed in seeds]


def is_imagenet(splits: Sequence[Split], labels: np.ndarray) -> bool:
    """Whether images have its thousand classes and are named as its files are."""
    return len(np.unique(labels)) == 1000 and IMAGENET.match(Path(splits[0].ids[0]).name) is not None


def listed(path: Path, splits: Sequence[Split], labels: np.ndarray, md5: str | None, option: str) -> np.ndarray:
    """(n,) rising rows of the images that a file names, one in each line; a file of this md5, where one is given."""
    try:
        content = path.read_bytes()
        names = content.decode().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: cannot be read ({type(error).__name__})") from None
    present = np.unique(labels)
    own = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and own != md5:
        raise UserError(
            f"{option} {path}: md5 {own} is not that of ImageNet's published list, {md5}: take the file from {LISTS}"
        )
    ids = [name for split in splits for name in split.ids]
    by_name: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        by_name.setdefault(IMAGENET.sub(r"\1\3", Path(name).name), []).append(row)
    rows = []
    for name in names:
        alike = by_name.get(Path(name).name, [])
        found = [row for row in alike if "/" not in name or f"/{ids[row]}".endswith(f"/{name}")]
        if len(found) != 1:
            what = "is no training image" if not found else "is the name of several images: write their folder too"
            raise UserError(f"{option} {path}: {name} {what}")
        rows += found
    without = np.setdiff1d(present, labels[rows])
    if len(set(rows)) < len(rows) or len(without):
        what = f"has no image of class {without[0]}" if len(without) else "names an image twice"
        raise UserError(f"{option} {path}: {what}")
    return np.sort(rows)


def features_of(backbone: FeatureExtractor, splits: Sequence[Split], feature_type: str, rows: np.ndarray) -> Tensor:
    """(n, D) features of some images of the splits, ``rows`` being rising places among all of them."""
    parts, first = [], 0
    for split in splits:
        own = rows[(rows >= first) & (rows < first + len(split))] - first
        if len(own):  # an empty split may have no features at all
            parts.append(backbone.features(split, feature_type, torch.as_tensor(own)))
        first += len(split)
    return torch.cat(parts)


def folds_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(n,) fold in which each image is held out, each class spread evenly; -1 for the only image of a class.

    A class with fewer images than folds is held out in as many as it has. There are at most as many folds as the
    largest class has images; if that is one, no image is ever held out.
    """
    counts = np.bincount(labels)
    found: np.ndarray = (places(labels, seed) + labels) % max(1, min(folds, counts.max()))
    found[counts[labels] == 1] = -1
    return found


def cross_validated(
    inputs: Tensor, labels: Tensor, held_out: np.ndarray, classes: int, cs: Sequence[float]
) -> tuple[float, list[float]]:
    """The C of the highest accuracy on held-out images, and the accuracy for each C that was tried, in order.

    Of equal accuracies the lowest loss decides. All folds go up the path together; it ends after PATIENCE values that
    are no better than one before.

    Args:
        inputs: (n, D).
        labels: (n,).
        held_out: (n,) fold of each image, -1 for those that are always learned from.
        classes: K.
        cs: Rising.
    """
    fold = torch.as_tensor(held_out, device=inputs.device)
    parts = [(fold != number, fold == number) for number in range(int(held_out.max()) + 1)]
    paths = [logistic.path(inputs[learn], labels[learn], classes, cs) for learn, _ in parts]
    scores: list[tuple[float, float]] = []  # accuracy and minus the loss
    for found in zip(*paths, strict=True):
        right, loss, count = 0, 0.0, 0
        for (weight, bias), (_, held) in zip(found, parts, strict=True):
            with full_precision():
                logits = F.linear(inputs[held], weight, bias)
            right += int((logits.argmax(1) == labels[held]).sum())
            loss += float(F.cross_entropy(logits.double(), labels[held], reduction="sum"))
            count += len(logits)
        scores.append((right / count, -loss / count))
        if len(scores) - 1 - scores.index(max(scores)) >= PATIENCE:
            break
    return cs[scores.index(max(scores))], [accuracy for accuracy, _ in scores]


def at_an_end(accuracy: Sequence[float], chosen: int, count: int) -> tuple[bool, bool]:
    """Whether the chosen one of ``count`` values is first or last; and if so, whether the next to it is as accurate.

    Where all is right whatever the penalty, the loss alone chooses, and a wider grid would change nothing.
    """
    edge = count > 1 and chosen in (0, count - 1)
    return edge, edge and accuracy[chosen] <= accuracy[1 if chosen == 0 else chosen - 1]


class FewLabels(Evaluation[list[Affine]], ABC):
    """Logistic regression on frozen features of a share of all labels.

    Attributes:
        fraction: The share.
        md5: Of ImageNet's published list of that share.
    """

    fraction: ClassVar[float]
    md5: ClassVar[str]

    def __init__(self, subset: str | None, draws: int, cs: tuple[float, ...], folds: int, seed: int) -> None:
        if not cs or list(cs) != sorted(set(cs)) or not cs[0] > 0:
            raise ValueError(f"cs must be above 0 and rise, not {tuple(cs)}")
        if draws < 1 or folds < 2:
            raise ValueError(f"draws must be at least 1 and folds at least 2, not {draws} and {folds}")
        self.subset = subset
        self.draws = draws
        self.cs = cs
        self.folds = folds
        self.seed = seed

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[list[Affine]]:
        splits, feature_type = (train, validation), backbone.primary_feature_type
        labels = labels_of(splits)
        seeds = [derive(self.seed, draw) for draw in range(self.draws)]
        subsets = labelled(splits, self.fraction, self.subset, seeds, self.md5, self._option)
        mean, variance = backbone.moments(splits, feature_type)  # of all images: they need no labels
        variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
        deviation = variance.sqrt()
        heads, chosen, curves, edges = [], [], {}, []
        for draw, rows in enumerate(subsets):
            features = features_of(backbone, splits, feature_type, rows)  # (n, D)
            inputs = ((features.double() - mean) / deviation).float()
            own, classes = torch.as_tensor(labels[rows]).to(inputs.device), int(labels.max()) + 1
            held_out = folds_of(labels[rows], self.folds, derive(self.seed, draw, 1))
            c = FIXED_C
            if held_out.max() >= 0:
                c, accuracy = cross_validated(inputs, own, held_out, classes, self.cs)
                chosen.append(c)
                curves[f"accuracy {draw}"] = accuracy
                edges.append(at_an_end(accuracy, self.cs.index(c), len(self.cs)))
            weight, bias = next(logistic.path(inputs, own, classes, [c]))
            heads.append(Affine.of_standardised(weight, bias, mean, deviation))
        if not chosen:
            return Fit(heads, features=(feature_type,))
        return Fit(
            heads,
            features=(feature_type,),
            chosen={"C": chosen if len(chosen) > 1 else chosen[0]},
            grid={"C": list(self.cs)},
            chosen_on="train",
            at_grid_boundary=any(edge for edge, _ in edges),
            boundary_tied=any(edge for edge, _ in edges) and all(tied for edge, tied in edges if edge),
            curve={"C": list(self.cs), **curves},
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[list[Affine]], test: TestImages) -> list[Prediction]:
        found = voted(fit.state, backbone, backbone.primary_feature_type, test)
        return [Prediction("logistic", found if len(found) > 1 else found[0])]

    @property
    def _option(self) -> str:
        return f"--labels_{round(100 * self.fraction)}pct.subset"
