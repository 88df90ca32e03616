"""From a chart to the places of its lines and texts in an SVG picture; the page's template draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvconform.report.bench_section import Chart, Curve, seconds

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 46
#: Colours that the page's style sheet has.
TONES = 6


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in pixels, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve in pixels."""

    name: str
    tone: int
    reference: bool
    #: (x, y, what a pointer that rests on it is told)
    dots: tuple[tuple[float, float, str], ...]

    @property
    def path(self) -> str:
        """For ``<polyline points=...>``."""
        return " ".join(f"{x:g},{y:g}" for x, y, _ in self.dots)


@dataclass(frozen=True)
class Plot:
    """One picture."""

    title: str
    #: What the picture shows, in words.
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class _Scale:
    """Logarithmic: ``low`` and ``high`` of the figures are at ``first`` and ``last`` pixels."""

    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> float:
        """Pixels, rounded so that files of equal figures are equal."""
        part = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return round(self.first + part * (self.last - self.first), 1)


def plot(chart: Chart) -> Plot:
    """The picture of a chart that has at least one point; figures are above 0."""
    counts = sorted({blocks for curve in chart.curves for blocks, _ in curve.points})
    values = [value for curve in chart.curves for _, value in curve.points]
    low, high = (10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values))))
    if low == high:
        low /= 10
    # One count stands in the middle.
    across = _Scale(counts[0] / 1.4, counts[-1] * 1.4, LEFT, WIDTH - RIGHT)
    up = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
    return Plot(
        chart.title,
        _description(chart),
        tuple(Tick(across.at(count), str(count)) for count in counts),
        tuple(Tick(up.at(10.0**decade), _tick(decade, chart.unit)) for decade in decades),
        tuple(_line(curve, chart.unit, across, up) for curve in chart.curves),
    )


def _line(curve: Curve, unit: str, across: _Scale, up: _Scale) -> Line:
    dots = tuple(
        (across.at(blocks), up.at(value), f"{curve.name}, {blocks} blocks: {_figure(value, unit)}")
        for blocks, value in curve.points
    )
    return Line(curve.name, curve.tone % TONES, curve.reference, dots)


def _description(chart: Chart) -> str:
    parts = [
        f"{curve.name}: "
        + ", ".join(f"{_figure(value, chart.unit)} with {blocks} blocks" for blocks, value in curve.points)
        for curve in chart.curves
    ]
    return f"{chart.title} over the number of blocks, both axes logarithmic. {'; '.join(parts)}."


def _figure(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else f"{value:.3g} {unit}"


def _tick(decade: int, unit: str) -> str:
    """A power of ten; of seconds with a unit that leaves at most three digits before the point."""
    if unit != "s":
        return f"{10.0**decade:g}"
    word, power = ("s", 0) if decade >= 0 else ("ms", -3) if decade >= -3 else ("us", -6)
    return f"{10.0 ** (decade - power):g} {word}"
