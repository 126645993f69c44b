"""A run is known by what its images are, whatever path leads to them; what is known of files is remembered."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT
from pictures import encoded, picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files import digests as digests_module
from ssl_bench.data.files.cache import cache_folder, read_cached, write_cached
from ssl_bench.data.files.content import (
    content_of,
    find_run_folder,
    folder_of_run,
    refuse_changed_images,
    remember_content,
)
from ssl_bench.data.files.digests import digests_of
from ssl_bench.data.files.listing import find_images, listed
from ssl_bench.errors import UserError
from ssl_bench.records.run import DataRecord, RunInfo, write_run
from ssl_bench.records.run_folder import identity


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SSL_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        (root / name).mkdir(parents=True)
        for at in range(3):
            picture(10 * number + at).save(root / name / f"{at}.png")
    return root


def digest(root: Path | str) -> str:
    content = content_of(DataOptions(name="folder", root=str(root)))
    assert content is not None
    return content.digest


def configuration(root: Path | str, **data: object) -> dict:
    options = {"name": "folder", "root": str(root), **data}
    return {"method": {"name": "mae"}, "backbone": {"name": "vit"}, "data": options, "seed": 0}


def finished(folder: Path, status: str = "finished") -> None:
    write_run(folder, RunInfo(status, "pretrained", "mae", DataRecord("photos")))


def old(root: Path) -> None:
    """As if written a while ago: what was written just now is not trusted to stay."""
    for file in root.rglob("*"):
        os.utime(file, (1, 1))


def test_named_sets_have_no_content_of_their_own() -> None:
    assert content_of(DataOptions(name="digits")) is None and content_of(DataOptions(name="cifar10", root="x")) is None


def test_paths_to_one_folder_are_one_content(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    shutil.copytree(photos, tmp_path / "copy")
    paths = ["photos", "photos/", "./photos", str(photos), "photos/../photos", "link", "copy"]
    assert len({digest(path) for path in paths}) == 1
    runs = tmp_path / "runs"
    first = folder_of_run(runs, configuration("photos"))
    finished(first)
    assert {folder_of_run(runs, configuration(path)) for path in paths} == {first}  # under its first name


def test_the_path_of_a_named_set_is_not_its_run(tmp_path: Path) -> None:
    config = configuration(tmp_path, name="cifar10")
    elsewhere = configuration("elsewhere", name="cifar10", value_range="auto", label_column=None)
    assert identity(config) == identity(elsewhere) == identity(configuration("third", name="cifar10"))
    assert identity(config) != identity(configuration(tmp_path, name="cifar100"))
    assert identity(configuration("a"), "0123") == identity(configuration("b"), "0123") != identity(config, "4567")


def changes(root: Path) -> dict[str, object]:
    one = root / "train" / "cat" / "0.png"
    return {
        "replaced": lambda: picture(99).save(one),
        "added": lambda: picture(99).save(root / "train" / "cat" / "9.png"),
        "removed": one.unlink,
        "renamed": lambda: one.rename(root / "train" / "cat" / "7.png"),
        "of another class": lambda: one.rename(root / "train" / "dog" / "0b.png"),
        "in the test": lambda: picture(99).save(root / "test" / "dog" / "1.png"),
    }


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "renamed", "of another class", "in the test"])
def test_other_images_are_another_run(photos: Path, tmp_path: Path, change: str) -> None:
    before = digest(photos), folder_of_run(tmp_path / "runs", configuration(photos))
    changes(photos)[change]()
    after = digest(photos), folder_of_run(tmp_path / "runs", configuration(photos))
    assert before[0] != after[0] and before[1] != after[1]


def test_what_is_no_image_changes_nothing(photos: Path) -> None:
    before = digest(photos)
    (photos / "train" / "notes.txt").write_text("about these")
    (photos / "train" / "cat" / ".DS_Store").write_text("")
    os.utime(photos / "train" / "cat" / "0.png", (5, 5))
    assert digest(photos) == before


def test_a_parquet_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train-0.parquet").write_bytes(b"one")
    options = DataOptions(name="parquet", root=str(tmp_path / "a"))
    first = content_of(options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert content_of(replace(options, root=str(tmp_path / "b"))).digest == first.digest
    (tmp_path / "b" / "train-0.parquet").write_bytes(b"two")
    assert content_of(replace(options, root=str(tmp_path / "b"))).digest != first.digest


def test_a_file_is_read_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old(photos)
    monkeypatch.setattr(digests_module, "JUST_NOW", -(10**18))  # the times of change are of this moment
    first = digest(photos)
    monkeypatch.setattr(digests_module, "_digest", lambda *_: pytest.fail("read again"))
    assert digest(photos) == first


def test_a_change_that_keeps_size_and_time_is_seen(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = photos / "train" / "cat" / "0.png"
    content = bytearray(file.read_bytes())
    old(photos)
    monkeypatch.setattr(digests_module, "JUST_NOW", -(10**18))
    first = digest(photos)
    content[-20] ^= 0xFF
    file.write_bytes(bytes(content))
    os.utime(file, (1, 1))
    assert digest(photos) != first


def test_what_was_written_just_now_is_not_remembered(photos: Path, cache: Path) -> None:
    digest(photos)
    assert not [f for file in cache.rglob("*.json") for f in json.loads(file.read_text())["files"]]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 99, "files": 3}'])
def test_a_damaged_memory_is_forgotten(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(digests_module, "JUST_NOW", -(10**18))
    first = digest(photos)
    files = list(cache.rglob("*.json"))
    assert files
    for file in files:
        file.write_text(damage)
    assert digest(photos) == first


def test_without_a_cache_everything_works(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = digest(photos)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("SSL_BENCH_CACHE", str(tmp_path / "a file" / "cache"))
    monkeypatch.setattr(digests_module, "JUST_NOW", -(10**18))
    assert digest(photos) == first


def test_the_cache_is_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("SSL_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    write_cached("a/b.json", {"x": "\udce9"})
    assert (tmp_path / "xdg" / "ssl-bench" / "a" / "b.json").is_file() and read_cached("a/b.json") == {"x": "\udce9"}


def test_a_very_large_set_is_known_by_samples(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests_module, "WHOLE", 10)
    monkeypatch.setattr(digests_module, "SAMPLE", 16)
    first = digest(photos)
    assert digest(photos) == first
    file = photos / "train" / "cat" / "0.png"
    file.write_bytes(encoded(picture(77)))
    assert digest(photos) != first


def test_a_file_that_cannot_be_read_has_no_digest(photos: Path) -> None:
    assert digests_of(photos, listed([("gone", str(photos / "gone"))])) == [""]
    assert "" not in digests_of(photos, find_images(str(photos)).files)


@pytest.mark.parametrize("change", ["replaced", "added", "removed"])
def test_changed_images_of_an_unfinished_run_are_refused(
    photos: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, config = tmp_path / "runs", configuration(photos)
    content = content_of(DataOptions(**config["data"]))
    folder = find_run_folder(runs, config, content)
    refuse_changed_images(folder, config, content)
    finished(folder, "interrupted")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    remember_content(folder, config, content)
    changes(photos)[change]()
    content = content_of(DataOptions(**config["data"]))
    other = find_run_folder(runs, config, content)
    what = {"replaced": "of its 3 files some", "added": "it had 3 files, now 4", "removed": "it had 3 files, now 2"}
    with pytest.raises(
        UserError, match=rf"has changed since .*: train/cat: {what[change]}.* restore .* move its folder"
    ):
        refuse_changed_images(other, config, content)
    refuse_changed_images(other, {**config, "seed": 1}, content)  # another run has nothing to do with it
    finished(folder)
    refuse_changed_images(other, config, content)  # a finished one is told of
    assert f"has changed since {folder} (train/cat: {what[change]}" in capsys.readouterr().err


@pytest.mark.integration
def test_no_torch_is_needed_to_know_a_run(photos: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ssl_bench.data.files.content import folder_of_run\n"
        f"folder_of_run(Path({str(tmp_path / 'runs')!r}), {configuration(photos)!r})\n"
        "assert not {'torch', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
