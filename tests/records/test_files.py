"""Files appear whole, or not at all, and what killed writers leave is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from ssl_bench.records.files import DAY, clear_temporary, replacing, temporary_beside, write_text, writing_folder


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_no_two_writers_share_a_name(tmp_path: Path) -> None:
    names = {temporary_beside(tmp_path / "a").name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(".a.") and f"-{os.getpid()}-" in name and name.endswith(".tmp") for name in names)


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError) as caught:
        write_text(tmp_path / "file" / "a", "x")
    assert str(tmp_path / "file") in str(caught.value.filename)
    with pytest.raises(OSError, match="No space") as full, replacing(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert full.value.filename == str(tmp_path / "a")


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
            temporary.chmod(0o600)  # as some writers do
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o664


@pytest.mark.integration
def test_leftovers_of_the_dead_go_and_files_of_the_living_stay(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    code = (
        "import os, sys; from pathlib import Path; from ssl_bench.records.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "checkpoints" / "a")], env=environment, check=True)
    (dead,) = tmp_path.rglob("*.tmp")
    living = temporary_beside(tmp_path / "b")
    living.write_text("half")
    (tmp_path / ".c.123.tmp").write_text("of an earlier version")
    (tmp_path / "d.tmp").write_text("the user's")
    clear_temporary(tmp_path)
    assert not dead.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["checkpoints", "d.tmp", living.name])


def test_what_another_machine_may_be_writing_stays_for_a_day(tmp_path: Path) -> None:
    young, old, folder = (tmp_path / f".{name}.elsewhere-1-0a0b0c0d.tmp" for name in "abc")
    for file in (young, old):
        file.write_text("half")
    folder.mkdir()
    (folder / "weights").write_text("half")
    for path in (old, folder):
        os.utime(path, (0, 0))
    clear_temporary(tmp_path, DAY)
    assert list(tmp_path.iterdir()) == [young]
    clear_temporary(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_new_folder_clears_what_a_killed_process_left_of_it(tmp_path: Path) -> None:
    out, other = tmp_path / "out[1]", tmp_path / ".out1.elsewhere-1-0a0b0c0d.tmp"
    left = tmp_path / ".out[1].elsewhere-1-0a0b0c0d.tmp"
    for path in (left, other):
        path.mkdir()
        os.utime(path, (0, 0))
    with writing_folder(out) as temporary:
        (temporary / "a").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out[1]"]
