"""Which results need not be made again: those that are recorded, of the same number. Torch-free."""

from pathlib import Path

from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.results import Result, read_result, read_run, recorded_stem

# Two results that agree in these are of the same number.
SAME = ("protocol", "version", "options", "data", "splits", "geometry", "branch", "backbone")
BEFOREHAND = ("protocol", "version", "options", "data", "branch")  # what is known before images and weights are read


def recorded(run_dir: Path, blank: Result, same: tuple[str, ...] = SAME) -> Result | None:
    """The result of the same number, if it is there with its predictions.

    Args:
        run_dir: The run's folder.
        blank: What is known of a result before it is.
        same: In what the two must agree.
    """
    stem = recorded_stem(run_dir, read_run(run_dir), blank)
    path = run_dir / "results" / f"{stem}.json"
    if not path.is_file() or not (run_dir / "predictions" / f"{stem}.parquet").is_file():
        return None
    try:
        found = read_result(path)
    except UserError as error:
        say(f"{error}; evaluating again")
        return None
    return found if all(getattr(found, name) == getattr(blank, name) for name in same) else None
