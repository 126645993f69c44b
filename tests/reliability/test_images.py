"""A thousand broken images of twelve formats: each is left out by name, or is an image; fit and evaluate agree."""

import io
import json
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from campaign import SEED, Outcomes, sample
from PIL import Image
from tiny import TINY
from trials import Trials

from ssl_bench.data.decode import check, decode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

BROKEN = 1000
SECONDS, MOST_KIB = 1.0, 500 << 10  # for one image, of the processor and of memory
FORMATS: dict[str, dict[str, object]] = {
    "png": {},
    "jpg": {"quality": 90},
    "webp": {"lossless": True},
    "gif": {},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "ppm": {},
    "jp2": {},
    "tga": {"compression": "tga_rle"},
    "pcx": {},
    "sgi": {},
    "qoi": {},
}
CHECKED = ("png",)  # formats whose files carry checksums


def encoded(kind: str, seed: int) -> bytes:
    """A picture of 40 x 30 pixels; QOI by hand, which Pillow reads and does not write."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((40, 30), Image.Resampling.BILINEAR)
    if kind == "qoi":
        pixels = b"".join(b"\xfe" + bytes(pixel) for pixel in np.asarray(image).reshape(-1, 3))
        return b"qoif" + struct.pack(">IIBB", 40, 30, 3, 0) + pixels + bytes(7) + b"\x01"
    file = io.BytesIO()
    image.save(file, {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(kind, kind), **FORMATS[kind])
    return file.getvalue()


def cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(1, len(content)) :]


def bit(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def header(content: bytearray, draw: random.Random) -> None:
    for _ in range(4):
        content[draw.randrange(min(40, len(content)))] = draw.randrange(256)


def zeros(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.randrange(1, 200))
    content[start:end] = bytes(end - start)


def noise(content: bytearray, draw: random.Random) -> None:
    for _ in range(max(1, len(content) // 50)):
        content[draw.randrange(len(content))] = draw.randrange(256)


def doubled(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    content[start:start] = content[start : start + 64]


def lost(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    del content[start : start + draw.randrange(1, 64)]


def huge(content: bytearray, draw: random.Random) -> None:
    """The size that a header claims is another one."""
    sides = b"\0\0\0\x28", b"\x28\0", b"\0\x28"
    for side in sides:
        if (at := bytes(content).find(side, 0, 64)) >= 0:
            content[at : at + len(side)] = draw.choice([b"\x7f", b"\x00\x01", b"\xff"]).ljust(len(side), b"\xff")
            return


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [cut, bit, header, zeros, noise, doubled, lost, huge]


def broken_images() -> list[tuple[str, bytes, bytes]]:
    """Name, what it was, and what it is."""
    draw, found = random.Random(SEED), []
    for number in range(BROKEN):
        kind, damage = list(FORMATS)[number % len(FORMATS)], DAMAGES[number // len(FORMATS) % len(DAMAGES)]
        before = encoded(kind, number % 97)
        content = bytearray(before)
        damage(content, draw)
        found.append((f"{number:04d}-{damage.__name__}.{kind}", before, bytes(content)))
    return sample(found)


def test_each_is_found_or_an_image(outcomes: Outcomes) -> None:
    for name, before, content in broken_images():
        start, used = time.process_time(), peak_kib()
        outcome, fault = "", None
        try:
            outcome = read(before, content)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        seconds, more = time.process_time() - start, peak_kib() - used
        if seconds > SECONDS or more > MOST_KIB:
            fault = fault or f"{seconds:.1f} s, {more >> 10} MiB"
        if outcome == OTHER and (name.endswith(CHECKED) or "-cut." in name):
            fault = fault or "silent"
        outcomes.note(outcome, name, fault)
    outcomes.check()


def peak_kib() -> int:
    """Memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


OTHER = "another image, in a format without checksums"


def read(before: bytes, content: bytes) -> str:
    """What is made of a broken image: by the scan of all images, and when it is read."""
    if check(content).fault is not None:
        return "left out by name"
    same = np.array_equal(np.asarray(decode(content)), np.asarray(decode(before)))  # what the scan let through is read
    return "the same image" if same else OTHER


def test_fit_and_evaluate_leave_out_the_same(trials: Trials, outcomes: Outcomes, tmp_path: Path) -> None:
    """All of them in one folder, with as many whole ones."""
    images = broken_images()
    for number, (name, before, content) in enumerate(images):
        folder = tmp_path / "photos" / ("test" if number % 5 == 0 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / f"whole-{name}").write_bytes(before)
    own = [flag for flag in TINY if not flag.startswith("--data")]
    data = ["--data=folder", "--data.root=photos", "--data.batch_size=16", "--data.num_workers=0"]
    fit = trials(["fit", "--method=mae", *own, *data, "--runs=runs"], tmp_path, seconds=600)
    assert fit.code == 0, fit.err
    run = tmp_path / fit.out.strip()
    evaluate = trials(["evaluate", str(run), "--protocols=knn"], tmp_path, seconds=600)
    assert evaluate.code == 0, evaluate.err
    skipped = json.loads((run / "run.json").read_text())["data"]["fingerprint"]["skipped"]
    tested = set(pq.read_table(run / "predictions" / "knn.parquet")["id"].to_pylist())
    for number, (name, _, content) in enumerate(images):
        path = f"{'test' if number % 5 == 0 else 'train'}/{'ab'[number % 2]}/{name}"
        whole = path.replace(name, f"whole-{name}")
        fault = check(content).fault
        wrong = whole in skipped["names"] or number % 5 == 0 and whole not in tested
        if (path in tested) != (number % 5 == 0 and fault is None) or wrong:
            outcomes.note("", path, f"fit and evaluate do not agree ({fault})")
        else:
            outcomes.note("left out alike" if fault else "used alike", path, None)
    assert skipped["count"] == sum(check(content).fault is not None for _, _, content in images)
    assert f"{skipped['count']} left out" in fit.err
    outcomes.check()
