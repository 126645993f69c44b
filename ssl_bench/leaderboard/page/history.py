"""What a run wrote while it pretrained (metrics.csv), as series."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from ssl_bench.records.files import in_words, read_regular
from ssl_bench.records.store import Run

Series = list[tuple[float, float]]
MOST_POINTS = 60  # of a line
MOST_BYTES = 2**27  # of metrics.csv
LARGEST = 1e100  # beyond it, differences are not finite


def history(run: Run, lacks: list[str] | None = None) -> dict[str, Series]:
    """Column -> (passes over the images, value) of each row that has it; steps where a run's passes are unknown.

    Args:
        run: A run.
        lacks: Gets a line where the file is gone or damaged.
    """
    path = run.folder / "metrics.csv"
    per_step = run.info.epochs / run.info.steps if run.info.epochs and run.info.steps else 1.0
    found: dict[str, Series] = {}
    damaged = 0
    try:
        rows = csv.DictReader(io.StringIO(read_regular(path, MOST_BYTES).decode("utf-8"), newline=""))
        for row in rows:
            at = _number(row.get("step"))
            damaged += not (
                (row.get("step") or "").isdecimal() and None not in row and all(map(_is_cell, row.values()))
            )
            for name, text in row.items():
                value = _number(text)
                if at is not None and value is not None and name not in ("step", "epoch"):
                    found.setdefault(name, []).append((at * per_step, value))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if lacks is not None and run.info.kind == "pretrained":
            lacks.append(f"curves of {path}: {in_words(error)}")
        return {}
    if damaged and lacks is not None:
        lacks.append(f"whole curves of {path}: {damaged} of its rows are damaged")
    return {name: sorted(points) for name, points in found.items()}


def mean_over(series: Sequence[Series]) -> Series:
    """Mean of several series at the places that all of them have; the longest where they have none in common."""
    places = [{round(x, 6) for x, _ in points} for points in series]
    common = set.intersection(*places) if places else set()
    if not common:
        return max(series, key=len, default=[])
    values: list[Mapping[float, float]] = [{round(x, 6): y for x, y in points} for points in series]
    return [(x, math.fsum(own[x] for own in values) / len(values)) for x in sorted(common)]


def thinned(points: Series, most: int = MOST_POINTS) -> Series:
    """At most so many points, each the mean of its neighbours; first and last as they are."""
    if len(points) <= most:
        return points
    inner, parts = points[1:-1], most - 2
    edges = [len(inner) * i // parts for i in range(parts + 1)]
    groups = [inner[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    means = [(group[len(group) // 2][0], math.fsum(y for _, y in group) / len(group)) for group in groups]
    return [points[0], *means, points[-1]]


def _is_cell(text: object) -> bool:
    """Whether this is a number, NaN included, or nothing."""
    try:
        float(str(text or 0))
    except ValueError:
        return False
    return True


def _number(text: object) -> float | None:
    """A finite number; None of anything else, also of a NaN."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None
