"""STAT: statistics that vLLM merges, sends and logs."""

from __future__ import annotations

from collections.abc import Mapping

from kvconform.checks.model import Check
from kvconform.checks.observability import problems, read, taken
from kvconform.engine.history import History, StatisticsTaken


def _both_roles(history: History) -> Mapping[str, int]:
    filled = [event for event in history.of(StatisticsTaken) if event.filled and event.role == "scheduler"]
    worker = any(event.filled and event.role == "worker" for event in history.of(StatisticsTaken))
    return {"statistics of the scheduler role": len(filled) if worker else 0}


_NONE = "no statistics were handed out"
CHECKS = (
    Check("STAT-01", problems("STAT-01"), taken, _NONE),
    Check("STAT-02", problems("STAT-02"), _both_roles, "the two roles never had statistics both"),
    Check("STAT-03", problems("STAT-03"), read, "no statistics reached the front-end"),
    Check("STAT-04", problems("STAT-04"), read, "no statistics reached the front-end"),
    Check("STAT-07", problems("STAT-07"), taken, _NONE),
    Check("STAT-08", problems("STAT-08"), taken, _NONE),
    Check("STAT-10", problems("STAT-10"), taken, _NONE),
)
