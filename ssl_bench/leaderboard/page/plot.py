"""Pictures as SVG: scales, axes, lines, marks with their data on hover. Colours and dashes are the style sheet's.

A style is a number: its colour is one of COLOURS, its mark one of OUTLINES, so that lines differ without colour, too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import final

from ssl_bench.leaderboard.text import visible

COLOURS = 8
# Of each mark: from its middle to where its outline starts, and the outline.
OUTLINES = (
    (-4.0, 0.0, "a4 4 0 1 0 8 0a4 4 0 1 0-8 0"),
    (-3.6, -3.6, "h7.2v7.2h-7.2z"),
    (0.0, -5.2, "l5.2 5.2-5.2 5.2-5.2-5.2z"),
    (0.0, -4.8, "l4.6 8.4h-9.2z"),
    (0.0, 4.8, "l4.6-8.4h-9.2z"),
    (-1.5, -4.5, "h3v3h3v3h-3v3h-3v-3h-3v-3h3z"),
    (-4.5, -4.5, "h9l-9 9h9z"),
    (0.0, -2.0, "l3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3 2-2z"),
)
SHAPES = len(OUTLINES)
BASELINE = -1  # the style of what was not pretrained
Point = tuple[float, float]


@final
@dataclass(frozen=True)
class Scale:
    """From values to places.

    Args:
        low: Value at the start.
        high: Value at the end, above it.
        start: Place in pixels.
        end: Place in pixels.
        log: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self._put(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / ((high - low) or 1.0)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale, about so many."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1,) if len(decades) > 3 else (1, 2, 5)
            found = [digit * 10.0**decade for decade in decades for digit in digits]
        else:
            rough = (self.high - self.low) / max(1, count) or 1.0
            size = 10.0 ** math.floor(math.log10(rough))
            step = next(size * digit for digit in (1, 2, 5, 10) if size * digit >= rough * 0.999)
            found = [
                step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            ]
        return [value for value in found if self.low * (1 - 1e-9) - 1e-12 <= value <= self.high * (1 + 1e-9) + 1e-12]

    def _put(self, value: float) -> float:
        return math.log10(value) if self.log else value


def around(values: Iterable[float], log: bool = False, floor: float | None = None) -> tuple[float, float]:
    """Ends of a scale that holds the values with a little room; never below the floor."""
    found = [value for value in values if math.isfinite(value) and not (log and value <= 0)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if log:
        return low / 1.15, high * 1.15
    room = (high - low) * 0.06 or abs(high) * 0.06 or 0.5
    low = low - room if floor is None else max(floor, low - room)
    return low, high + room


@final
class Plot:
    """An SVG that grows by what is put on it.

    Args:
        x: Values along the bottom, ends included.
        y: Values along the left.
        x_title: Below.
        y_title: Above the left axis.
        size: Width and height in pixels.
        margins: Left, right, top, bottom.
        log_x: Whether the x axis is logarithmic.
        x_ticks: Place and text of each, where they are not round numbers.
        y_ticks: Likewise; an empty list for none.
    """

    def __init__(
        self,
        x: Point,
        y: Point,
        x_title: str = "",
        y_title: str = "",
        size: tuple[int, int] = (440, 280),
        margins: tuple[int, int, int, int] = (38, 12, 22, 38),
        log_x: bool = False,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        self.width, self.height = size
        left, right, top, bottom = margins
        self.x = Scale(*x, left, self.width - right, log_x)
        self.y = Scale(*y, self.height - bottom, top)
        self.parts: list[str] = []
        self._axes(x_title, y_title, x_ticks, y_ticks)

    def line(self, points: Iterable[Point], style: int, name: str = "") -> None:
        """A line through the points."""
        places = " ".join(f"{self.x(x):.4g},{self.y(y):.4g}" for x, y in points)
        self.parts.append(f'<polyline class="l {tone(style)}" points="{places}">{_title(name)}</polyline>')

    def across(self, y: float, name: str) -> None:
        """A thin level from left to right: a baseline."""
        place = _short(self.y(y))
        self.parts.append(
            f'<path class="base" d="M{_short(self.x.start)} {place}H{_short(self.x.end)}">{_title(name)}</path>'
        )

    def up(self, x: float, name: str) -> None:
        """A thin line from the bottom to the top: a baseline."""
        place = _short(self.x(x))
        self.parts.append(
            f'<path class="base" d="M{place} {_short(self.y.start)}V{_short(self.y.end)}">{_title(name)}</path>'
        )

    def mark(
        self,
        x: float,
        y: float,
        style: int,
        name: str,
        hollow: bool = False,
        x_ends: Point | tuple[()] = (),
        y_ends: Point | tuple[()] = (),
    ) -> None:
        """A mark whose text appear on hover, with an interval of either or both as a line to its sides.

        Args:
            x: Where.
            y: Where.
            style: Of the mark.
            name: Its text on hover.
            hollow: Whether it is an outline alone.
            x_ends: Of an interval, or nothing.
            y_ends: Likewise.
        """
        at, up = self.x(x), self.y(y)
        path = mark_path(at, up, style)
        if x_ends:
            left, right = (self.x(end) for end in x_ends)
            path += f"M{_short(left)} {_short(up)}H{_short(at - 4)}" if left < at - 4 else ""
            path += f"M{_short(at + 4)} {_short(up)}H{_short(right)}" if right > at + 4 else ""
        if y_ends:
            low, high = (self.y(end) for end in y_ends)
            path += f"M{_short(at)} {_short(low)}V{_short(up + 4)}" if low > up + 4 else ""
            path += f"M{_short(at)} {_short(up - 4)}V{_short(high)}" if high < up - 4 else ""
        kind = "m h" if hollow else "m"
        self.parts.append(f'<path class="{kind} {tone(style)}" d="{path}">{_title(name)}</path>')

    def names(self, places: Iterable[tuple[float, str]]) -> None:
        """Words left of the axis, by their y."""
        at = _short(self.x.start - 5)
        texts = (f"<text x={at} y={self.y(y) + 4:.0f}>{escape(visible(text))}</text>" for y, text in places)
        self.parts.append(f"<g text-anchor=end>{''.join(texts)}</g>")

    def label(self, x: float, y: float, text: str, place: str = "start", shift: Point = (0, 0)) -> None:
        """Words at a point: start, middle or end of them."""
        at = f'x="{_short(self.x(x) + shift[0])}" y="{_short(self.y(y) + shift[1])}"'
        anchor = "" if place == "start" else f' text-anchor="{place}"'
        self.parts.append(f"<text {at}{anchor}>{escape(visible(text))}</text>")

    def svg(self, alt: str) -> str:
        """The whole; text for who cannot see it."""
        label = escape(visible(alt), quote=True)
        head = f'<svg class="plot" viewBox="0 0 {self.width} {self.height}" width="{self.width}" role="img"'
        return f'{head} aria-label="{label}">{"".join(self.parts)}</svg>'

    def _axes(
        self,
        x_title: str,
        y_title: str,
        x_ticks: Sequence[tuple[float, str]] | None,
        y_ticks: Sequence[tuple[float, str]] | None,
    ) -> None:
        across = [(v, number(v)) for v in self.x.ticks()] if x_ticks is None else x_ticks
        up = [(v, number(v)) for v in self.y.ticks()] if y_ticks is None else y_ticks
        left, right = _short(self.x.start), _short(self.x.end)
        bottom, top = _short(self.y.start), _short(self.y.end)
        grid = "".join(f"M{left} {_short(self.y(v))}H{right}" for v, _ in up)
        grid += "" if up else "".join(f"M{_short(self.x(v))} {bottom}V{top}" for v, _ in across)
        if grid:
            self.parts.append(f'<path class="grid" d="{grid}"/>')
        self.parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
        below = _short(self.y.start + 14)
        ticks = (f"<text x={self.x(v):.0f} y={below}>{escape(visible(text))}</text>" for v, text in across)
        self.parts.append(f"<g text-anchor=middle>{''.join(ticks)}</g>")
        if up:
            self.names(up)
        if x_title:
            middle = _short((self.x.start + self.x.end) / 2)
            place = f'x="{middle}" y="{self.height - 4}" text-anchor="middle"'
            self.parts.append(f'<text class="q" {place}>{escape(visible(x_title))}</text>')
        if y_title:
            self.parts.append(f'<text class="q" x="2" y="11">{escape(visible(y_title))}</text>')


def tone(style: int) -> str:
    """The class of a style's colour."""
    return "b" if style == BASELINE else f"s{style % COLOURS}"


def mark_path(x: float, y: float, style: int) -> str:
    """Outline of a style's mark around a point: the next one where its colour comes around again."""
    dx, dy, outline = OUTLINES[(style + style // COLOURS) % SHAPES if style >= 0 else 0]
    return f"M{_short(x + dx)} {_short(y + dy)}{outline}"


def legend(names: Iterable[tuple[str, int]]) -> str:
    """A list of names with their marks."""
    items = "".join(
        f"<li><svg width=12 height=12 aria-hidden=true>"
        f'<path class="m {tone(style)}" d="{mark_path(6, 6, style)}"/></svg>{bdi(name)}'
        for name, style in names
    )
    return f'<ul class="legend">{items}</ul>'


def bdi(text: str) -> str:
    """Text and never markup; isolated, so that one written from right to left turns nothing beside it around."""
    shown = escape(visible(text))
    return shown if shown.isascii() else f"<bdi>{shown}</bdi>"


def number(value: float) -> str:
    """A tick's text: 0.5, 20, 3k, 2M, 1e+15."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size * 0.9999 <= abs(value) < size * 1000:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if abs(value) < 1e12 else f"{value:.0e}"


def shortened(name: str, length: int) -> str:
    """A name that fits."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _title(text: str) -> str:
    return f"<title>{escape(visible(text))}</title>" if text else ""
