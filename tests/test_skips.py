"""A run of the tests says what it skipped, and fails in CI where nobody has allowed it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import SUPPORT
from skips import ALLOWED

pytestmark = pytest.mark.integration

TESTS = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_skipped(n):
    pytest.skip({reason!r})

def test_passes():
    pass
"""


def run(folder: Path, reason: str, ci: str) -> subprocess.CompletedProcess[str]:
    path = folder / "test_one.py"
    path.write_text(TESTS.format(reason=reason))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "skips",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        str(path),
    ]
    environment = os.environ | {"PYTHONPATH": str(SUPPORT), "CI": ci, "PYTEST_ADDOPTS": ""}
    return subprocess.run([*command, str(path)], env=environment, capture_output=True, text=True, timeout=60)


def test_a_reason_on_the_list_is_counted(tmp_path: Path) -> None:
    done = run(tmp_path, ALLOWED[0] + " at all", ci="true")
    assert done.returncode == 0, done.stdout
    assert f"2 skipped: {ALLOWED[0]} at all\n" in done.stdout


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_another_reason_fails_in_ci_only(tmp_path: Path, ci: str, code: int) -> None:
    done = run(tmp_path, "no time", ci=ci)
    assert done.returncode == code, done.stdout
    assert "2 skipped: no time (not in ALLOWED of tests/support/skips.py)" in done.stdout
