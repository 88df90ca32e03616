"""STAT: statistics that vLLM merges, sends and logs."""

from __future__ import annotations

from collections.abc import Mapping

from kvconform.checks.model import Check
from kvconform.checks.observability import problems, read, taken
from kvconform.engine.events import ChildCall, MetricsObserved, StatisticsRead, StatisticsTaken
from kvconform.engine.history import History


def _both_roles(history: History) -> Mapping[str, int]:
    filled = [event for event in history.of(StatisticsTaken) if event.filled and event.role == "scheduler"]
    worker = any(event.filled and event.role == "worker" for event in history.of(StatisticsTaken))
    return {"statistics of the scheduler role": len(filled) if worker else 0}


def _metrics_observed(history: History) -> Mapping[str, int]:
    return {"payloads given to the metrics": sum(event.payloads for event in history.of(MetricsObserved))}


def _read_below(history: History) -> Mapping[str, int]:
    below = {event.engine for event in history.of(ChildCall)}
    return {"statistics of children read": sum(event.engine in below for event in history.of(StatisticsRead))}


_NONE = "no statistics were handed out"
CHECKS = (
    Check("STAT-01", problems("STAT-01"), taken, _NONE),
    Check("STAT-02", problems("STAT-02"), _both_roles, "the two roles never had statistics both"),
    Check("STAT-03", problems("STAT-03"), read, "no statistics reached the front-end"),
    Check("STAT-04", problems("STAT-04"), read, "no statistics reached the front-end"),
    Check("STAT-05", problems("STAT-05"), _metrics_observed, "no statistics were given to Prometheus metrics"),
    Check("STAT-06", problems("STAT-06"), _read_below, "no child of a MultiConnector had statistics"),
    Check("STAT-07", problems("STAT-07"), taken, _NONE),
    Check("STAT-08", problems("STAT-08"), taken, _NONE),
    Check("STAT-10", problems("STAT-10"), taken, _NONE),
)
