"""PRE: blocks that are taken away in the middle, and requests that come back with others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kvconform.checks.model import Check, Finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.history import History, HookCall, Scheduled


@dataclass
class _Seen:
    """Per engine: who has run, how many lost their blocks by a preemption, and how many of them were loaded again."""

    ran: set[str] = field(default_factory=set)
    matched: dict[str, bool] = field(default_factory=dict)
    lost: int = 0
    reloaded: int = 0
    most_at_once: int = 0


def _seen(history: History) -> Iterator[_Seen]:
    engines: dict[int, _Seen] = {}
    for event in history.events:
        seen = engines.setdefault(event.engine, _Seen())
        if isinstance(event, Scheduled):
            seen.lost += len(event.preempted)
            seen.most_at_once = max(seen.most_at_once, len(event.preempted))
            seen.ran = (seen.ran - set(event.finished)) | set(event.scheduled)
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens":
            seen.matched[event.args["request"]] = isinstance(event.result, tuple) and bool(event.result[-1])
        elif isinstance(event, HookCall) and event.hook == "update_state_after_alloc":
            request = event.args["request"]
            # Only a preemption brings one that has run back to a load.
            again = event.args["num_external_tokens"] > 0 and request in seen.ran
            seen.reloaded += again and seen.matched.get(request, False)
    return iter(engines.values())


def _nothing(_: History) -> Iterator[Finding]:
    """Shows by contrast only: a family binds its symptoms to the rule."""
    return iter(())


def _lost(history: History) -> Mapping[str, int]:
    lost = sum(seen.lost for seen in _seen(history))
    return {"preemptions before compared loads": lost if external_tokens(history) else 0}


def _reloaded(history: History) -> Mapping[str, int]:
    return {"asynchronous loads of preempted requests": sum(seen.reloaded for seen in _seen(history))}


def _all_at_once(history: History) -> Mapping[str, int]:
    most = max((seen.most_at_once for seen in _seen(history)), default=0)
    return {"requests preempted at once": most if most > 1 and external_tokens(history) else 0}


CHECKS = (
    Check("PRE-02", _nothing, _lost, "no request was preempted before a load whose bytes were compared"),
    Check("PRE-05", _nothing, _reloaded, "no preempted request was loaded asynchronously"),
    Check("PRE-08", _nothing, _all_at_once, "no step had several preempted requests"),
)
