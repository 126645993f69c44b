"""Thousands of results stay cheap: processor time and memory of the commands, with generous bounds."""

import subprocess
import sys
from pathlib import Path

import pytest
from large_store import write_store
from processes import OWN_PEAK

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
@pytest.mark.parametrize("command", [["leaderboard"], ["leaderboard", "--format=html"], ["compare"]], ids=" ".join)
def test_two_thousand_results(store: Path, command: list[str]) -> None:
    """Measured on a busy core: 3 to 4 s; the page and the tables compare image by image, as there are so few."""
    run = [sys.executable, "-c", CODE, command[0], str(store), *command[1:]]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    code, seconds, mib = map(float, done.stderr.split())
    print(f"{seconds:.1f} s, {mib:.0f} MiB")
    assert code == 0 and seconds < 12 and mib < 500
