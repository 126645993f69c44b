"""Which files below a folder are images: each once, by content, and everything else named with its reason."""

import errno
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pictures import encoded, picture

from ssl_bench.data.files.listing import (
    COUNTED,
    HARD_LINK,
    LINKED_FILE,
    LINKED_FOLDER,
    NO_FILE,
    NO_IMAGE,
    file_name,
    find_images,
    is_system,
    written_name,
)


def names(root: Path, *tops: str) -> list[str]:
    return [file.name for file in find_images(str(root), tops or ("",)).files]


def left_out(root: Path) -> dict[str, str]:
    return find_images(str(root)).left_out


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).save(tmp_path / "data" / name)
    return tmp_path / "data"


ALL = ["cat/0.png", "cat/1.png", "dog/0.png"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("name", ["photo.jfif", "photo", "photo.bin", "photo.JPG", "ünï.png"])
@pytest.mark.integration
def test_an_image_is_one_by_its_content(root: Path, kind: str, name: str) -> None:
    (root / "cat" / name).write_bytes(encoded(picture(5), kind))
    assert f"cat/{name}" in names(root) and not left_out(root)


@pytest.mark.parametrize(
    "ending", ["heic", "HEIF", "cr2", "nef", "dng", "raw", "npy", "dcm", "svg", "mp4", "zip", "jxl"]
)
def test_what_cannot_be_decoded_is_named_with_its_ending(root: Path, ending: str) -> None:
    (root / "cat" / f"a.{ending}").write_bytes(encoded(picture(0), "TIFF"))  # a camera's raw file begins like a TIFF
    assert names(root) == ALL
    why = left_out(root)[f"cat/a.{ending}"]
    assert f".{ending.lower()}" in why and "cannot be decoded here" in why


@pytest.mark.parametrize("name", ["notes.txt", "labels.csv", "photo.json", "README", "BMW", "x.py"])
def test_other_files_are_no_images(root: Path, name: str) -> None:
    (root / "cat" / name).write_bytes(b"BMW and other cars, in words")
    assert names(root) == ALL and left_out(root) == {f"cat/{name}": NO_IMAGE}


def test_an_empty_image_is_named(root: Path) -> None:
    (root / "cat" / "empty.jpg").touch()
    assert left_out(root) == {"cat/empty.jpg": "an empty file"}


SYSTEM = [
    "@eaDir",
    "$RECYCLE.BIN",
    ".thumbnails",
    "__MACOSX",
    "lost+found",
    ".Spotlight-V100",
    "System Volume Information",
]


@pytest.mark.parametrize("folder", [*SYSTEM, "#recycle", ".git", ".ipynb_checkpoints"])
@pytest.mark.parametrize("depth", ["", "cat/", "cat/deep/"])
def test_folders_of_systems_are_no_data(root: Path, folder: str, depth: str) -> None:
    place = root / depth / folder / "0.png"
    place.mkdir(parents=True)
    picture(3).save(place / "SYNOPHOTO_THUMB_M.jpg")
    assert names(root) == ALL and not left_out(root)


@pytest.mark.parametrize("name", ["._0.png", "Thumbs.db", "thumbs.db", "desktop.ini", ".DS_Store", ".hidden.png"])
def test_files_of_systems_are_no_data(root: Path, name: str) -> None:
    (root / "cat" / name).write_bytes(encoded(picture(0)))
    assert is_system(name) and names(root) == ALL and not left_out(root)


@pytest.mark.parametrize(
    ("link", "target"),
    [("cat/back", ".."), ("cat/self", "."), ("dog/again", "../cat"), ("another", "cat"), ("a", "cat"), ("up", "..")],
)
def test_a_link_to_a_folder_counts_nothing_twice(root: Path, link: str, target: str) -> None:
    (root / link).symlink_to(target, target_is_directory=True)
    assert names(root) == ALL
    assert set(left_out(root).values()) <= {LINKED_FOLDER, COUNTED}


@pytest.mark.parametrize("name", ["cat/0b.png", "dog/9.png", "aaa.png"])
def test_a_link_to_a_file_counts_nothing_twice(root: Path, name: str) -> None:
    (root / name).symlink_to(root / "cat" / "0.png")
    assert names(root) == ALL and left_out(root) == {name: LINKED_FILE}


def test_a_hard_link_counts_nothing_twice(root: Path) -> None:
    os.link(root / "cat" / "0.png", root / "dog" / "copy.png")
    assert names(root) == ALL and left_out(root) == {"dog/copy.png": HARD_LINK}


def test_a_hard_link_from_elsewhere_counts(root: Path, tmp_path: Path) -> None:
    os.link(root / "cat" / "0.png", tmp_path / "backup.png")
    assert names(root) == ALL and not left_out(root)


def test_links_to_elsewhere_count_once(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "store"
    elsewhere.mkdir()
    picture(7).save(elsewhere / "x.png")
    picture(8).save(elsewhere / "y.png")
    (root / "bird").symlink_to(elsewhere, target_is_directory=True)
    (root / "bird2").symlink_to(elsewhere, target_is_directory=True)
    (root / "cat" / "x.png").symlink_to(elsewhere / "x.png")
    assert names(root) == ["bird/x.png", "bird/y.png", *ALL]
    assert left_out(root) == {"bird2": LINKED_FOLDER, "cat/x.png": LINKED_FILE}


def test_a_file_counts_once_where_a_link_to_it_comes_first(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "store"
    elsewhere.mkdir()
    picture(7).save(elsewhere / "x.png")
    (root / "a.png").symlink_to(elsewhere / "x.png")
    (root / "bird").symlink_to(elsewhere, target_is_directory=True)
    assert names(root) == ["a.png", *ALL] and left_out(root) == {"bird/x.png": COUNTED}


def test_a_test_folder_that_is_the_training_folder_by_another_name(root: Path) -> None:
    (root / "test").symlink_to("cat", target_is_directory=True)
    assert names(root, "cat", "test") == ["cat/0.png", "cat/1.png"]


def test_links_to_nothing_and_what_is_no_file(root: Path) -> None:
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "cat" / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "cat" / "pipe.png")  # opening it would wait for ever
    found = left_out(root)
    assert names(root) == ALL and found["cat/gone.png"] == "a link to nothing" and found["cat/pipe.png"] == NO_FILE
    assert found["cat/loop.png"].startswith("it cannot be read")


def test_a_folder_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed_to_all(path, scan=os.scandir):  # root may read a folder whatever its mode
        if str(path).endswith("cat"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed_to_all)
    assert names(root) == ["dog/0.png"] and left_out(root)["cat"].startswith("it cannot be read")


@pytest.mark.parametrize(
    "name", [b"caf\xe9.jpg", b"back\\slash.png", b"\\xe9.png", b"\xff\xfe\\\\\x80", "日本.png".encode()]
)
def test_names_are_written_reversibly(name: bytes) -> None:
    text = os.fsdecode(name)
    written = written_name(text)
    assert file_name(written) == text and written.encode("utf-8")
    assert os.fsencode(file_name(written)) == name


def test_different_names_are_written_differently() -> None:
    assert written_name(os.fsdecode(b"\xe9")) == "\\xe9" != written_name("\\xe9")


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_any_name_is_written_as_text_that_gives_it_back(name: bytes) -> None:
    text = os.fsdecode(name)
    written = written_name(text)
    written.encode("utf-8")  # raises where it is no text
    assert os.fsencode(file_name(written)) == name


@given(
    st.lists(st.binary(min_size=1, max_size=3).filter(lambda n: b"\0" not in n), min_size=2, max_size=20, unique=True)
)
def test_different_names_of_any_bytes_are_written_differently(names: list[bytes]) -> None:
    assert len({written_name(os.fsdecode(name)) for name in names}) == len(names)
