"""A data set, opened: its images, its splits, its statistics and its fingerprint.

Shapes: N images, H x W pixels.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch

from ssl_bench.config import class_paths, registry
from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.catalogue import entry_of, names
from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.files.listing import written_name
from ssl_bench.data.geometry import see_image
from ssl_bench.data.pool import EncodedPool, Pool, ResidentPool, Source
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit, balanced, stratified_validation
from ssl_bench.errors import UserError, near
from ssl_bench.records.run_folder import OWN

NAMED = 1000  # files left out that a record names; all are counted
FEW = 3  # that the console names
SIZES = 64  # photographs whose size is read for the record
PHOTOGRAPH = 224  # pixels that photographs are brought to when nothing else is asked
STATISTICS = {  # mean and standard deviation per channel, as recipes publish them
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
Channels = tuple[float, ...]  # a number for each


@final
@dataclass(frozen=True)
class Dataset:
    """What pretraining and evaluations receive.

    Args:
        options: Those that opened it.
        title: Name of the set, or of the root folder of someone's own.
        pretrain: All official training images, whatever their labels.
        train: Training images without the validation part; None without labels.
        validation: The part on which anything is chosen, empty if nothing was left for it; None without labels.
        test: The official test images; None when there are none.
        classes: Names of the classes, of images or of pixels; None without labels.
        image_size: Pixels of an image's side.
        mean: Of each channel of the training images.
        std: Their standard deviation.
        fingerprint: Counts, classes, content hash and skipped files, for every record.
        remedy: What would make the data fit for evaluations, when they are not.
        skipped: What is left out: name -> why.
    """

    options: DataOptions
    title: str
    pretrain: Pool
    train: TrainSplit | None
    validation: ValidationSplit | None
    test: TestSplit | None
    classes: tuple[str, ...] | None
    image_size: int
    mean: Channels
    std: Channels
    fingerprint: dict[str, Any]
    remedy: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of an image: 3 but in sets that have others."""
        return self.pretrain.channels

    @property
    def known(self) -> Literal["classes", "masks"] | None:
        """What is known of images: their class, the class of each of their pixels, or nothing."""
        if self.train is None:
            return None
        return "masks" if self.train.pool.masks is not None else "classes"

    def lacks(self, needs: Literal["classes", "masks"]) -> str | None:
        """Why what an evaluation needs is not known of these images; None where it is."""
        if self.known in (None, needs):
            return None
        if needs == "masks":
            return f"{self.title} has a class for each image, none for each pixel: --data textures-mosaic, say, has"
        return f"{self.title} has a class for each pixel, none for each image: segmentation and segmentation-knn use it"

    def require_labels(self, needs: Literal["classes", "masks"] | None = None) -> None:
        """Refuse data that evaluations cannot use.

        Raises:
            UserError: There are no labels, not those that are needed, or no test images.
        """
        why = self.lacks(needs) if needs is not None else None
        if why is not None:
            raise UserError(why)
        if self.train is None:
            raise UserError(f"{self.title} has no labels, which evaluations need: {self.remedy or 'add them'}")
        if self.test is None:
            raise UserError(f"{self.title} has no test images, which evaluations need: {self.remedy or 'add them'}")

    def without(self, left_out: Mapping[str, str]) -> "Dataset":
        """The same data with some images left out of the splits, because reading them showed that they are broken.

        Pretraining's images stay in their places, where others stand in for the broken ones.

        Args:
            left_out: Name -> why.
        """
        if not left_out:
            return self
        splits: dict[str, Any] = {"train": self.train, "validation": self.validation, "test": self.test}
        splits = {name: part.without(left_out) for name, part in splits.items() if part is not None}
        counts = {**self.fingerprint["images"], **{name: len(part) for name, part in splits.items()}}
        skipped = {**self.skipped, **left_out}
        fingerprint = {**self.fingerprint, "images": counts, "skipped": describe_skipped(skipped)}
        return replace(self, **splits, fingerprint=fingerprint, skipped=skipped)

    def labelled(self, unlabelled_too: bool = False) -> "Dataset":
        """The same data, but what is trained on are labelled images of the train split, and nothing else is labelled.

        A `label_fraction` is of all official training images, as papers count it; never of the validation part.

        Args:
            unlabelled_too: Train on all images, those without a label to be seen having label -1.
        """
        assert self.train is not None and self.validation is not None and self.classes is not None, "labelled data only"
        fraction, rows = self.options.label_fraction, self.train.rows
        if fraction is not None and fraction < 1:
            each = max(1, round(fraction * (len(rows) + len(self.validation)) / len(self.classes)))
            rows = balanced(self.train, each, self.options.split_seed)
        shown = self.train.pool.take(rows)
        if not unlabelled_too:
            return replace(self, pretrain=shown)
        assert shown.labels is not None
        known = dict(zip(shown.ids, shown.labels.tolist(), strict=True))
        labels = np.array([known.get(name, -1) for name in self.pretrain.ids], dtype=np.int64)
        return replace(self, pretrain=replace(self.pretrain, labels=labels))


def load_dataset(options: DataOptions) -> Dataset:
    """Open a data set of the catalogue.

    Raises:
        UserError: Its name is unknown, its files are missing or unfit, or it has one class only.
    """
    entry = entry_of(options.name)
    if entry is None:
        raise UserError(f"no data set {options.name!r}{near(options.name, names())}: see `ssl-bench list data`")
    if class_paths.is_class_path(class_paths.DATA, options.name):
        class_paths.refuse_unnamed(class_paths.DATA, options.name)
    if not 0 <= options.val_fraction < 1:
        raise UserError(f"--data.val_fraction is {options.val_fraction}: give a part of 1, such as 0.1")
    if options.label_fraction is not None and not 0 < options.label_fraction <= 1:
        raise UserError(f"--data.label_fraction is {options.label_fraction}: give a part of 1, such as 0.01")
    module, _, function = entry.loader.partition(":")
    source = registry.load_object(registry.Found(options.name, module, function))(options)
    if not isinstance(source, Source):
        raise UserError(f"--data {options.name} gives a {type(source).__name__}, not a ssl_bench.data.pool.Source")
    title = _title(options)
    skipped = _skipped(source)
    _say_skipped(title, skipped)
    _check(source, title, options.channels)
    train = validation = test = None
    if source.classes is not None:
        labels = source.train.labels if source.train.labels is not None else np.zeros(len(source.train), dtype=np.int64)
        chosen = stratified_validation(labels, options.val_fraction, options.split_seed)
        train = TrainSplit(source.train, np.flatnonzero(~chosen))
        validation = ValidationSplit(source.train, np.flatnonzero(chosen))
        if source.test is not None:
            test = TestSplit(source.test, np.arange(len(source.test)))
    pretrain = source.pretrain if source.pretrain is not None else source.train
    mean, std = _statistics(options.name, pretrain)
    splits = {"train": train, "validation": validation, "test": test}
    counts = {
        "pretrain": len(pretrain),
        **{name: len(part) for name, part in splits.items() if part is not None},
    }
    return Dataset(
        options=options,
        title=title,
        pretrain=pretrain,
        train=train,
        validation=validation,
        test=test,
        classes=source.classes,
        image_size=options.image_size or _native_size(pretrain),
        mean=mean,
        std=std,
        fingerprint={"name": title, "images": counts, **_fingerprint(source, skipped)},
        remedy=source.remedy,
        skipped=skipped,
    )


def _title(options: DataOptions) -> str:
    if options.name in OWN and options.root is not None:
        root = Path(options.root).expanduser().resolve()
        return written_name(root.stem if root.is_file() else root.name) or options.name
    return options.name


def _check(source: Source, title: str, channels: int | None) -> None:
    if len(source.train) == 0:
        raise UserError(f"{title} has no training images")
    if channels is not None and source.train.channels != channels:
        raise UserError(f"--data.channels {channels}: images of {title} have {source.train.channels}: leave it out")
    if source.classes is None:
        return
    if len(source.classes) < 2:
        raise UserError(
            f"{title} has one class only ({source.classes[0]!r}): evaluations need two; to pretrain without labels, "
            "make --data.root the folder that directly holds the images"
        )
    if source.test is not None and source.train.masks is None:
        assert source.train.labels is not None and source.test.labels is not None
        unseen = np.setdiff1d(source.test.labels, source.train.labels)
        if len(unseen):
            raise UserError(f"class {source.classes[unseen[0]]!r} of {title} has test images but no training images")


def _native_size(pool: Pool) -> int:
    return min(pool.images.shape[2:]) if isinstance(pool, ResidentPool) else PHOTOGRAPH


def _statistics(name: str, pool: Pool) -> tuple[Channels, Channels]:
    if name in STATISTICS and pool.channels == 3:
        return STATISTICS[name]
    if isinstance(pool, ResidentPool):
        return measured(pool)
    return STATISTICS["imagenet"] if pool.channels == 3 else measured_on_some(pool)


def measured(pool: ResidentPool, most: int = 50_000) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel over at most so many evenly spaced images, to four decimals."""
    return _measured(pool.images[:: -(-len(pool) // most)])


def _measured(images: torch.Tensor) -> tuple[Channels, Channels]:
    """The same of (N, C, H, W), uint8, or float from 0 to 255, whose numbers have six digits."""
    level = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        values = images[:, channel].reshape(-1)
        if values.is_floating_point():
            variance, centre = torch.var_mean(values.double() / 255, correction=0)
            mean.append(float(f"{centre:.6g}"))
            std.append(float(f"{variance.sqrt():.6g}") or 1 / 255)
            continue
        share = torch.bincount(values, minlength=256).double()
        share /= share.sum()
        middle = float((share * level).sum())
        spread = float((share * (level - middle) ** 2).sum().sqrt())
        mean.append(round(middle, 4))
        std.append(max(round(spread, 4), 1 / 255))  # a channel of one value stays finite
    return tuple(mean), tuple(std)


def measured_on_some(pool: Pool, most: int = 500) -> tuple[Channels, Channels]:
    """The same of photographs, each as evaluations see it: at most so many evenly spaced ones are decoded."""
    seen = []
    for row in np.unique(np.linspace(0, len(pool) - 1, most).astype(np.int64)):
        with contextlib.suppress(BrokenImage):  # named when it is read in earnest
            seen.append(see_image(pool.image(int(row)), PHOTOGRAPH))
    return _measured(torch.stack(seen)) if seen else ((0.5,) * pool.channels, (0.25,) * pool.channels)


def _fingerprint(source: Source, skipped: dict[str, str]) -> dict[str, Any]:
    pools = {"pretrain": source.pretrain, "train": source.train, "test": source.test}
    digests = {name: pool.digest() for name, pool in pools.items() if pool is not None}
    covers = sorted({pool.digest_covers for pool in pools.values() if pool is not None})
    ranges = {k: list(v) for p in pools.values() if isinstance(p, EncodedPool) for k, v in p.ranges.items()}
    return {
        "classes": None if source.classes is None else list(source.classes),
        "sha256": hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        "sha256_covers": "; ".join(covers),
        "test_is": None if source.test is None else source.test_is,
        "geometry": _geometry(source.train),
        **({"labels": "masks"} if source.train.masks is not None else {}),
        "skipped": describe_skipped(skipped),
        **({"value_ranges": ranges} if ranges else {}),
    }


def _geometry(pool: Pool) -> dict[str, Any]:
    """Channels and sizes of the training images, width x height; of photographs those of evenly spaced ones."""
    if isinstance(pool, ResidentPool):
        height, width = pool.images.shape[2:]
        return {
            "channels": pool.channels,
            "smallest": [width, height],
            "largest": [width, height],
            "looked_at": len(pool),
        }
    assert isinstance(pool, EncodedPool)
    rows = np.unique(np.linspace(0, len(pool) - 1, min(SIZES, len(pool))).astype(np.int64))
    sizes = [size for row in rows if (size := pool.size(int(row))) is not None]
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    ends = {"smallest": list(by_area[0]), "largest": list(by_area[-1])} if sizes else {}
    return {"channels": pool.channels, **ends, "looked_at": len(sizes)}


def _skipped(source: Source) -> dict[str, str]:
    """Everything that is left out: name -> why."""
    pools = [pool for pool in (source.pretrain, source.train, source.test) if pool is not None]
    return {**{name: why for pool in pools for name, why in pool.skipped.items()}, **source.left_out}


def describe_skipped(skipped: Mapping[str, str]) -> dict[str, Any]:
    """What is left out, as records have it: how many, their names, how many for each reason."""
    described: dict[str, Any] = {"count": len(skipped), "names": list(skipped)[:NAMED]}
    if skipped:
        described["reasons"] = dict(Counter(skipped.values()).most_common())
    return described


def _say_skipped(title: str, skipped: Mapping[str, str]) -> None:
    """A few names, then a count for each reason."""
    if skipped:
        few = ", ".join(list(skipped)[:FEW]) + (" ..." if len(skipped) > FEW else "")
        reasons = "; ".join(f"{count:,} x {why}" for why, count in Counter(skipped.values()).most_common())
        say(f"{title}: {len(skipped):,} left out: {few} ({reasons})")
