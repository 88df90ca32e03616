"""PRE: blocks that are taken away in the middle, and requests that come back with others."""

from __future__ import annotations

from collections.abc import Mapping

from kvconform.checks.model import Check, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.events import Scheduled
from kvconform.engine.history import History


def _preempted(history: History) -> list[int]:
    """How many requests each step preempted."""
    return [len(step.preempted) for step in history.of(Scheduled)]


def _lost(history: History) -> Mapping[str, int]:
    lost = sum(_preempted(history))
    return {"preemptions before compared loads": lost if external_tokens(history) else 0}


def _all_at_once(history: History) -> Mapping[str, int]:
    most = max(_preempted(history), default=0)
    return {"requests preempted at once": most if most > 1 and external_tokens(history) else 0}


CHECKS = (
    Check("PRE-02", no_finding, _lost, "no request was preempted before a load whose bytes were compared"),
    Check("PRE-08", no_finding, _all_at_once, "no step had several preempted requests"),
)
