"""`benchmark.json`, beside the runs of a benchmark: how its tables are grouped, and how it was made. Torch-free."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.decoding import read_record
from ssl_bench.records.files import write_json

NAME = "benchmark.json"


@dataclass(frozen=True)
class BenchmarkInfo:
    """What a benchmark leaves for those who read its runs.

    Args:
        by: Budget that the rows of a table share, as `--by` has it.
        command: Arguments that start it again.
        started: ISO 8601 with offset.
        version: Of ssl-bench.
    """

    by: str
    command: list[str] = field(default_factory=list)
    started: str = ""
    version: str = ""


def write_benchmark(runs: Path, info: BenchmarkInfo) -> None:
    """Write `benchmark.json` into the folder of the runs."""
    write_json(runs / NAME, dataclasses.asdict(info))


def benchmark_of(paths: Iterable[Path]) -> BenchmarkInfo | None:
    """The benchmark that all of the paths are runs of; None where there is none, or where they are of several.

    Args:
        paths: Run folders, or folders of them.
    """
    found: list[BenchmarkInfo | None] = []
    for path in map(Path.absolute, paths):
        folder = next((one for one in (path, path.parent) if (one / NAME).is_file()), None)
        try:
            found.append(read_record(BenchmarkInfo, folder / NAME) if folder else None)
        except UserError as error:
            say(f"warning: {error}; tables are grouped as by default")
            found.append(None)
    if any(one != found[0] for one in found[1:]):
        say("warning: the runs are of several benchmarks: tables are grouped as by default; --by chooses")
        return None
    return found[0] if found else None
