"""What is kept of requests that have ended, on hand-made histories."""

from __future__ import annotations

import pytest
from histories import broken, witness

from kvconform.engine.history import EndedIdsHeld, Event, HookCall, Scheduled


def ended(request: str, status: str = "FINISHED_STOPPED") -> HookCall:
    args = {"request": request, "status": status, "block_ids": [1]}
    return HookCall(1, 2, "scheduler", "request_finished", args, (False, None))


def lives(*requests: str) -> tuple[Event, ...]:
    return (Scheduled(1, 1, {}, dict.fromkeys(requests, 1)), *map(ended, requests))


def aborted(*requests: str, ran: bool = True) -> tuple[Event, ...]:
    before = (Scheduled(1, 1, {}, dict.fromkeys(requests, 1)),) if ran else ()
    return (*before, *(ended(request, "FINISHED_ABORTED") for request in requests))


NORMAL = lives("n1", "n2", "n3")


@pytest.mark.parametrize(("ran", "rule"), [(True, "FIN-11"), (False, "ORDER-25")])
def test_all_requests_of_one_kind_are_kept_and_none_of_the_others(ran: bool, rule: str) -> None:
    leavers = aborted("a1", "a2", "a3", ran=ran)
    assert broken(*NORMAL, *leavers, EndedIdsHeld(1, 3, 6, ("a1", "a2", "a3"))) == [rule]


@pytest.mark.parametrize("held", [(), ("a3",), ("a1", "a2", "a3", "n3"), ("n1", "n2", "n3")])
def test_memory_of_the_latest_requests_is_legal(held: tuple[str, ...]) -> None:
    assert broken(*NORMAL, *aborted("a1", "a2", "a3"), EndedIdsHeld(1, 3, 6, held)) == []


def test_too_few_requests_prove_nothing() -> None:
    assert broken(*NORMAL, *aborted("a1", "a2"), EndedIdsHeld(1, 3, 5, ("a1", "a2"))) == []


def test_requests_that_were_forgotten_are_the_witness() -> None:
    events = (*NORMAL, *aborted("a1", "a2", "a3"))
    assert witness("FIN-11", *events, EndedIdsHeld(1, 3, 6, ("a3",))) == 3
    assert witness("FIN-11", *events, EndedIdsHeld(1, 3, 6, ("n1", "a3"))) == 0
