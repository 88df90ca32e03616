"""Requests that get no external KV, on hand-made histories: what breaks MATCH-15, and what shows that it was kept."""

from __future__ import annotations

import pytest
from histories import alloc, broken, compared, ended, found, match, stray, witness

from kvconform.engine.events import EngineStarted, Event, ProgramAction, Scheduled

PROMPT = tuple(range(40))


def add(request: str, tokens: tuple[int, ...] = PROMPT, *, engine: int = 1, barred: bool = False) -> ProgramAction:
    detail = {"request": request, "tokens": list(tokens)} | ({"takes_no_cache": True} if barred else {})
    return ProgramAction(engine, 0, "add", detail)


def begun(request: str, engine: int = 1) -> Scheduled:
    return Scheduled(engine, 2, {request: 0}, {request: 40}, new=(request,))


LOADED = (add("plain"), compared(32, request="plain"))
SCORED = (add("scored", barred=True), begun("scored"))


def test_load_that_nobody_asked_for_is_told_once_with_what_was_offered() -> None:
    writes = (stray(9, "scored", barred=True, observed=("tokens 0-1 hold plain's",)), stray(10, "scored", barred=True))
    events = (add("scored", barred=True), match((32, False), request="scored"), alloc(0, request="scored"), *writes)
    (finding,) = found("MATCH-15", *events)
    assert finding.observed.startswith("32 were offered and 0 allocated, and still block 9 slots 0-1 of layer ")
    assert finding.observed.endswith("was loaded while saving: tokens 0-1 hold plain's")
    assert (finding.requests, finding.symptom) == (("scored",), False)
    assert broken(*events) == ["MATCH-15"], "it is no other stray write besides"


def test_load_that_an_older_engine_was_made_to_ask_for_is_told() -> None:
    (finding,) = found("MATCH-15", add("scored", barred=True), alloc(32, request="scored"))
    assert finding.observed == "32 of them were offered, and are loaded"


def test_load_of_a_single_token_that_an_older_engine_was_made_to_ask_for_is_told() -> None:
    (finding,) = found("MATCH-15", add("scored", barred=True), alloc(1, request="scored"))
    assert finding.observed == "1 of them were offered, and are loaded"


def test_load_that_an_older_engine_asks_for_again_after_a_preemption_is_told_once() -> None:
    first, again = (
        (match((32, False), request="scored", step=step), alloc(32, request="scored", step=step)) for step in (2, 4)
    )
    preempted = Scheduled(1, 3, {}, {}, preempted=("scored",))
    (finding,) = found("MATCH-15", add("scored", barred=True), *first, preempted, *again)
    assert finding.at.step == 2


def test_request_that_may_be_loaded_under_the_id_of_an_earlier_one_that_may_not_is_none_of_its_business() -> None:
    events = (add("r1", barred=True), begun("r1"), ended("r1", 2), add("r1"))
    events = (*events, match((32, False), step=3), alloc(32, step=3))
    assert not found("MATCH-15", *events)


@pytest.mark.parametrize(
    "event",
    [alloc(32, request="plain"), alloc(0, request="scored"), alloc(32, request="scored", engine=2)],
    ids=["another request", "no tokens", "another engine"],
)
def test_other_allocations_are_none_of_its_business(event: Event) -> None:
    assert not found("MATCH-15", add("plain"), add("scored", barred=True), event)


def test_request_that_is_computed_behind_a_load_of_its_prefix_is_the_witness() -> None:
    assert witness("MATCH-15", *LOADED, *SCORED) == 1
    assert witness("MATCH-15", *SCORED, *LOADED) == 0, "what is loaded later may have been stored by it"
    assert witness("MATCH-15", *LOADED, add("other", PROMPT[::-1], barred=True), begun("other")) == 0
    assert witness("MATCH-15", *LOADED, add("plain2"), begun("plain2")) == 0
    assert witness("MATCH-15", *LOADED, SCORED[0], add("plain2"), begun("plain2")) == 0, "it may wait for ever"
    assert witness("MATCH-15", *LOADED, add("scored", engine=2, barred=True), begun("scored", 2)) == 0
    assert witness("MATCH-15", add("plain"), compared(0, request="plain"), *SCORED) == 0


@pytest.mark.parametrize(("block_size", "seen"), [(16, 1), (32, 0)])
def test_prefix_that_is_loaded_has_to_be_a_block_of_the_request_that_is_computed(block_size: int, seen: int) -> None:
    other_end = (*PROMPT[:20], *reversed(PROMPT[20:]))
    scored = (add("scored", other_end, barred=True), begun("scored"))
    assert witness("MATCH-15", EngineStarted(1, 0, (block_size,), "recompute"), *LOADED, *scored) == seen


@pytest.mark.parametrize(
    ("delivered", "request_id", "seen"), [(True, "scored", 1), (False, "scored", 0), (True, "x", 0)]
)
def test_request_that_is_computed_despite_a_hand_off_is_a_witness_too(
    delivered: bool, request_id: str, seen: int
) -> None:
    detail = {"request": request_id, "of": "prefill", "delivered": delivered}
    assert witness("MATCH-15", ProgramAction(1, 0, "hand off", detail), *SCORED) == seen
