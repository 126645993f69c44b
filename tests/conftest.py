"""What several test files share."""

import gc
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401
from tiers import pytest_collection_modifyitems, pytest_runtest_protocol  # noqa: F401
from tiny import TINY
from wandb_server import WandbServer, client_of, serving

from ssl_bench.config.fit_config import parse_fit

# The same examples at each run, and no deadline: a busy machine is no failure.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What is imported stays: a million objects fewer for each collection of garbage to walk through."""
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests remember of their images stays theirs."""
    monkeypatch.setenv("SSL_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def tiny_config() -> Callable[..., dict[str, Any]]:
    """Configuration of an MAE run of a second; flags override."""

    def config(*flags: str) -> dict[str, Any]:
        return parse_fit(["--method=mae", *TINY, *flags], {}).config

    return config


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished MAE run, only to be read."""
    from ssl_bench.pretraining.training import fit

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return fit(parse_fit(["--method=mae", *TINY], {}).config, tmp_path_factory.mktemp("pretrained")).folder


@pytest.fixture
def tiny_run(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    return shutil.copytree(pretrained, tmp_path / "runs" / pretrained.name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A W&B server, the client's key for it, and a client that has met no other."""
    import wandb

    with serving() as started:
        wandb.teardown()
        for name, value in client_of(started, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield started
        wandb.teardown()
    with warnings.catch_warnings():  # the client's temporary folders of what a server that is ill did not take
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
