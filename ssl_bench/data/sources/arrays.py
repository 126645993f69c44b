"""Images in arrays, with one to many channels of 8 to 64 bits.

8-bit values stay as they are. Others are scaled by one range for the whole set and all of its channels, so that 0 is
its lower end and 255 its upper, and keep their fractions: nothing is rounded to 8 bits.

Shapes: N images, C channels, H x W pixels.
"""

from typing import Any

import numpy as np
import torch

from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.decode import FLOAT, INTEGER, INTEGER_16, Range, guess_range
from ssl_bench.data.files.arrays import Split, Stored, channel_axis, chosen_labels, find_arrays
from ssl_bench.data.in_memory import RESIDENT, parse_range
from ssl_bench.data.pool import Pool, ResidentPool, Source
from ssl_bench.data.sources.table_labels import Labels, classes_of, numbered
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError

NO_NUMBER = "some of its values are not numbers"


def load(options: DataOptions) -> Source:
    """The images of the arrays at `root`.

    Raises:
        UserError: There are none, they do not fit together or into memory, or an image has several labels.
    """
    splits = find_arrays(options)
    test_is = "test" if "test" in splits else "validation"
    parts = {"train": splits["train"], **({"test": splits[test_is]} if test_is in splits else {})}
    images = {name: _images(split.images, options.channels) for name, split in parts.items()}
    odd = {array.shape[1] for array in images.values()}
    if len(odd) > 1:
        raise UserError(f"{parts['test'].images.place} has another number of channels than the training images")
    broken = {name: _broken(array) for name, array in images.items()}
    scale = _range(images, broken, options)
    labels = {name: _labels(split, options, len(images[name])) for name, split in parts.items()}
    codes = () if labels["train"] is None else classes_of(labels["train"])
    pools: list[Pool] = []
    for name, array in images.items():
        ids = [f"{name}/{row:06d}" for row in range(len(array))]
        own = labels[name]
        numbers = numbered(own, codes, ids) if codes and own is not None else None
        whole = np.flatnonzero(~broken[name])
        skipped = {ids[row]: NO_NUMBER for row in np.flatnonzero(broken[name])}
        if skipped and options.strict:
            raise UserError(f"{next(iter(skipped))} ({NO_NUMBER}): remove it, or leave out --data.strict to skip such")
        pixels = torch.from_numpy(np.ascontiguousarray(_scaled(array, scale)))
        pool = ResidentPool(labels=numbers, ids=ids, images=pixels, skipped=skipped)
        pools.append(pool.take(whole) if skipped else pool)
    train, *tests = pools
    if not codes:
        remedy = "add an array `labels` with a class for each image"
        return Source(train=train, test=None, classes=None, remedy=remedy)
    classes = tuple(map(str, codes))
    if tests and tests[0].labels is not None:
        return Source(train=train, test=tests[0], classes=classes, test_is=f"the {test_is} array")
    assert train.labels is not None
    if np.bincount(train.labels).min() < 2:
        return Source(train=train, test=None, classes=classes, remedy="give each class two images or more")
    train, test = split_off_test(train)
    return Source(train=train, test=test, classes=classes, test_is=FIFTH)


def _images(stored: Stored, channels: int | None) -> np.ndarray:
    """(N, C, H, W) as stored.

    Raises:
        UserError: They are no numbers, have other channels than asked for, or do not fit into memory.
    """
    axis = channel_axis(stored.shape, channels, stored.place)
    array = stored.read()
    if array.dtype.kind not in "uifb":
        raise UserError(f"{stored.place} holds {array.dtype}, not numbers")
    if array.size * (1 if array.dtype == np.uint8 else 4) > RESIDENT:
        gib = array.size * 4 / 2**30
        raise UserError(f"{stored.place}: {gib:.0f} GiB do not fit into {RESIDENT >> 30}: save the images as files")
    array = array[:, None] if axis is None else array if axis == 1 else array.transpose(0, 3, 1, 2)
    if channels == 3 and array.shape[1] == 1:
        array = np.repeat(array, 3, axis=1)
    if channels is not None and array.shape[1] != channels:
        raise UserError(f"{stored.place} has {array.shape[1]} channels: leave out --data.channels {channels}")
    if min(array.shape) == 0:
        raise UserError(f"{stored.place} is empty: {stored.shape}")
    return array


def _broken(array: np.ndarray) -> np.ndarray:
    """(N,) bool, which images hold what is no number."""
    if array.dtype.kind != "f":
        return np.zeros(len(array), dtype=bool)
    return np.array([not np.isfinite(image).all() for image in array])


def _range(images: dict[str, np.ndarray], broken: dict[str, np.ndarray], options: DataOptions) -> Range | None:
    """What becomes 0 and 255 in the whole set; None for 8-bit values, which stay."""
    dtypes = {array.dtype for array in images.values()}
    given = parse_range(options.value_range)
    if dtypes == {np.dtype(np.uint8)} and given is None:
        return None
    if dtypes == {np.dtype(bool)}:
        return (0, 1)
    if given is not None:
        return given
    whole = [array[~broken[name]] for name, array in images.items() if not broken[name].all()]
    if not whole:
        raise UserError(f"{options.root}: {NO_NUMBER} in each of the images")
    low, high = min(float(part.min()) for part in whole), max(float(part.max()) for part in whole)
    kinds = {dtype.kind for dtype in dtypes}
    kind = FLOAT if "f" in kinds else INTEGER_16 if dtypes == {np.dtype(np.uint16)} else INTEGER
    black, white = guess_range(kind, low, high)
    text = f"{kind} values ({low:g} to {high:g}) are scaled from {black:g},{white:g} to 0,255"
    say(f"{text}: --data.value_range says otherwise")
    return black, white


def _scaled(array: np.ndarray, scale: Range | None) -> np.ndarray:
    if scale is None:
        return array
    black, white = scale
    level = array.astype(np.float32)
    level -= np.float32(black)
    level *= np.float32(255 / (white - black))
    return np.clip(level, 0, 255, out=level)


def _labels(split: Split, options: DataOptions, count: int) -> Labels | None:
    stored = chosen_labels(split, options.label_column)
    if stored is None:
        return None
    values: Any = stored.read()
    if values.ndim > 1 and values.size == len(values):
        values = values.reshape(-1)  # (N, 1)
    if values.ndim != 1:
        raise UserError(
            f"{stored.place} is {values.shape}, several labels for an image, and evaluations score one class for each: "
            "store the number of its class, or --data.label_column none to pretrain without labels"
        )
    if len(values) != count:
        raise UserError(f"{stored.place} has {len(values)} labels for {count} images")
    if values.dtype.kind in "US":
        return Labels([str(value.decode() if isinstance(value, bytes) else value) for value in values.tolist()], ())
    if values.dtype.kind not in "uibf" or (values != np.floor(values.astype(np.float64))).any():
        raise UserError(f"{stored.place} holds {values.dtype}, not a class for each image: --data.label_column")
    numbers = values.astype(np.int64).tolist()
    withheld = numbers.count(-1)
    if withheld == len(numbers):
        return None
    if withheld:
        raise UserError(f"{stored.place}: {withheld} of {len(numbers)} labels are -1 (withheld): remove those images")
    return Labels(numbers, ())
