"""FIN-11 and ORDER-25: what the connector keeps of requests that have ended, told by how they ended.

A memory of the last few requests is legal, and holds requests of every kind. So ids that are still held once the engine
is idle count only if all requests that ended in one way are held and none of those that ran to their end. Such a memory
may begin with the first whole block (keys of blocks, say): only requests for which as many tokens were computed tell.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.calls import finishes
from kvconform.checks.model import Check, Finding
from kvconform.engine.events import EndedIdsHeld, HookCall, Scheduled
from kvconform.engine.history import History

#: Fewer requests of one kind could be those that ended last.
ENOUGH = 3
_NORMAL = "ran to their end"
_NEVER_ASKED = "were aborted before the engine had asked for a match"


def _ways(history: History, engine: int) -> tuple[dict[str, set[str]], Counter[str]]:
    """The requests of an engine by the way in which they ended, and the tokens that were computed for each."""
    asked: set[str] = set()
    ran: Counter[str] = Counter()
    for event in history.events:
        if event.engine != engine:
            continue
        if isinstance(event, Scheduled):
            ran.update(event.scheduled)
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens":
            asked.add(event.args["request"])
    ways: dict[str, set[str]] = defaultdict(set)
    for call in finishes(history):
        request = call.args["request"]
        if call.engine != engine:
            continue
        if call.args["status"] != "FINISHED_ABORTED":
            ways[_NORMAL].add(request)
        elif request in ran:
            ways["were aborted while they ran"].add(request)
        else:
            ways["were aborted before they ran" if request in asked else _NEVER_ASKED].add(request)
    return ways, ran


def _judged(history: History) -> Iterator[tuple[EndedIdsHeld, str, set[str], bool]]:
    """Audits with the ways of ending that can be judged: (audit, way, its requests, whether all are held)."""
    for audit in history.of(EndedIdsHeld):
        (ways, ran), held = _ways(history, audit.engine), set(audit.held)
        normal = ways.pop(_NORMAL, set())
        if normal & held:
            continue
        for way, requests in ways.items():
            most = max(ran[request] for request in requests)
            if len(requests) >= ENOUGH and sum(ran[request] >= most for request in normal) >= ENOUGH:
                yield audit, way, requests, requests <= held


def _kept(rule: str, of: Callable[[str], bool]) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        for audit, way, requests, kept in _judged(history):
            if kept and of(way):
                names = ", ".join(sorted(requests))
                expected = "nothing is kept of requests that have ended, however they ended"
                observed = (
                    f"the ids of all requests that {way} are held by an idle connector ({names}), "
                    f"and none of those that {_NORMAL}"
                )
                yield Finding(rule, expected, observed, audit, requests=tuple(sorted(requests)))
                return

    return find


def _forgotten(of: Callable[[str], bool]) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        found = [len(requests) for _, way, requests, kept in _judged(history) if of(way) and not kept]
        return {"aborted requests that were forgotten": sum(found)}

    return witness


def _early(way: str) -> bool:
    return way == _NEVER_ASKED


def _later(way: str) -> bool:
    return way != _NEVER_ASKED


_MISSING = "no requests of several kinds had ended in an idle engine, or those that ran to their end are kept as well"
CHECKS = (
    Check("ORDER-25", _kept("ORDER-25", _early), _forgotten(_early), _MISSING),
    Check("FIN-11", _kept("FIN-11", _later), _forgotten(_later), _MISSING),
)
