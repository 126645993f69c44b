"""What `make test` runs is fast because it starts no process; what does is of `make integration`."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tiers import pytest_collection_modifyitems

NOTHING = [sys.executable, "-c", ""]


def test_a_fast_test_that_starts_python_is_refused(request: pytest.FixtureRequest) -> None:
    with pytest.raises(RuntimeError, match="starts python.*: mark it @pytest.mark.integration") as refusal:
        subprocess.run(NOTHING)
    assert str(refusal.value).startswith(request.node.nodeid)
    assert subprocess.run(["true"], check=True).returncode == 0, "what takes no time is nobody's business"


@pytest.mark.integration
def test_another_may_start_it() -> None:
    assert subprocess.run(NOTHING, check=True).returncode == 0


@pytest.mark.parametrize(("fixtures", "marks"), [(["tmp_path"], []), (["browser"], ["integration"])])
def test_what_takes_a_browser_is_of_integration(fixtures: list[str], marks: list[str]) -> None:
    found: list[str] = []
    item: Any = SimpleNamespace(fixturenames=fixtures, add_marker=found.append)
    pytest_collection_modifyitems([item])
    assert found == marks
