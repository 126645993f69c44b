"""Which images are the labelled ones, where few are: drawn at random from each class, or named by a file.

Shapes: N images of all splits together, n labelled ones, D features.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.splits import LabelledSplit, Split
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.records.files import read_regular

PUBLISHED = "https://github.com/google-research/simclr/tree/master/imagenet_subsets"
# Fraction -> md5 of the published list of ImageNet's labelled images, 1percent.txt and 10percent.txt.
PUBLISHED_MD5 = {0.01: "b61c91b8ddb75fabdb02a9bb2ae3bd74", 0.1: "b0d861160cc9531910d069ff547fc1b6"}
IMAGENET = re.compile(r"^(n\d{8}_\d+)(_n\d{8})?(\.[a-zA-Z]+)$")  # Hugging Face's copy repeats the class


def rank_within_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N,) rank of each image in a random order of the images of its class, counted from 0.

    The images whose rank is below k are k of each class, or all of a class that has fewer; more include the fewer.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, at random within each
    counts = np.bincount(labels)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def stratified_fraction(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(n,) rising rows of a fraction of each class, rounded, but at least one image; more include the fewer."""
    each = np.maximum(1, np.floor(fraction * np.bincount(labels) + 0.5))
    return np.flatnonzero(rank_within_class(labels, seed) < each[labels])


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(n,) fold in which each image is held out, each class spread evenly; -1 for the only image of a class.

    A class with fewer images than folds is held out in as many as it has. There are at most as many folds as the
    largest class has images; if that is one, no image is ever held out.
    """
    counts = np.bincount(labels)
    fold: np.ndarray = (rank_within_class(labels, seed) + labels) % max(1, min(folds, counts.max()))
    fold[counts[labels] == 1] = -1
    return fold


def concatenated_labels(splits: Sequence[LabelledSplit]) -> np.ndarray:
    """(N,) classes of the images of the splits, one after another."""
    return np.concatenate([split.labels for split in splits])


def labelled_subsets(
    splits: Sequence[LabelledSplit], fraction: float, subset: str | None, seeds: Sequence[int]
) -> list[np.ndarray]:
    """(n,) rising rows, among the images of all splits, of the labelled ones: one draw for each seed, or a list.

    Args:
        splits: Whose images they are.
        fraction: Of the images of each class.
        subset: File that names the images; drawn when not given.
        seeds: Of the draws.

    Raises:
        UserError: The file does not fit, or a subset would be drawn of which everyone takes the published list.
    """
    labels = concatenated_labels(splits)
    md5 = PUBLISHED_MD5.get(fraction) if is_imagenet(splits, labels) else None
    if subset is not None:
        return [read_subset_list(Path(subset), splits, labels, md5)]
    if md5 is not None:  # numbers from another 1 % than everyone's are not comparable
        raise UserError(f"subset: {100 * fraction:g} % of ImageNet is a published list: give the file from {PUBLISHED}")
    return [stratified_fraction(labels, fraction, seed) for seed in seeds]


def is_imagenet(splits: Sequence[Split], labels: np.ndarray) -> bool:
    """Whether images have its thousand classes and are named as its files are."""
    return len(np.unique(labels)) == 1000 and IMAGENET.match(Path(splits[0].ids[0]).name) is not None


def read_subset_list(path: Path, splits: Sequence[Split], labels: np.ndarray, md5: str | None) -> np.ndarray:
    """(n,) rising rows of the images that a file names, one in each line; a file of this md5, where one is given."""
    try:
        content = read_regular(path)
        names = content.decode().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"subset {path}: cannot be read ({type(error).__name__})") from None
    own = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and own != md5:
        raise UserError(
            f"subset {path}: md5 {own} is not that of ImageNet's published list, {md5}: take the file from {PUBLISHED}"
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
            raise UserError(f"subset {path}: {name} {what}")
        rows += found
    missing = np.setdiff1d(labels, labels[rows])
    if len(set(rows)) < len(rows) or len(missing):
        what = f"has no image of class {missing[0]}" if len(missing) else "names an image twice"
        raise UserError(f"subset {path}: {what}")
    return np.sort(rows)


def subset_features(backbone: FeatureExtractor, splits: Sequence[Split], feature_type: str, rows: np.ndarray) -> Tensor:
    """(n, D) features of some images of the splits, ``rows`` being rising rows among all of them."""
    parts, first = [], 0
    for split in splits:
        own = rows[(rows >= first) & (rows < first + len(split))] - first
        if len(own):  # an empty split may have no features at all
            parts.append(backbone.features(split, feature_type, torch.as_tensor(own)))
        first += len(split)
    return torch.cat(parts)
