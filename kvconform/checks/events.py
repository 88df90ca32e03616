"""EVT: events that tell routers which blocks a connector's store holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.model import Check, Finding
from kvconform.checks.observability import problems, published
from kvconform.engine.history import History


def _taken_once(history: History) -> Iterator[Finding]:
    for call in history.calls("take_events"):
        if call.error is None and call.result is None:
            yield Finding("EVT-01", "an iterable, empty if there are no events", "take_events returned None", call)
            return
    yield from problems("EVT-01")(history)


def _workers(history: History) -> Mapping[str, int]:
    calls = history.calls("get_kv_connector_kv_cache_events")
    return {"collections of worker events": sum(call.error is None and call.result is not None for call in calls)}


_NONE = "no event was published"
CHECKS = (
    Check("EVT-01", _taken_once, published, _NONE),
    Check("EVT-02", problems("EVT-02"), published, _NONE),
    Check("EVT-03", problems("EVT-03"), _workers, "no worker handed out events"),
    Check("EVT-04", problems("EVT-04"), _workers, "no worker handed out events"),
    Check("EVT-07", problems("EVT-07"), published, _NONE),
    Check("EVT-08", problems("EVT-08"), published, _NONE),
)
