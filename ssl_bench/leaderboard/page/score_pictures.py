"""Pictures of final scores: each protocol's results, linear probe against fine-tuning, accuracy against compute."""

from collections.abc import Sequence

from ssl_bench.leaderboard.page.plot import BASELINE, Plot, around, legend, shortened
from ssl_bench.leaderboard.page.view import Picture, View, score_text, without_oracles
from ssl_bench.leaderboard.table import Block, Cell, Row, epochs
from ssl_bench.leaderboard.text import joined, label, percent
from ssl_bench.leaderboard.units import duration

MOST_ROWS = 30
MAIN = ("linear", "finetune", "knn", "logistic", "ridge", "attentive", "classifier")
COSTS = (("seconds", "seconds of pretraining"), ("flops", "FLOPs of pretraining"), ("images", "images seen"))


def results(view: View) -> Picture | None:
    """A panel for each protocol: every method with its interval, best first where they are ranked."""
    columns = without_oracles(view.block.columns)
    if len(view.block.rows) < 2 or not view.pretrained:
        return None
    panels = "".join(_panel(view, index) for index in columns)
    leaders = [_leaders(view, index) for index in columns]
    tops = [names[0] for names in leaders if names]
    detail, note = "", ""
    if tops:
        first = max(sorted(set(tops)), key=tops.count)
        alone = sum(len(names) == 1 for names in leaders)
        detail = (
            f"{first} has the highest mean in {tops.count(first)} of {len(tops)} protocols; in {alone} the best is "
        )
        detail += "significantly better than all others"
        note = "Filled marks are not significantly worse than the best of their protocol, hollow ones are. "
    note += "Lines are 95 % intervals, the dashed line is the random backbone."
    hidden = len(view.block.rows) - MOST_ROWS
    note += f" The best {MOST_ROWS} of {len(view.block.rows)} rows." if hidden > 0 else ""
    return Picture("Results", f'<div class="panels">{panels}</div>', note, detail)


def _leaders(view: View, index: int) -> list[str]:
    found = [(cell.mean, label(row)) for row in view.block.rows if (cell := row.cells[index]) and cell.unbeaten]
    return [name for _, name in sorted(found, key=lambda pair: -pair[0])]


def _panel(view: View, index: int) -> str:
    found = [(row, cell) for row in view.block.rows if (cell := row.cells[index])]
    found = (sorted(found, key=lambda pair: -pair[1].mean) if view.block.ranked else found)[:MOST_ROWS]
    column, random = view.block.columns[index], view.random(index)
    places = [100 * value for _, cell in found for value in (cell.low, cell.high)]
    places += [100 * random.mean] if random else []
    names = [shortened(label(row), 32) for row, _ in found]
    left = min(200, 24 + 6 * max(map(len, names)))
    size = (192 + left, 46 + 17 * len(found))
    plot = Plot(
        around(places, floor=0), (len(found) - 0.5, -0.5), "", column.title, size, (left, 10, 20, 22), y_ticks=[]
    )
    if random:
        plot.up(100 * random.mean, f"random backbone: {percent(random.mean)} %")
    plot.names(enumerate(names))
    for place, (row, cell) in enumerate(found):
        tooltip, ends = f"{label(row)}: {score_text(cell)}", (100 * cell.low, 100 * cell.high)
        hollow = bool(column.test) and not cell.unbeaten and not cell.one_seed
        plot.mark(100 * cell.mean, place, view.style(row), tooltip, hollow, x_ends=ends)
    return plot.svg(f"{column.title}: " + ", ".join(f"{label(row)} {percent(cell.mean)}" for row, cell in found))


def linear_against_finetuning(view: View) -> Picture | None:
    """A mark for each method that has both, with both intervals."""
    across, up = view.column("linear"), view.column("finetune")
    if across is None or up is None:
        return None
    found = [(row, a, b) for row in view.block.rows if (a := row.cells[across]) and (b := row.cells[up])]
    if sum(row.kind != "baseline" for row, *_ in found) < 2:
        return None
    several = [(a.mean, b.mean) for row, a, b in found if label(row) in view.several_seeds]
    xs = around([100 * v for _, a, _ in found for v in (a.low, a.high)], floor=0)
    ys = around([100 * v for _, _, b in found for v in (b.low, b.high)], floor=0)
    plot = Plot(xs, ys, "linear probe, %", "fine-tuning, %", (480, 340))
    taken: list[tuple[float, float]] = []
    for row, a, b in found:
        x, y = 100 * a.mean, 100 * b.mean
        ends = (100 * a.low, 100 * a.high), (100 * b.low, 100 * b.high)
        tooltip = f"{label(row)}: linear {score_text(a)}; fine-tuning {score_text(b)}"
        plot.mark(x, y, view.style(row), tooltip, x_ends=ends[0], y_ends=ends[1])
        if len(found) <= 20:
            _beside(plot, x, y, shortened(label(row), 24), taken)
    title = "Linear probe against fine-tuning"
    return Picture(title, plot.svg(title), "Lines are 95 % intervals.", agreement(several) if several else "")


def _beside(plot: Plot, x: float, y: float, text: str, taken: list[tuple[float, float]]) -> None:
    """Text beside a mark, on the first side on which it hides no other."""
    width = 6.0 * len(text)
    sides = [(7.0, -6.0, "start"), (7.0, 13.0, "start"), (-7.0, -6.0, "end"), (-7.0, 13.0, "end")]
    for dx, dy, anchor in sides:
        middle = plot.x(x) + dx + (width / 2 if anchor == "start" else -width / 2), plot.y(y) + dy
        inside = plot.x.start < middle[0] - width / 2 and middle[0] + width / 2 < plot.width
        if inside and all(abs(middle[0] - u) > width / 2 + 20 or abs(middle[1] - v) > 12 for u, v in taken):
            taken.append(middle)
            plot.label(x, y, text, anchor, (dx, dy))
            return


def agreement(pairs: Sequence[tuple[float, float]]) -> str:
    """Two orders in words, by Kendall's tau without ties."""
    signs = [
        (a[0] - b[0]) * (a[1] - b[1]) for i, a in enumerate(pairs) for b in pairs[:i] if a[0] != b[0] and a[1] != b[1]
    ]
    if not signs:
        return "no order to compare"
    tau = (sum(sign > 0 for sign in signs) - sum(sign < 0 for sign in signs)) / len(signs)
    found = "one order says little about the other"
    for least, phrase in ((0.7, "they order methods alike"), (0.3, "their orders agree in part")):
        if tau >= least:
            found = phrase
            break
    else:
        found = "their orders contradict each other" if tau <= -0.3 else found
    return f"{found} (Kendall's tau {tau:+.2f}, {len(pairs)} methods)"


def compute(views: Sequence[View]) -> Picture | None:
    """Accuracy against what pretraining took, over blocks of the same images and backbone: a choice of three costs."""
    protocol = next((name for name in MAIN if any(_points(view, name) for view in views)), None)
    points = [point for view in views for point in _points(view, protocol)] if protocol else []
    if len(points) < 2:
        return None
    group = f"cost{views[0].block.fingerprint}{len(points)}{abs(hash_of(views[0].block))}"
    choices: list[str] = []
    plots, fronts = [], []
    for number, (kind, title) in enumerate(COSTS):
        known = [(view, row, cell, cost) for view, row, cell in points if (cost := _cost(row, kind)) > 0]
        if len(known) < 2:
            continue
        front = _front([(cost, cell.mean, label(row)) for _, row, cell, cost in known])
        fronts.append((title, [name for *_, name in front]))
        checked = "" if choices else " checked"
        choices.append(
            f'<input type="radio" name="{group}" id="{group}{number}"{checked}>'
            f'<label for="{group}{number}">{title.partition(" of")[0]}</label>'
        )
        plots.append(f'<div class="choice">{_against(known, front, kind, title, protocol or "")}</div>')
    if not choices:
        return None
    detail = f"By {fronts[0][0].partition(' of')[0]}, nothing has both a lower cost and a higher mean than "
    detail += f"{joined(fronts[0][1], 5)}"
    certain = all(label(row) in view.several_seeds for view, row, _ in points)
    shown = dict.fromkeys((label(row), view.style(row)) for view, row, _ in points)
    body = (
        f'<fieldset class="choices"><legend>Cost</legend>{"".join(choices)}{"".join(plots)}</fieldset>{legend(shown)}'
    )
    note = f"{protocol}, 95 % intervals; the line joins what nothing cheaper reaches."
    return Picture("Accuracy against compute", body, note, detail if certain else "")


def hash_of(block: Block) -> int:
    """A number that tells blocks' groups of controls apart, the same at each build."""
    import zlib

    return zlib.crc32(f"{block.data}{block.fingerprint}{block.backbone}".encode("utf-8", "surrogateescape"))


def _points(view: View, protocol: str) -> list[tuple[View, Row, Cell]]:
    index = view.column(protocol)
    return [] if index is None else [(view, row, cell) for row in view.pretrained if (cell := row.cells[index])]


def _cost(row: Row, kind: str) -> float:
    if kind == "images":
        return sum(run.info.images_seen for run in row.members) / max(1, len(row.members))
    return row.seconds if kind == "seconds" else row.flops


def _front(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those than which nothing is both cheaper and better, cheapest first."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _against(
    points: Sequence[tuple[View, Row, Cell, float]],
    front: Sequence[tuple[float, float, str]],
    kind: str,
    title: str,
    protocol: str,
) -> str:
    ys = around([100 * v for _, _, cell, _ in points for v in (cell.low, cell.high)], floor=0)
    plot = Plot(around([cost for *_, cost in points], log=True), ys, title, f"{protocol}, %", (480, 320), log_x=True)
    plot.line([(cost, 100 * mean) for cost, mean, _ in front], BASELINE, "nothing is both cheaper and better")
    for view, row, cell, cost in points:
        spent = duration(cost) if kind == "seconds" else f"{cost:.3g}"
        budget = f"{epochs(row)} epochs x views"
        name = f"{label(row)}, {budget}: {score_text(cell)}; {spent} {'' if kind == 'seconds' else title}"
        ends = (100 * cell.low, 100 * cell.high)
        plot.mark(cost, 100 * cell.mean, view.style(row), name.strip(), y_ends=ends)
    return plot.svg(f"{protocol} against {title}")
