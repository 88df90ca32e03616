"""``--kvconform-bench`` in the forms of the report: tables, lines of text, and what the plots show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kvconform.bench.figures import Cost, Measured, Measurement, Rate, When
from kvconform.bench.plan import HYBRID
from kvconform.report.document import plural

#: How a figure is marked whose rounds lie far from each other.
DOUBTFUL = "?"
MARK = (
    f"{DOUBTFUL}: doubtful, the middle half of the rounds spreads over more than a quarter of the median, "
    "there were fewer than three, or the figure is beyond memcpy"
)
TOO_FAST = "faster than memcpy: no byte is copied, or the work goes on after the engine is told that it is over"
WORDS: dict[When, str] = {"decode": "nothing to transfer", "store": "saving", "load": "loading"}
NO_FIGURE = "-"
#: Figures that are not drawn: nothing that was measured is so small.
LEAST = 1e-9


@dataclass(frozen=True)
class Table:
    """Texts in rows; the first ``names`` columns are names, the others figures."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 2


def tables(measurement: Measurement) -> tuple[Table, ...]:
    """Bandwidth, hooks per step, and hooks per request of each layout; without what was not measured."""
    cases = _measured(measurement)
    if not cases:
        return ()
    return (_bandwidth(cases), _steps(cases), *(_hooks(layout, cases) for layout in _layouts(cases)))


def intro(measurement: Measurement) -> Iterator[str]:
    """Where it was measured, and what to think of it."""
    if measurement.reason:
        yield measurement.reason
        return
    if _measured(measurement):
        yield (
            f"Measured on {measurement.device}, torch on {plural(measurement.threads, 'thread')}, "
            f"{plural(measurement.cores, 'core')}; taking the time adds {seconds(measurement.clock)} to a hook call."
        )
        if measurement.others is None:
            yield "How busy the machine was with other work is not known."
    if measurement.busy:
        yield (
            f"The machine was busy: other processes took {measurement.others:.1f} cores on average. "
            "Read all figures with care."
        )


def remarks(measurement: Measurement) -> Iterator[str]:
    """What was not measured and why, and what to know about figures; each sentence once."""
    some = _layouts(_measured(measurement))
    for case in measurement.cases:
        if case.problem:
            where = f", from {plural(case.blocks, 'block')} on" if case.layout in some else ""
            yield f"{case.layout}{where}: not measured: {case.problem}"
    said: dict[tuple[str, str], list[str]] = {}
    for case in _measured(measurement):
        for what, rate in (("save", case.save), ("load", case.load)):
            for note in filter(None, (rate.note, TOO_FAST if rate.too_fast else "")):
                said.setdefault((what, note), []).append(f"{case.layout} {case.blocks}")
    everywhere = len(_measured(measurement))
    for (what, note), places in said.items():
        yield f"{what}: {note}" + ("" if len(places) == everywhere else f" ({', '.join(places)})")
    loads = [case for case in _measured(measurement) if case.load.rounds]
    if loads:
        ways = {"asynchronous" if case.asynchronous_load else "synchronous" for case in loads}
        yield f"Loads were {' and '.join(sorted(ways))}."
    if HYBRID in some:
        yield f"{HYBRID}: of a sliding window only the blocks that a load needs count, for the save too."
    if any(case.held_for_save for case in _measured(measurement)):
        yield "A save ends when the connector lets go of the request, of its blocks, and has no work left."


def terminal_lines(target: str, measurement: Measurement) -> Iterator[str]:
    """Everything for a terminal; the hooks of the first layout only, the report has them all."""
    yield f"{target}: figures for information, no verdict"
    yield from (f"  {line}" for line in intro(measurement))
    found = tables(measurement)
    for table in found[:3]:
        yield ""
        yield from (f"  {line}" for line in text_of(table))
    doubtful = any(DOUBTFUL in cell for table in found for row in table.rows for cell in row)
    notes = [*([MARK] if doubtful else []), *remarks(measurement)]
    if notes:
        yield ""
        yield from (f"  {line}" for line in notes)


def text_of(table: Table) -> Iterator[str]:
    """A table in columns, names to the left and figures to the right."""
    rows = (table.head, *table.rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    yield table.caption
    for row in rows:
        cells = [
            cell.ljust(width) if column < table.names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f" {'  '.join(cells)}".rstrip()


def seconds(value: float) -> str:
    """``"12.3 us"``, ``"1.23 s"``."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{_three(value * 1e6)} us"


def size(count: int) -> str:
    """``"512 KiB"``."""
    return f"{_three(count / (1 << 20))} MiB" if count >= 1 << 20 else f"{_three(count / 1024)} KiB"


# -- tables ------------------------------------------------------------------------------------------------------------


def _measured(measurement: Measurement) -> list[Measured]:
    return [case for case in measurement.cases if not case.problem]


def _layouts(cases: Sequence[Measured]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(case.layout for case in cases))


def _bandwidth(cases: Sequence[Measured]) -> Table:
    head = ("layout", "blocks", "KV", "save", "of memcpy", "load", "of memcpy", "memcpy")
    rows = [
        (
            case.layout,
            str(case.blocks),
            size(case.blocks * case.bytes_per_block),
            *_rate(case.save),
            *_rate(case.load),
            _rate(case.memcpy)[0],
        )
        for case in cases
    ]
    return Table("Bandwidth, GB/s, median of the rounds", head, tuple(rows))


def _rate(rate: Rate) -> tuple[str, str]:
    if not rate.rounds:
        return NO_FIGURE, NO_FIGURE
    mark = f" {DOUBTFUL}" if rate.doubtful else ""
    share = 100 * rate.share_of_memcpy
    return f"{_three(rate.gb_per_second)}{mark}", f"{share:.0f}%" if share >= 10 else f"{share:.1f}%"


def _steps(cases: Sequence[Measured]) -> Table:
    head = ("layout", "blocks", *WORDS.values())
    rows = [
        (case.layout, str(case.blocks), *(_cost(case.steps, "worker hooks", when) for when in WORDS)) for case in cases
    ]
    return Table("Worker-side hooks in an engine step, median (95th percentile)", head, tuple(rows))


def _hooks(layout: str, cases: Sequence[Measured]) -> Table:
    own = [case for case in cases if case.layout == layout]
    pairs = dict.fromkeys((cost.what, cost.when) for case in own for cost in case.hooks)
    head = ("hook", "request", *(plural(case.blocks, "block") for case in own))
    rows = [(what, WORDS[when], *(_cost(case.hooks, what, when) for case in own)) for what, when in pairs]
    return Table(f"Scheduler-side hooks per call, {layout}, median (95th percentile)", head, tuple(rows))


def _cost(costs: Sequence[Cost], what: str, when: When) -> str:
    found = next((cost for cost in costs if (cost.what, cost.when) == (what, when)), None)
    return NO_FIGURE if found is None else f"{seconds(found.median)} ({seconds(found.p95)})"


def _three(value: float) -> str:
    """Three significant digits at most, without an exponent."""
    if value == 0:
        return "0"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


# -- plots -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One curve: its name, a number for its colour, whether it is a line of reference, and (blocks, figure) points."""

    name: str
    tone: int
    reference: bool
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Chart:
    """Curves over the number of blocks, both axes logarithmic."""

    title: str
    unit: Literal["GB/s", "s"]
    curves: tuple[Curve, ...]


def charts(measurement: Measurement) -> tuple[Chart, ...]:
    """Save and load bandwidth with memcpy beside them, and what hooks add to a step; without empty ones."""
    cases = _measured(measurement)
    found = (
        _bandwidth_chart("Save", cases, lambda case: case.save),
        _bandwidth_chart("Load", cases, lambda case: case.load),
        _steps_chart(cases),
    )
    return tuple(chart for chart in found if any(not curve.reference for curve in chart.curves))


def _bandwidth_chart(what: str, cases: Sequence[Measured], rate_of: Callable[[Measured], Rate]) -> Chart:
    curves: list[Curve] = []
    for tone, layout in enumerate(_layouts(cases)):
        own = [case for case in cases if case.layout == layout and rate_of(case).rounds]
        for name, reference, of in ((layout, False, rate_of), (f"memcpy, {layout}", True, lambda case: case.memcpy)):
            points = tuple((case.blocks, of(case).gb_per_second) for case in own)
            curves += _curve(name, tone, points, reference=reference)
    return Chart(f"{what} bandwidth, GB/s", "GB/s", tuple(curves))


def _steps_chart(cases: Sequence[Measured]) -> Chart:
    """Of the first layout: the three kinds of steps differ by orders of magnitude, layouts do not."""
    layout = cases[0].layout if cases else ""
    curves: list[Curve] = []
    for tone, (when, words) in enumerate(WORDS.items()):
        points = tuple(
            (case.blocks, cost.median)
            for case in cases
            for cost in case.steps
            if case.layout == layout and cost.when == when
        )
        curves += _curve(words, tone, points)
    return Chart(f"Worker-side hooks in a step, {layout}", "s", tuple(curves))


def _curve(name: str, tone: int, points: Sequence[tuple[int, float]], *, reference: bool = False) -> list[Curve]:
    """A curve of what a logarithmic axis has a place for; none without a point."""
    drawn = tuple((blocks, value) for blocks, value in points if value > LEAST)
    return [Curve(name, tone, reference, drawn)] if drawn else []
