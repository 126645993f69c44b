"""Thousands of results stay cheap: processor time and memory of the commands, with generous bounds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from large_store import write_store
from processes import OWN_PEAK

from ssl_bench.leaderboard import significance

CODE = (
    "import sys, time; start = time.process_time()\n"
    "from ssl_bench.cli.main import main; code = main(sys.argv[1:])\n"
    "seconds = time.process_time() - start\n"
    f"print(code, seconds, {OWN_PEAK}, file=sys.stderr)"
)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of what should take 10 s and 500 MiB: 200 runs of ten protocols, with predictions."""
    root = tmp_path_factory.mktemp("store")
    write_store(root, methods=8, seeds=5, backbones=5, data_sets=1, n_test=500)
    return root


@pytest.mark.integration
def test_many_pairs_are_those_with_the_best(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing for each of the pairs of 20,000 results would take minutes; every file is opened once."""
    whole = significance.build_report([store])
    monkeypatch.setattr(significance, "MOST_PAIRS", 1000)  # there are 1,400
    monkeypatch.setattr(significance, "image_draws", _few(significance.image_draws))
    opened = _opened(monkeypatch)
    report = significance.build_report([store])
    records = [path for path in opened if path.endswith((".json", ".parquet"))]
    assert len(records) == len(set(records)) == 200 * 21
    tables = [protocol for block in report.blocks for protocol in block.protocols]
    assert len(tables) == 50
    assert all({pair.a for pair in table.pairs} == {table.methods[0].name} for table in tables)
    assert {len(table.pairs) for table in tables} == {7}
    before, after = _unbeaten(whole), _unbeaten(report)
    assert after and after <= before, "Holm over 7 pairs finds no less than over 28"
    assert significance.LARGE in report.notes and significance.LARGE not in whole.notes


def _unbeaten(report: significance.Report) -> set[tuple[str, str, str]]:
    return {
        (block.title, protocol.title, method.name)
        for block in report.blocks
        for protocol in block.protocols
        for method in protocol.methods
        if method.unbeaten
    }


def _few(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draws of images, of which there must be few."""

    def checked(shares: Any, labels: Any, draws: int) -> Any:
        assert draws <= 2000
        return draw(shares, labels, draws)

    return checked


def _opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are opened from now on."""
    found: list[str] = []
    real = os.open

    def noted(path: Any, *args: Any, **options: Any) -> int:
        found.append(str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", noted)
    return found


@pytest.mark.integration
@pytest.mark.parametrize("command", [["leaderboard"], ["leaderboard", "--format=html"], ["compare"]], ids=" ".join)
def test_two_thousand_results(store: Path, command: list[str]) -> None:
    """Measured on a busy core: 3 to 4 s; the page and the tables compare image by image, as there are so few."""
    run = [sys.executable, "-c", CODE, command[0], str(store), *command[1:]]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    code, seconds, mib = map(float, done.stderr.splitlines()[-1].split())
    print(f"{seconds:.1f} s, {mib:.0f} MiB")
    assert code == 0 and seconds < 12 and mib < 500
