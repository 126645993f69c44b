"""What the campaigns share: where trials begin, and what became of them."""

from collections.abc import Iterator

import pytest
from campaign import Outcomes
from trials import Trials


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """Commands, each in a process of its own."""
    started = Trials(tmp_path_factory.mktemp("cache"))
    yield started
    started.close()


@pytest.fixture
def outcomes(capsys: pytest.CaptureFixture[str]) -> Iterator[Outcomes]:
    """Counts, which are shown whatever pytest hides."""
    found = Outcomes()
    yield found
    with capsys.disabled():
        print("\n" + found.said())
