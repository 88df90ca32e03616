"""MATCH-15: requests whose every token has to be computed, as those for prompt log probabilities, get no external KV.

Since 0.31.0 the scheduler asks the connector about them, too, and drops the answer (Scheduler.schedule, 0.32.0). So
what tells is whether their KV arrives in slots that they have yet to compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from kvconform.checks.calls import offered
from kvconform.checks.loads import block_sizes
from kvconform.checks.model import Check, Finding
from kvconform.checks.transfer import place
from kvconform.engine.byte_events import Compared, Stray
from kvconform.engine.events import Event, HookCall, ProgramAction, Scheduled
from kvconform.engine.history import History

_EXPECTED = "all tokens of {} are computed: it must not be served from any cache (skip_reading_prefix_cache)"


def _served(history: History) -> Iterator[Finding]:
    """The first load of each such request that the engine did not ask for, or that it was made to ask for."""
    told: set[tuple[int, str]] = set()
    barred: dict[tuple[int, str], bool] = {}
    offers: Counter[tuple[int, str]] = Counter()
    for event in history.events:
        if isinstance(event, ProgramAction) and event.action == "add":
            # An id may be that of an earlier request which was another matter.
            barred[event.engine, event.detail["request"]] = bool(event.detail.get("takes_no_cache"))
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens":
            offers[event.engine, event.args["request"]] = offered(event)
        elif isinstance(event, HookCall) and event.hook == "update_state_after_alloc":
            key, tokens = (event.engine, event.args["request"]), event.args["num_external_tokens"]
            # Up to 0.30.0 the scheduler takes the answer as it is.
            if tokens > 0 and barred.get(key) and key not in told:
                told.add(key)
                yield _finding(event, key[1], f"{tokens} of them were offered, and are loaded")
        elif isinstance(event, Stray) and event.barred:
            (request,) = event.owners
            if (event.engine, request) not in told:
                told.add((event.engine, request))
                answer = offers[event.engine, request]
                what = f": {event.observed[0]}" if event.observed else ""
                yield _finding(
                    event,
                    request,
                    f"{answer} were offered and 0 allocated, and still {place(event)} was loaded {event.phase}{what}",
                )


def _finding(at: Event, request: str, observed: str) -> Finding:
    return Finding("MATCH-15", _EXPECTED.format(request), observed, at, requests=(request,))


def _computed_all_the_same(history: History) -> Mapping[str, int]:
    """Such requests whose first block the engine had loaded for another one, or that a producer has a hand-off for."""
    requests: dict[tuple[int, str], tuple[tuple[int, ...], bool]] = {}
    loaded: set[tuple[int, tuple[int, ...]]] = set()
    handed_off: set[tuple[int, str]] = set()
    computed: set[tuple[int, str]] = set()
    for event in history.events:
        if isinstance(event, ProgramAction) and event.action == "add":
            block = tuple(event.detail.get("tokens", ()))[: block_sizes(history, event.engine)[0]]
            requests[event.engine, event.detail["request"]] = (block, bool(event.detail.get("takes_no_cache")))
        elif isinstance(event, ProgramAction) and event.action == "hand off" and event.detail["delivered"]:
            handed_off.add((event.engine, event.detail["request"]))
        elif isinstance(event, Compared) and event.external_tokens and (event.engine, event.request) in requests:
            loaded.add((event.engine, requests[event.engine, event.request][0]))
        elif isinstance(event, Scheduled):
            for key in requests.keys() & {(event.engine, request) for request in event.new}:
                first, barred = requests[key]
                if barred and ((event.engine, first) in loaded or key in handed_off):
                    computed.add(key)
    return {"requests that had to be computed although their prefix is stored": len(computed)}


CHECKS = (
    Check(
        "MATCH-15",
        _served,
        _computed_all_the_same,
        "nothing was loaded of a prompt that another request then asked for without any cache",
    ),
)
