"""What the checks of statistics and of events share: problems that the engine has written down beside its events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.model import Finding
from kvconform.engine.events import EventsPublished, MetricsObserved, StatisticsRead, StatisticsTaken
from kvconform.engine.history import History

_KINDS = (StatisticsTaken, StatisticsRead, MetricsObserved, EventsPublished)


def _with_problems(history: History) -> list[StatisticsTaken | StatisticsRead | MetricsObserved | EventsPublished]:
    return [event for event in history.events if isinstance(event, _KINDS) and event.problems]


def problems(rule: str) -> Callable[[History], Iterator[Finding]]:
    """The problems that were noted for a rule, the first of them."""

    def find(history: History) -> Iterator[Finding]:
        for event in history.derived(_with_problems):
            for broken, expected, observed in event.problems:
                if broken == rule:
                    yield Finding(rule, expected, observed, event)
                    return

    return find


def taken(history: History) -> Mapping[str, int]:
    """Statistics with something in them."""
    return {"filled statistics taken": sum(event.filled for event in history.of(StatisticsTaken))}


def read(history: History) -> Mapping[str, int]:
    """Statistics that went the whole way."""
    return {"statistics rebuilt in the front-end": sum(not event.problems for event in history.of(StatisticsRead))}


def published(history: History) -> Mapping[str, int]:
    """Blocks that events have named."""
    return {"blocks named by events": sum(event.stored + event.removed for event in history.of(EventsPublished))}
