"""Sets with a class for each pixel, in files: someone's own, PASCAL VOC 2012, Oxford-IIIT Pet, ADE20K, Cityscapes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_bench.config.options import DataOptions
from ssl_bench.data.catalogue import default_root
from ssl_bench.data.files.digests import digests_of, read_whole
from ssl_bench.data.files.listing import Found, find_images, listed
from ssl_bench.data.in_memory import usable
from ssl_bench.data.masks import IGNORE, EncodedMasks, Mask, read_mask
from ssl_bench.data.packed import Paths
from ssl_bench.data.pool import EncodedPool, Source
from ssl_bench.data.sources.torchvision_sets import open_set
from ssl_bench.data.splits import FIFTH, split_off_test
from ssl_bench.errors import UserError
from ssl_bench.records.files import in_words, read_regular

NO_MASK = "no mask of its name"
TESTS = ("test", "val", "validation")
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
CITYSCAPES = {  # class -> number in *_labelIds.png; the other numbers are of no class
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


class Pair(NamedTuple):
    """An image and its mask.

    Args:
        name: Of the image.
        image: Its path.
        mask: That of its mask.
    """

    name: str
    image: str
    mask: str


def folder(options: DataOptions) -> Source:
    """`images/` and `masks/` below `root`, in each of `train/` and `test/` (or `val/`), or with these two inside.

    A mask has the name of its image, but for the ending. Without test images, a fifth of all become these.

    Raises:
        UserError: There are no such folders, or no image has a mask.
    """
    if options.root is None:
        raise UserError("--data image-masks needs --data.root: the folder that holds images/ and masks/")
    root = _root(options)
    places = {part: _place(root, part) for part in ("train", *TESTS)}
    train, test_name = places["train"], next((part for part in TESTS if places[part]), "")
    test = places.get(test_name)
    if train is None and (root / "images").is_dir() and (root / "masks").is_dir():
        train = "images", "masks"
    if train is None:
        raise UserError(f"{root} holds no images/ and masks/, in train/ and test/ or by themselves")
    left_out: dict[str, str] = {}
    pairs = _paired(root, train, left_out)
    names = root / "classes.txt"
    classes = _lines(names) if names.is_file() else _numbers(pairs)
    parts = {"train": pairs}
    if test is not None:
        parts["test"] = _paired(root, test, left_out)
    return _source(options, root, parts, classes, left_out=left_out, test_is=f"the folder {test_name}")


def _place(root: Path, part: str) -> tuple[str, str] | None:
    """Folders of the images and of the masks of a part, below the root."""
    for images, masks in ((f"{part}/images", f"{part}/masks"), (f"images/{part}", f"masks/{part}")):
        if (root / images).is_dir() and (root / masks).is_dir():
            return images, masks
    return None


def _paired(root: Path, place: tuple[str, str], left_out: dict[str, str]) -> list[Pair]:
    images, masks = place
    found, others = find_images(str(root), [images]), find_images(str(root), [masks])
    left_out |= {**found.left_out, **others.left_out}
    known = {_stem(file.name, masks): file.path for file in others.files}
    pairs = []
    for file in found.files:
        mask = known.get(_stem(file.name, images))
        if mask is None:
            left_out[file.name] = NO_MASK
        else:
            pairs.append(Pair(file.name, file.path, mask))
    if not pairs:
        raise UserError(f"no image in {root / images} has a mask in {root / masks}: it has the image's name")
    return pairs


def _stem(name: str, top: str) -> str:
    return name[len(top) + 1 :].rpartition(".")[0]


def _lines(file: Path) -> tuple[str, ...]:
    try:
        text = read_regular(file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {in_words(error)}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _numbers(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The classes by their numbers, as far as masks have them."""
    most = 0
    for pair in pairs:
        values = read_mask(pair.mask, pair.mask)
        known = values[values != IGNORE]
        most = max(most, int(known.max()) if len(known) else 0)
    return tuple(map(str, range(most + 1)))


def voc2012(options: DataOptions) -> Source:
    """PASCAL VOC 2012's segmentation images: 1,464 to train on, its 1,449 of `val` to test on."""
    root = _root(options)
    parts = {}
    for part, image_set in (("train", "train"), ("test", "val")):
        opened = open_set(options, root, "VOCSegmentation", {"year": "2012", "image_set": image_set})
        parts[part] = _pairs(root, opened.images, opened.masks)
    return _source(options, root, parts, VOC, test_is="its val images")


def pets(options: DataOptions) -> Source:
    """Oxford-IIIT Pet's trimaps, 3,680 and 3,669: pet or background; the line between them is of no class."""
    root = _root(options)
    parts = {}
    for part, split in (("train", "trainval"), ("test", "test")):
        opened = open_set(options, root, "OxfordIIITPet", {"split": split, "target_types": "segmentation"})
        parts[part] = _pairs(root, opened._images, opened._segs)
    return _source(options, root, parts, ("pet", "background"), _table({1: 0, 2: 1}))


def ade20k(options: DataOptions) -> Source:
    """ADE20K's 150 classes (`ADEChallengeData2016`), 20,210 and its 2,000 of `validation`; 0 is of no class."""
    root = _inside(_root(options), "ADEChallengeData2016", "images/training", "data.csail.mit.edu/places/ADEchallenge")
    left_out: dict[str, str] = {}
    parts = {
        part: _paired(root, (f"images/{name}", f"annotations/{name}"), left_out)
        for part, name in (("train", "training"), ("test", "validation"))
    }
    names = root / "objectInfo150.txt"
    classes = tuple(map(str, range(150)))
    if names.is_file():
        classes = tuple(line.split("\t")[-1].split(",")[0].strip() for line in _lines(names)[1:151])
    table = _table({value: value - 1 for value in range(1, 151)})
    return _source(options, root, parts, classes, table, left_out, "its validation images")


def cityscapes(options: DataOptions) -> Source:
    """Cityscapes' 19 classes, 2,975 finely labelled images and its 500 of `val`."""
    root = _inside(_root(options), "cityscapes", "leftImg8bit/train", "www.cityscapes-dataset.com")
    parts = {}
    for part, name in (("train", "train"), ("test", "val")):
        found: Found = find_images(str(root), [f"leftImg8bit/{name}"])
        pairs = []
        for file in found.files:
            mask = file.name.replace("leftImg8bit/", "gtFine/", 1).replace("_leftImg8bit.", "_gtFine_labelIds.")
            if (root / mask).is_file():
                pairs.append(Pair(file.name, file.path, str(root / mask)))
        if not pairs:
            raise UserError(
                f"no image in {root / 'leftImg8bit' / name} has its _gtFine_labelIds.png in {root / 'gtFine'}"
            )
        parts[part] = pairs
    table = _table({number: label for label, number in enumerate(CITYSCAPES.values())})
    return _source(options, root, parts, tuple(CITYSCAPES), table, test_is="its val images")


def _root(options: DataOptions) -> Path:
    return Path(options.root).expanduser() if options.root else default_root()


def _inside(root: Path, name: str, needed: str, site: str) -> Path:
    """The set's folder, which is the root or in it."""
    for place in (root, root / name):
        if (place / needed).is_dir():
            return place
    raise UserError(f"no {needed} in {root}: unpack the set of {site} there, or name its folder by --data.root")


def _pairs(root: Path, images: Iterable[object], masks: Iterable[object]) -> list[Pair]:
    return [Pair(Path(str(i)).relative_to(root).as_posix(), str(i), str(m)) for i, m in zip(images, masks, strict=True)]


def _table(known: dict[int, int]) -> Mask:
    """(256,) class of each value in the masks' files; IGNORE for all others."""
    table = np.full(256, IGNORE, np.uint8)
    for value, label in known.items():
        table[value] = label
    return table


def _source(
    options: DataOptions,
    root: Path,
    parts: dict[str, list[Pair]],
    classes: tuple[str, ...],
    table: Mask | None = None,
    left_out: dict[str, str] | None = None,
    test_is: str = "official",
) -> Source:
    pools = []
    for part, pairs in parts.items():
        known = listed((pair.name, pair.image) for pair in pairs)
        pools.append(
            EncodedPool(
                labels=None,
                ids=[pair.name for pair in pairs],
                encoded=Paths.of(pair.image for pair in pairs),
                digests=digests_of(root, known, f"{options.name}/{part}"),
                whole=read_whole(known),
                masks=EncodedMasks(
                    encoded=Paths.of(pair.mask for pair in pairs), names=[pair.mask for pair in pairs], classes=table
                ),
            )
        )
    train, *tests = usable(pools, options)
    if not tests:
        if len(train) < 2:
            raise UserError(f"{root} has one image with a mask: evaluations need more")
        train, test = split_off_test(train)
        return Source(train=train, test=test, classes=classes, test_is=FIFTH, left_out=left_out or {})
    return Source(train=train, test=tests[0], classes=classes, test_is=test_is, left_out=left_out or {})
