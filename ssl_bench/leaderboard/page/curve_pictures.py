"""Pictures of accuracy along something: blocks that learn, labels, passes over the images."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ssl_bench.leaderboard.page.history import Series, history, mean_over, thinned
from ssl_bench.leaderboard.page.plot import BASELINE, Plot, around, legend
from ssl_bench.leaderboard.page.view import MOST_LINES, Picture, View
from ssl_bench.leaderboard.table import Row
from ssl_bench.leaderboard.text import label, percent
from ssl_bench.records.result import Result
from ssl_bench.statistics.intervals import mean_over_seeds


@dataclass(frozen=True, order=True)
class At:
    """A point of a curve: where, mean over seeds, its interval, and how many seeds."""

    x: float
    mean: float
    low: float
    high: float
    seeds: int


Drawn: TypeAlias = tuple[Row, int, bool]  # a row, its style, and whether its marks are hollow


@dataclass(frozen=True)
class Line:
    """Points in one style.

    Args:
        style: Of line and marks.
        points: In the order of their places.
        hollow: Whether marks are outlines.
    """

    style: int
    points: Sequence[At]
    hollow: bool = False

    @property
    def gain(self) -> float:
        """From the first point to the last."""
        return self.points[-1].mean - self.points[0].mean


def partial_finetuning(view: View) -> Picture | None:
    """Accuracy on the test images over the number of last blocks that learned."""
    found: dict[str, Line] = {}
    for row in view.lines:
        depths = [(depth, result) for run in row.members for result in run.results for depth in [_depths(result)]]
        wanted = {name: place for depth, _ in depths for name, place in depth.items()}
        points = [_at(place, [r for d, r in depths if name in d], name) for name, place in wanted.items()]
        if len(points) > 1:
            found[label(row)] = Line(view.style(row), sorted(points))
    gains = {name: line.gain for name, line in found.items() if line.style != BASELINE}
    if not gains:
        return None
    places = sorted({point.x for line in found.values() for point in line.points})
    order = {place: index for index, place in enumerate(places)}
    body = _lines(found, "last blocks that learn", lambda x: order[x], [(order[p], f"{p:g}") for p in places])
    several = [name for name in gains if name in view.several_seeds]
    most = max(several, key=lambda name: gains[name], default="")
    detail = (
        f"From {places[0]:g} to {places[-1]:g} blocks the mean of {most} changes by {100 * gains.get(most, 0):+.1f} "
    )
    detail += "points, the highest gain of means"
    body += legend((name, line.style) for name, line in found.items())
    note = "Test accuracy with 95 % intervals; the last place is all blocks."
    return Picture("Partial fine-tuning", body, note, detail if len(several) > 1 else "")


def _depths(result: Result) -> dict[str, float]:
    """Variant -> its number of blocks, of a partial fine-tuning."""
    if result.protocol != "partial-finetune" or not result.curve.get("k"):
        return {}
    known = {name: result.curve["k"][-1] if name == "all" else _blocks(name) for name in result.variants}
    return {name: depth for name, depth in known.items() if depth is not None}


def _blocks(variant: str) -> float | None:
    found = re.fullmatch(r"k(\d+(?:\.\d+)?)", variant)
    return float(found[1]) if found else None


def _at(x: float, results: Sequence[Result], variant: str) -> At:
    """A variant's accuracy over the seeds."""
    values = [result.variants[variant].value for result in results]
    if len(values) == 1:
        low, high = results[0].variants[variant].interval
        return At(x, values[0], low, high, 1)
    mean, low, high = mean_over_seeds(values, min(result.n_test for result in results))
    return At(x, mean, low, high, len(values))


def label_efficiency(view: View) -> Picture | None:
    """A panel for each way to learn from few labels: accuracy over the number of labels."""
    images = view.block.data, view.block.fingerprint
    curves = label_curves({label(row): (row, view.style(row), False) for row in view.lines}, images)
    ends = {
        way: [
            (line.points[0].mean, line.points[-1].mean, name) for name, line in found.items() if line.style != BASELINE
        ]
        for way, found in curves.items()
    }
    way, first = next(((way, found) for way, found in ends.items() if found), ("", []))
    if not first:
        return None
    several = [point for point in first if point[2] in view.several_seeds]
    detail = ""
    if len(several) > 1:
        few, many = max(several)[2], max(several, key=lambda found: found[1])[2]
        detail = f"{few} has the highest mean with the fewest labels"
        detail += f"{' and' if few == many else f', {many}'} with the most ({way[0].lower()}{way[1:]})"
    names = {name: line.style for found in curves.values() for name, line in found.items()}
    body = f'<div class="panels">{"".join(label_panels(curves))}</div>{legend(names.items())}'
    return Picture("Label efficiency", body, "Test accuracy with 95 % intervals.", detail)


def label_curves(rows: Mapping[str, Drawn], images: tuple[str, str]) -> dict[str, dict[str, Line]]:
    """Accuracy over the number of labels.

    Args:
        rows: Name -> row, style, and whether its marks are hollow.
        images: Identity of the images that count.

    Returns:
        Way to learn from few labels -> name -> its line, where there are two points or more.
    """
    curves: dict[str, dict[str, Line]] = {}
    for way, read in WAYS.items():
        for name, (row, style, hollow) in rows.items():
            groups: dict[tuple[float, str], list[Result]] = {}
            for result in (result for run in row.members for result in run.results):
                for variant, labels in read(result).items() if result.data.identity == images else ():
                    groups.setdefault((labels, variant), []).append(result)
            points = [_at(labels, results, variant) for (labels, variant), results in groups.items()]
            if len(points) > 1:
                curves.setdefault(way, {})[name] = Line(style, sorted(points), hollow)
    return curves


def label_panels(curves: Mapping[str, Mapping[str, Line]]) -> list[str]:
    """A panel for each way to learn from few labels."""
    drawn = {way: _lines(found, "labels", None, None, log=True) for way, found in curves.items()}
    return [f"<div><h4>{way}</h4>{svg}</div>" for way, svg in drawn.items()]


def _shots(result: Result) -> dict[str, float]:
    classes = len(result.data.fingerprint.get("classes") or [])
    shots = {name: re.fullmatch(r"(\d+)-shot", name) for name in result.variants}
    few = result.protocol == "fewshot" and classes
    return {name: float(found[1]) * classes for name, found in shots.items() if found} if few else {}


def _shares(protocols: Mapping[str, float]) -> Callable[[Result], dict[str, float]]:
    def read(result: Result) -> dict[str, float]:
        if result.protocol not in protocols:
            return {}
        labelled = sum(split.count for name, split in result.splits.items() if name in ("train", "validation"))
        return {result.primary: max(1.0, protocols[result.protocol] * labelled)} if labelled else {}

    return read


WAYS: dict[str, Callable[[Result], dict[str, float]]] = {
    "Frozen, ridge regression": _shots,
    "Frozen, logistic regression": _shares({"labels-1pct": 0.01, "labels-10pct": 0.1, "logistic": 1.0}),
    "Fine-tuned": _shares({"finetune-1pct": 0.01, "finetune-10pct": 0.1, "finetune": 1.0}),
}


def _lines(
    found: Mapping[str, Line],
    x_title: str,
    place: Callable[[float], float] | None,
    ticks: Sequence[tuple[float, str]] | None,
    log: bool = False,
) -> str:
    """A line with intervals for each name."""
    points = [point for line in found.values() for point in line.points]
    put = place or (lambda x: x)
    xs = around([put(point.x) for point in points], log=log)
    ys = around([100 * value for point in points for value in (point.low, point.high)], floor=0)
    plot = Plot(xs, ys, x_title, "accuracy, %", (380, 260), log_x=log, x_ticks=ticks)
    for name, line in found.items():
        plot.line([(put(point.x), 100 * point.mean) for point in line.points], line.style, name)
        for point in line.points:
            x = put(point.x)
            score = f"{percent(point.mean)} [{percent(point.low)}, {percent(point.high)}], n={point.seeds}"
            ends = (100 * point.low, 100 * point.high)
            plot.mark(x, 100 * point.mean, line.style, f"{name}, {point.x:g}: {score}", line.hollow, y_ends=ends)
    drawn = ((name, line.points[0], line.points[-1]) for name, line in found.items())
    return plot.svg("; ".join(f"{name} from {percent(a.mean)} to {percent(b.mean)}" for name, a, b in drawn))


def online_probes(view: View) -> Picture | None:
    """A panel for each online probe: its accuracy over the passes, mean over seeds."""
    detail = ""
    panels: list[str] = []
    names: dict[str, int] = {}
    read = {label(row): [history(run) for run in row.members] for row in view.pretrained[:MOST_LINES]}
    for probe in ("linear", "knn"):
        found: dict[str, Series] = {}
        for name, runs in read.items():
            series = mean_over([own[probe] for own in runs if len(own.get(probe, [])) > 1])
            if len(series) > 1:
                found[name] = thinned(series)
        if not found:
            continue
        xs = around([x for points in found.values() for x, _ in points], floor=0)
        ys = around([100 * y for points in found.values() for _, y in points], floor=0)
        plot = Plot(xs, ys, "passes over the images", f"{probe}, %", (360, 240))
        for name, points in found.items():
            style = view.styles.get(name, 0)
            plot.line([(x, 100 * y) for x, y in points], style, name)
            for x, y in points if len(points) <= 15 else points[-1:]:
                plot.mark(x, 100 * y, style, f"{name}, after {x:.3g} passes: {percent(y)} %")
        several = [name for name in found if name in view.several_seeds]
        if not panels and len(several) > 1:
            first = max(several, key=lambda name: found[name][-1][1])
            detail = f"{first} has the highest mean of {probe} at the end"
        alt = "; ".join(f"{name} ends at {percent(points[-1][1])}" for name, points in found.items())
        panels.append(f"<div>{plot.svg(alt)}</div>")
        names |= {name: view.styles.get(name, 0) for name in found}
    if not panels:
        return None
    note = "Mean over seeds, on a part of the validation images, never on test images: a monitor, not a result."
    body = f'<div class="panels">{"".join(panels)}</div>{legend(names.items())}'
    return Picture("Online probes", body, note, detail)
