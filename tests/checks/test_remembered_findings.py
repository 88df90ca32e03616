"""What is kept of requests that have ended, on hand-made histories."""

from __future__ import annotations

import pytest
from histories import broken, found, match, witness

from kvconform.engine.events import EndedIdsHeld, Event, HookCall, Scheduled


def ended(request: str, status: str = "FINISHED_STOPPED", engine: int = 1) -> HookCall:
    args = {"request": request, "status": status, "block_ids": [1]}
    return HookCall(engine, 2, "scheduler", "request_finished", args, (False, None))


def lives(*requests: str) -> tuple[Event, ...]:
    return (Scheduled(1, 1, {}, dict.fromkeys(requests, 1)), *map(ended, requests))


def aborted(*requests: str, ran: bool = True, asked: bool = False) -> tuple[Event, ...]:
    before: tuple[Event, ...] = (Scheduled(1, 1, {}, dict.fromkeys(requests, 1)),) if ran else ()
    queries = (match((0, False), request=request) for request in requests if asked)
    return (*before, *queries, *(ended(request, "FINISHED_ABORTED") for request in requests))


NORMAL = lives("n1", "n2", "n3")
LEAVERS = ("a1", "a2", "a3")


@pytest.mark.parametrize(
    ("ran", "asked", "rule", "way"),
    [
        (True, True, "FIN-11", "were aborted while they ran"),
        (False, True, "FIN-11", "were aborted before they ran"),
        (False, False, "ORDER-25", "were aborted before the engine had asked for a match"),
    ],
)
def test_all_requests_of_one_kind_are_kept_and_none_of_the_others(ran: bool, asked: bool, rule: str, way: str) -> None:
    events = (*NORMAL, *aborted(*LEAVERS, ran=ran, asked=asked), EndedIdsHeld(1, 3, 6, LEAVERS))
    assert broken(*events) == [rule]
    (finding,) = found(rule, *events)
    assert finding.requests == LEAVERS
    assert f"all requests that {way} are held" in finding.observed


@pytest.mark.parametrize("held", [(), ("a3",), ("a1", "a2", "a3", "n3"), ("n1", "n2", "n3")])
def test_memory_of_the_latest_requests_is_legal(held: tuple[str, ...]) -> None:
    assert broken(*NORMAL, *aborted(*LEAVERS), EndedIdsHeld(1, 3, 6, held)) == []


def test_too_few_requests_prove_nothing() -> None:
    assert broken(*NORMAL, *aborted("a1", "a2"), EndedIdsHeld(1, 3, 5, ("a1", "a2"))) == []
    assert broken(*lives("n1", "n2"), *aborted(*LEAVERS), EndedIdsHeld(1, 3, 5, LEAVERS)) == []
    assert broken(*NORMAL, *aborted("a1", "a2", "a1"), EndedIdsHeld(1, 3, 5, ("a1", "a2"))) == []


def test_requests_for_which_less_was_computed_are_no_comparison() -> None:
    """A connector may keep the keys of the last requests that had a whole block."""
    longer = (Scheduled(1, 2, {}, dict.fromkeys(LEAVERS, 1)), *aborted(*LEAVERS), EndedIdsHeld(1, 3, 6, LEAVERS))
    assert broken(*NORMAL, *longer) == []
    assert broken(Scheduled(1, 1, {}, {"n1": 1, "n2": 1}), *NORMAL, *longer) == []
    assert broken(Scheduled(1, 1, {}, {"n1": 1, "n2": 1, "n3": 1}), *NORMAL, *longer) == ["FIN-11"]
    one_longer = (Scheduled(1, 2, {}, {"a2": 1}), *aborted(*LEAVERS), EndedIdsHeld(1, 3, 6, LEAVERS))
    assert broken(*NORMAL, *one_longer) == []


def test_each_engine_is_judged_by_its_own_requests() -> None:
    """What another engine was asked, ran and ended is nothing to this one, and hides nothing of it."""
    others = (match((0, False), request="a1", engine=2), Scheduled(2, 1, {}, {"a1": 1}), ended("x", engine=2))
    events = (*others, *NORMAL, *aborted(*LEAVERS, ran=False))
    assert broken(*events, EndedIdsHeld(1, 3, 6, LEAVERS)) == ["ORDER-25"]
    assert broken(*events, EndedIdsHeld(2, 3, 6, LEAVERS)) == []
    assert broken(*others, *NORMAL, *aborted(*LEAVERS), EndedIdsHeld(1, 3, 6, LEAVERS)) == ["FIN-11"]


def test_audit_that_shows_nothing_does_not_hide_one_that_does() -> None:
    events = (*NORMAL, *aborted(*LEAVERS))
    assert broken(*events, EndedIdsHeld(1, 3, 6, ("n1",)), EndedIdsHeld(1, 4, 6, LEAVERS)) == ["FIN-11"]


def test_requests_that_were_forgotten_are_the_witness_of_the_rule_of_their_end() -> None:
    events = (*NORMAL, *aborted(*LEAVERS))
    assert witness("FIN-11", *events, EndedIdsHeld(1, 3, 6, ("a3",))) == 3
    assert witness("FIN-11", *events, EndedIdsHeld(1, 3, 6, ("n1", "a3"))) == 0
    assert witness("FIN-11", *events, EndedIdsHeld(1, 3, 6, LEAVERS)) == 0
    assert witness("ORDER-25", *events, EndedIdsHeld(1, 3, 6, ("a3",))) == 0
    assert witness("ORDER-25", *NORMAL, *aborted(*LEAVERS, ran=False), EndedIdsHeld(1, 3, 6, ())) == 3
