"""Sets with a class for each pixel, from miniature copies of their layouts: which pixel is of which class."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.files.content import content_of
from ssl_bench.data.masks import IGNORE
from ssl_bench.data.sources.masked import CITYSCAPES, VOC
from ssl_bench.errors import UserError


def opened(name: str, root: Path, **options: Any) -> Dataset:
    return load_dataset(DataOptions(name=name, root=str(root), val_fraction=0.25, num_workers=0, **options))


def save(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(path)


def picture(seed: int, height: int = 100, width: int = 140) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask_of(seed: int, values: list[int], height: int = 100, width: int = 140) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))


def pairs(root: Path, images: str, masks: str, count: int, values: list[int], ending: str = ".jpg") -> None:
    for i in range(count):
        save(root / images / f"p{i}{ending}", picture(i))
        save(root / masks / f"p{i}.png", mask_of(i, values))


@pytest.mark.parametrize("layout", ["{part}/{kind}", "{kind}/{part}"])
def test_folders_of_images_and_masks(tmp_path: Path, layout: str) -> None:
    for part, count in (("train", 8), ("val", 3)):
        names = [layout.format(part=part, kind=kind) for kind in ("images", "masks")]
        pairs(tmp_path, *names, count, [0, 1, 2, IGNORE])
    data = opened("image-masks", tmp_path)
    assert data.known == "masks" and data.classes == ("0", "1", "2") and data.title == tmp_path.name
    assert data.train is not None and data.validation is not None and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 3)
    place = data.train.ids.index(layout.format(part="train", kind="images") + "/p5.jpg")
    assert np.array_equal(data.train.mask(place), mask_of(5, [0, 1, 2, IGNORE]))
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\n")
    assert opened("image-masks", tmp_path).classes == ("sky", "sea", "land")


def test_one_pair_of_folders_gives_a_fifth_to_test(tmp_path: Path) -> None:
    pairs(tmp_path, "images", "masks", 10, [0, 1])
    save(tmp_path / "images" / "alone.jpg", picture(99))
    data = opened("image-masks", tmp_path)
    assert data.test is not None and len(data.test) == 2 and data.skipped == {"images/alone.jpg": "no mask of its name"}
    other = tmp_path.with_name("copy")
    tmp_path.rename(other)
    first = content_of(DataOptions(name="image-masks", root=str(other)))
    save(other / "masks" / "p3.png", mask_of(50, [0, 1]))
    second = content_of(DataOptions(name="image-masks", root=str(other)))
    assert first is not None and second is not None and first.digest != second.digest, "masks are part of the content"


def test_small_images_keep_their_masks_in_memory_order(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "images" / f"p{i}.png", np.full((32, 32, 3), 40 * i, np.uint8))
        save(tmp_path / "masks" / f"p{i}.png", np.full((32, 32), i % 2, np.uint8))
    (tmp_path / "images" / "p2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    data = opened("image-masks", tmp_path)
    for split in (data.train, data.validation, data.test):
        assert split is not None
        for place, name in enumerate(split.ids):
            number = int(name[-5])
            assert int(split.pool.images[split.rows[place], 0, 0, 0]) == 40 * number
            assert int(split.mask(place)[0, 0]) == number % 2


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --data.root"):
        load_dataset(DataOptions(name="image-masks"))
    with pytest.raises(UserError, match="holds no images/ and masks/"):
        opened("image-masks", tmp_path)
    save(tmp_path / "images" / "a.jpg", picture(0))
    save(tmp_path / "masks" / "b.png", mask_of(0, [0]))
    with pytest.raises(UserError, match="no image in .* has a mask"):
        opened("image-masks", tmp_path)
    save(tmp_path / "masks" / "a.png", picture(0))
    with pytest.raises(UserError, match=r"mask .*a.png is in colour \(RGB\): save the number of each pixel's class"):
        opened("image-masks", tmp_path)
    (tmp_path / "masks" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(UserError, match="mask .*a.png cannot be read"):
        opened("image-masks", tmp_path)
    with pytest.raises(UserError, match="no images/training in .*: unpack the set"):
        opened("ade20k", tmp_path)
    with pytest.raises(UserError, match="no leftImg8bit/train in"):
        opened("cityscapes", tmp_path)
    with pytest.raises(UserError, match="voc2012 is not in .*: --data.download fetches it"):
        opened("voc2012", tmp_path)


def test_pascal_voc(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for part, names in (("train", ["a", "b", "c", "d"]), ("val", ["e"])):
        lists = base / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            save(base / "JPEGImages" / f"{name}.jpg", picture(number))
            save(base / "SegmentationClass" / f"{name}.png", mask_of(number, [0, 15, 20, 255]), palette=True)
    data = opened("voc2012", tmp_path)
    assert data.classes == VOC and len(VOC) == 21 and VOC[15] == "person" and VOC[20] == "tv monitor"
    assert data.test is not None and np.array_equal(data.test.mask(0), mask_of(0, [0, 15, 20, 255]))


def test_trimaps_of_pets(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    for part, names in (("trainval", ["Abyssinian_1", "Abyssinian_2", "beagle_1", "beagle_2"]), ("test", ["beagle_3"])):
        (base / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        lines = [f"{name} {1 + ('beagle' in name)} 1 1" for name in names]
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
        for number, name in enumerate(names):
            save(base / "images" / f"{name}.jpg", picture(number))
            save(base / "annotations" / "trimaps" / f"{name}.png", mask_of(number, [1, 2, 3]))
    data = opened("oxford_pets_trimaps", tmp_path)
    assert data.test is not None and data.classes == ("pet", "background")
    raw, found = mask_of(0, [1, 2, 3]), data.test.mask(0)
    assert all((found[raw == value] == label).all() for value, label in ((1, 0), (2, 1), (3, IGNORE)))


def test_ade20k(tmp_path: Path) -> None:
    base = tmp_path / "ADEChallengeData2016"
    for part, count in (("training", 4), ("validation", 1)):
        pairs(base, f"images/{part}", f"annotations/{part}", count, [0, 1, 150])
    rows = [f"{n}\t0.1\t10\t10\tthing {n}, other name" for n in range(1, 151)]
    (base / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    data = opened("ade20k", tmp_path)
    assert data.test is not None and data.classes is not None
    assert len(data.classes) == 150 and data.classes[149] == "thing 150"
    raw, found = mask_of(0, [0, 1, 150]), data.test.mask(0)
    assert all((found[raw == value] == label).all() for value, label in ((0, IGNORE), (1, 0), (150, 149)))


def test_cityscapes(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 1)):
        for i in range(count):
            save(tmp_path / "leftImg8bit" / part / "ulm" / f"ulm_{i:06d}_leftImg8bit.png", picture(i))
            save(tmp_path / "gtFine" / part / "ulm" / f"ulm_{i:06d}_gtFine_labelIds.png", mask_of(i, [0, 7, 26, 33]))
    data = opened("cityscapes", tmp_path)
    assert data.test is not None and data.classes == tuple(CITYSCAPES) and len(CITYSCAPES) == 19
    raw, found = mask_of(0, [0, 7, 26, 33]), data.test.mask(0)
    expected = {0: IGNORE, 7: 0, 26: 13, 33: 18}
    assert all((found[raw == value] == label).all() for value, label in expected.items())


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["mask", "label", "own"])
def test_a_parquet_column_of_masks(tmp_path: Path, name: str) -> None:
    for part, count in (("train", 8), ("validation", 2)):
        rows = {
            "image": [{"bytes": png(picture(i)), "path": f"{part}{i}.png"} for i in range(count)],
            name: [{"bytes": png(mask_of(i, [0, 3, IGNORE])), "path": None} for i in range(count)],
        }
        pa.parquet.write_table(pa.table(rows), tmp_path / f"{part}-00000-of-00001.parquet")
    data = opened("parquet", tmp_path, **({"label_column": "own"} if name == "own" else {}))
    assert data.known == "masks" and data.classes == ("0", "1", "2", "3") and data.test is not None
    assert len(data.test) == 2 and np.array_equal(data.test.mask(1), mask_of(1, [0, 3, IGNORE]))
