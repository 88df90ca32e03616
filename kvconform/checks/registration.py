"""LAY: registering the KV caches of any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.model import Check, Finding
from kvconform.engine.events import EngineRaised
from kvconform.engine.history import History


def _stumbled(history: History) -> Iterator[Finding]:
    """A model may be refused, in a sentence; a look-up that fails by itself refuses nothing."""
    for event in history.of(EngineRaised):
        if event.during == "start-up" and event.cause_hook == "register_kv_caches" and event.stumbled:
            expected = "register_kv_caches accepts every layer that it gets, or refuses the model in a sentence"
            observed = f"a look-up in it failed: {event.error} ({event.where})"
            yield Finding("LAY-01", expected, observed, event)


def _accepted(history: History) -> Mapping[str, int]:
    calls = (call for call in history.calls("register_kv_caches") if call.error is None)
    return {"layers registered": sum(len(call.args["layers"]) for call in calls)}


CHECKS = (Check("LAY-01", _stumbled, _accepted, "no registration was accepted"),)
