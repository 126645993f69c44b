"""The memory that work takes."""

import subprocess
import sys

import pytest

CHILD = (
    "import torch; from ssl_bench.runtime.precision import peak_memory; before = peak_memory(torch.device('cpu'));"
    "held = torch.ones(100 << 20, dtype=torch.uint8); print(before >> 20, peak_memory(torch.device('cpu')) >> 20)"
)
PARENT = (
    "import subprocess, sys; held = bytearray(b'x') * (2 << 30);"
    "print(subprocess.run([sys.executable, '-c', sys.argv[1]], check=True, capture_output=True, text=True).stdout)"
)


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_the_peak_is_of_this_program_not_of_the_one_that_started_it() -> None:
    run = subprocess.run([sys.executable, "-c", PARENT, CHILD], check=True, capture_output=True, text=True)
    before, after = map(int, run.stdout.split())
    assert 50 < before < 2048 and 90 <= after - before < 200, (before, after)
