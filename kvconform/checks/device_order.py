"""The order of work on a device: what was seen of it. Wrong bytes tell of a missing wait (scenario.device_order)."""

from __future__ import annotations

from collections.abc import Mapping

from kvconform.checks.model import Check, no_finding
from kvconform.engine.byte_events import Compared
from kvconform.engine.events import HeldBack, Scheduled
from kvconform.engine.history import History


def _saved(history: History) -> Mapping[str, int]:
    """What was begun before its kernels had run counts only if something was loaded afterwards."""
    early = [event for event in history.of(HeldBack) if event.before == "saves" and event.unfinished]
    loaded = _loaded_after(history, early[0]) if early else 0
    return (
        {"saves begun before their kernels had run": len(early), "tokens loaded afterwards": loaded} if loaded else {}
    )


def _loaded(history: History) -> Mapping[str, int]:
    slow = [event for event in history.of(HeldBack) if event.before == "loads" and event.what == "copies"]
    late = {
        (event.engine, event.step)
        for event in history.of(HeldBack)
        if event.before == "loads" and event.cleared and event.unfinished
    }
    late &= {(event.engine, event.step) for event in history.of(Scheduled) if event.sync_loads}
    cleared = sum(event.external_tokens for event in history.of(Compared) if (event.engine, event.step) in late)
    return {
        "tokens loaded by slow copies": _loaded_after(history, slow[0]) if slow else 0,
        "tokens loaded into blocks that were cleared late": cleared,
    }


def _loaded_after(history: History, event: HeldBack) -> int:
    """Tokens that requests had from the connector from that step on, each once."""
    most: dict[tuple[int, str], int] = {}
    for compared in history.of(Compared):
        if (compared.engine, compared.step) >= (event.engine, event.step):
            key = (compared.engine, compared.request)
            most[key] = max(most.get(key, 0), compared.external_tokens)
    return sum(most.values())


CHECKS: tuple[Check, ...] = (
    Check(
        "SAVE-14",
        no_finding,
        _saved,
        "nothing that was saved before its kernels had run was loaded afterwards",
    ),
    Check(
        "LOAD-12",
        no_finding,
        _loaded,
        "no load was slow, and none went into blocks that the device had yet to clear",
    ),
)
