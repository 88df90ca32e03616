"""ROLE: what crosses the process boundary between scheduler and worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.model import Check, Finding
from kvconform.engine.events import Crossing
from kvconform.engine.history import History

_EXPECTED = "an object that the standard pickler takes, as vLLM's message queue needs it"


def _unpicklable(rule: str, what: str) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        for event in history.of(Crossing):
            if event.what == what and event.error is not None:
                yield Finding(rule, _EXPECTED, f"pickling the {what} raised {event.error}", event)

    return find


def _crossed(what: str) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        return {f"{what} pickled": sum(event.what == what and event.error is None for event in history.of(Crossing))}

    return witness


CHECKS = tuple(
    Check(rule, _unpicklable(rule, what), _crossed(what), f"no {what} crossed between the roles")
    for rule, what in (
        ("ROLE-06", "scheduler output"),
        ("ROLE-08", "worker output"),
        ("ROLE-09", "handshake metadata"),
    )
)
