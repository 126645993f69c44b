"""One set's images: deep values scaled by one rule, broken ones left out and named, findings remembered."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded, four_channels, picture
from PIL import Image

from ssl_bench.config.options import DataOptions
from ssl_bench.data import in_memory, pixel_cache
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.decode import Check
from ssl_bench.data.in_memory import parse_range
from ssl_bench.data.pool import EncodedPool
from ssl_bench.errors import UserError


def opened(root: Path, **options: object) -> Dataset:
    return load_dataset(DataOptions(name="folder", root=str(root), **options))


@pytest.fixture
def deep(tmp_path: Path) -> Callable[..., Path]:
    """Write gray images of given values into class folders; returns the root."""

    def write(*images: np.ndarray) -> Path:
        for number, values in enumerate(images):
            place = tmp_path / "deep" / ("train", "test")[number % 2] / ("a", "b")[number // 2 % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(place / f"{number}.tif")
        return tmp_path / "deep"

    return write


def flat(value: float, dtype: type) -> np.ndarray:
    return np.full((120, 120), value, dtype=dtype)  # large enough to stay a file


def levels(data: Dataset) -> list[int]:
    pools = (data.pretrain, data.test.pool)
    return [int(np.asarray(pool.image(row))[0, 0, 0]) for pool in pools for row in range(len(pool))]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.uint16, (0, 1024, 2048, 4095), [0, 128, 64, 255]),  # 12 bits in 16
        (np.uint16, (0, 16384, 32768, 65535), [0, 128, 64, 255]),
        (np.int32, (-1000, 0, 1000, 3000), [0, 128, 64, 255]),
        (np.float32, (0, 0.25, 0.5, 1), [0, 128, 64, 255]),
        (np.float32, (-1, -0.5, 0, 1), [0, 128, 64, 255]),
    ],
)
def test_one_range_for_all_images_of_a_set(deep, capsys, dtype, values, expected):
    """None of these images fills its own range: each is of one value."""
    data = opened(deep(*(flat(value, dtype) for value in values)))
    assert np.abs(np.array(levels(data)) - expected).max() <= 1
    said = capsys.readouterr().err
    assert "are scaled from" in said and "--data.value_range" in said
    assert len(data.fingerprint["value_ranges"]) == 1


def test_a_given_range_is_used_and_not_talked_of(deep, capsys):
    root = deep(*(flat(value, np.uint16) for value in (0, 500, 1000, 2000)))
    data = opened(root, value_range="0,1000")
    assert levels(data) == [0, 255, 128, 255]
    assert "scaled" not in capsys.readouterr().err
    assert data.fingerprint["value_ranges"] == {"16-bit": [0, 1000]}
    assert opened(root).fingerprint["sha256"] != data.fingerprint["sha256"]  # other pixels
    assert opened(root, value_range="auto").fingerprint == opened(root).fingerprint


def test_8_bit_images_beside_deep_ones_keep_their_values(deep):
    root = deep(flat(0, np.uint16), flat(0, np.uint16), flat(4095, np.uint16), flat(4000, np.uint16))
    Image.new("L", (120, 120), 77).save(root / "train" / "a" / "z.png")
    assert 77 in levels(opened(root))


@pytest.mark.parametrize("text", ["", "1", "a,b", "5,5", "9,1", "0,inf", "nan,1", "1,2,3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UserError, match="--data.value_range is"):
        parse_range(text)


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("auto", None), ("0,4095", (0, 4095)), ("-1,1", (-1, 1))])
def test_ranges_are_read(text, expected):
    assert parse_range(text) == expected


def test_what_was_found_is_remembered(class_folders, monkeypatch):
    root = class_folders(["train/a", "train/b", "test/a", "test/b"], width=150, height=120)
    broken = root / "train" / "a" / "000.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    first = opened(root)
    monkeypatch.setattr(in_memory, "check", lambda *_: pytest.fail("looked at again"))
    assert opened(root).fingerprint == first.fingerprint and first.fingerprint["skipped"]["count"] == 1
    (root / "train" / "a" / "001.png").write_bytes(encoded(picture(400, 150, 120)))
    with pytest.raises(pytest.fail.Exception):
        opened(root)


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', '{"format": 1, "found": {"0": {"odd": 1}}}', '{"format": 2}'])
def test_damaged_memory_is_forgotten(class_folders, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("SSL_BENCH_CACHE", str(tmp_path / "cache"))
    root = class_folders(["a", "b"], width=150, height=120)
    (root / "a" / "000.png").write_bytes(b"no image")
    first = opened(root)
    for file in (tmp_path / "cache" / "checks").iterdir():
        file.write_text(damage)
    assert opened(root).fingerprint == first.fingerprint and first.fingerprint["skipped"]["count"] == 1


def test_a_disk_that_fails_for_a_moment_is_not_remembered(class_folders, monkeypatch):
    root = class_folders(["a", "b"], width=150, height=120)
    right = in_memory.check

    def fails(path):
        return Check("it cannot be read (Input/output error)") if path.endswith("b/001.png") else right(path)

    monkeypatch.setattr(in_memory, "check", fails)
    assert opened(root).fingerprint["skipped"]["names"] == ["b/001.png"]
    monkeypatch.setattr(in_memory, "check", right)
    assert opened(root).fingerprint["skipped"]["count"] == 0


def test_all_four_channel_images_are_refused_by_name(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.tif").write_bytes(four_channels(None))
    with pytest.raises(UserError, match=r"none of the 2 files .* a.tif \(4 channels, .* save gray or RGB"):
        opened(tmp_path)


def test_strict_refuses_what_cannot_be_decoded_here(class_folders):
    root = class_folders(["train/a", "train/b"])
    (root / "train" / "a" / "x.heic").write_bytes(b"something")
    (root / "train" / "notes.txt").write_text("about these")
    assert opened(root).fingerprint["skipped"]["count"] == 2
    with pytest.raises(UserError, match=r"train/a/x.heic \(.heic cannot be decoded here: save it as JPEG"):
        opened(root, strict=True)


def test_everything_left_out_is_named_with_its_reason(class_folders, capsys):
    root = class_folders(["train/a", "train/b"])
    for number in range(5):
        (root / "train" / "a" / f"{number}.txt").write_text("a box")
    (root / "train" / "b" / "x.nef").write_bytes(b"MM\0*")
    (root / "extra").mkdir()
    skipped = opened(root).fingerprint["skipped"]
    raw = ".nef, a camera's raw file, cannot be decoded here: save it as TIFF or JPEG"
    assert skipped["count"] == 7 and "train/b/x.nef" in skipped["names"] and "extra/" in skipped["names"]
    assert skipped["reasons"] == {"no image": 5, raw: 1, "it lies beside train/": 1}
    said = capsys.readouterr().err
    assert "own pictures: 7 left out: " in said and " ... (5 x no image; " in said and said.count("\n") == 1


def test_names_that_are_no_utf_8_are_written_reversibly(class_folders):
    root = class_folders(["train/a", "train/b"])
    (root / "train" / "a" / "000.png").rename(root / "train" / "a" / os.fsdecode(b"caf\xe9.png"))
    assert "train/a/caf\\xe9.png" in opened(root).pretrain.ids


def test_the_sample_of_a_very_large_set(class_folders, monkeypatch):
    from ssl_bench.data.files import digests

    monkeypatch.setattr(digests, "WHOLE", 1000)
    monkeypatch.setattr(in_memory, "LOOKED_AT", 2)
    root = class_folders(["a", "b"], count=6, width=150, height=120)
    broken = root / "a" / "003.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    data = opened(root)
    assert data.fingerprint["skipped"]["count"] == 0  # found when it is read
    assert data.fingerprint["sha256_covers"] == "sizes, samples of the content and labels"


def test_small_images_are_decoded_once(class_folders, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pixel_cache, "FEWEST", 1)
    root = class_folders(["train/a", "train/b", "test/a", "test/b"])
    first = opened(root)
    kept = list((tmp_path / "cache" / "pixels").iterdir())
    assert len(kept) == 2
    calls = []
    decode = EncodedPool.image
    monkeypatch.setattr(EncodedPool, "image", lambda pool, row: calls.append(row) or decode(pool, row))
    second = opened(root)
    assert calls == [0, 0] and torch.equal(second.pretrain.images, first.pretrain.images)
    assert second.fingerprint == first.fingerprint
    for file in kept:
        file.write_bytes(file.read_bytes()[:-10])  # a full disk
    assert torch.equal(opened(root).test.pool.images, first.test.pool.images)
    for file in kept:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    calls.clear()
    assert torch.equal(opened(root).pretrain.images, first.pretrain.images)
    assert len(calls) > 2, "one flipped bit is found, and all are decoded again"
    picture(70).save(root / "train" / "a" / "000.png")
    assert not torch.equal(opened(root).pretrain.images, first.pretrain.images)
    monkeypatch.setattr(pixel_cache, "ALL", 30_000)
    picture(71).save(root / "train" / "a" / "000.png")
    opened(root)
    assert sum(file.stat().st_size for file in (tmp_path / "cache" / "pixels").iterdir()) <= 30_000
