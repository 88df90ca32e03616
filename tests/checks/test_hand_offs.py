"""What is followed of a prompt from its producer to its consumer, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import compared, failing, history, witness
from test_producer_consumer_findings import (
    FETCHED,
    GIVEN,
    PREFILL,
    added,
    arrived,
    asked,
    ended,
    handed,
    left,
    load,
    outlasted,
    sent,
)

from kvconform.capabilities import exercised
from kvconform.checks import hand_offs
from kvconform.checks.hand_offs import Decode, Prefill, kept_rule, prefills
from kvconform.checks.model import Finding
from kvconform.engine.events import Event, Tokens


def followed(*events: Event) -> Prefill:
    (prefill,) = prefills(history(*events))
    return prefill


def decoded(*events: Event) -> Decode:
    """The one hand-off of the usual prompt, with these events of the consumer."""
    (decode,) = followed(*PREFILL, handed(), *events).decodes
    return decode


# -- where there is something to follow --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "count"), [((handed(),), 1), ((left(),), 1), ((outlasted(),), 1), ((), 0), ((added("x", 2, {}),), 0)]
)
def test_history_is_followed_where_two_engines_have_to_do_with_each_other(pair: tuple[Event, ...], count: int) -> None:
    assert len(prefills(history(*PREFILL, *pair))) == count


@pytest.mark.parametrize(
    "other",
    [
        added("q", 2, {"do_remote_decode": True}),
        added("q", 1, {"do_remote_prefill": True}),
        added("q", 1, {}),
        replace(added("q"), detail={"request": "q"}),
        replace(added("q"), action="abort"),
    ],
    ids=["of the consumer", "fetched", "neither", "without parameters", "not added"],
)
def test_only_what_a_producer_computes_for_others_is_followed(other: Event) -> None:
    assert followed(*PREFILL, other, handed()).request == "p"


def test_producer_that_fell_silent_has_left_no_history() -> None:
    (prefill,) = prefills(history(handed("d", "gone")))
    assert (prefill.request, prefill.held, prefill.status, [each.request for each in prefill.decodes]) == (
        "gone", False, "", ["d"],
    )  # fmt: skip


# -- the producer ------------------------------------------------------------------------------------------------------


def test_tokens_of_the_producer_are_counted() -> None:
    produced = (Tokens(1, 1, "p", (5,), None), Tokens(1, 2, "p", (6, 7), None))
    others = (Tokens(2, 1, "p", (5,), None), Tokens(1, 1, "r", (5,), None))
    assert followed(added(), *produced, *others, *PREFILL[1:], handed()).generated == 3


def test_prompt_is_as_long_as_it_was_when_it_was_first_asked_for() -> None:
    """A request that was preempted is asked for again with the tokens that it has generated."""
    assert followed(added(), asked("p", 1, tokens=32), asked("p", 1, tokens=40), ended(), handed()).num_tokens == 32


@pytest.mark.parametrize(
    ("answer", "held", "handed_off"),
    [
        ((True, {"host": "a"}), True, True),
        ((False, {"host": "a"}), False, True),
        ((True, None), True, False),
        ((True, {}), True, False),
        ((True,), True, False),
        ((True, {"host": "a"}, 1), True, False),
        ("ab", False, False),
        (None, False, False),
    ],
)
def test_answer_at_the_end_tells_what_is_held_and_handed_off(answer: Any, held: bool, handed_off: bool) -> None:
    prefill = followed(added(), ended(answer=answer), handed())
    assert (prefill.held, prefill.handed_off, prefill.status) == (held, handed_off, "FINISHED_LENGTH_CAPPED")


def test_end_is_the_answer_to_request_finished_and_where_it_was_given() -> None:
    prefill = followed(*PREFILL, load("p"), handed(), asked("p", 1))
    assert (prefill.ended, prefill.ended_at) == (PREFILL[2], 2)
    other_name = replace(ended(), hook="request_finished_all_groups")
    assert followed(added(), other_name, handed()).ended is other_name


@pytest.mark.parametrize(
    "other", [failing(ended()), replace(ended(), hook="has_pending_push_work"), ended(engine=2), ended("r")]
)
def test_anything_else_is_not_the_end(other: Event) -> None:
    prefill = followed(added(), other, handed())
    assert (prefill.ended, prefill.held, prefill.status, prefill.handed_off) == (None, False, "", False)


def test_sending_ends_where_the_scheduler_is_told() -> None:
    assert followed(*PREFILL, handed(), sent("r"), replace(sent(), engine=2), sent()).sent_at == 6
    assert followed(*PREFILL, handed()).sent_at is None


# -- the consumer ------------------------------------------------------------------------------------------------------


def test_hand_off_says_whether_anything_came_and_whether_the_producer_was_gone() -> None:
    assert (decoded().given, decoded().peer_gone) == (True, False)
    (decode,) = followed(*PREFILL, left(), handed(delivered=False)).decodes
    assert (decode.given, decode.peer_gone) == (False, True)
    (early,) = followed(*PREFILL, handed(), left()).decodes
    assert not early.peer_gone


def test_match_before_the_load_is_the_one_that_counts() -> None:
    decode = decoded(asked("d", 2, computed=16), load(), asked("d", 2, computed=0, tokens=40))
    assert (decode.local, decode.num_tokens) == (16, 32)


@pytest.mark.parametrize("tokens", [1, 32])
def test_load_is_an_allocation_of_external_tokens(tokens: int) -> None:
    decode = decoded(asked("d", 2), load(tokens=tokens), load(tokens=0))
    assert (decode.load, decode.load_at) == (load(tokens=tokens), 5)
    assert decoded(asked("d", 2), load(tokens=0)).load is None


def test_what_comes_and_ends_is_the_consumers() -> None:
    done = ended("d", (False, None), engine=2)
    decode = decoded(load(), arrived(), replace(arrived(), engine=1, tokens=7), arrived("r"), done, ended("d"))
    assert (decode.arrived, decode.ended) == (arrived(), done)


@pytest.mark.parametrize(
    ("events", "there"), [((arrived(),), True), ((arrived(failed=True),), False), ((), False)]
)  # fmt: skip
def test_what_came_whole_is_there(events: tuple[Event, ...], there: bool) -> None:
    assert hand_offs.arrived(decoded(load(), *events)) is there


def test_hand_offs_are_counted_where_bytes_were_compared() -> None:
    assert witness("FIN-12", *FETCHED) == 1
    assert witness("FIN-12", *FETCHED[:-1]) == 0
    assert witness("FIN-12", *FETCHED[:-1], compared(0, request="d", engine=2)) == 0
    assert witness("FIN-12", *FETCHED[:-1], compared(1, request="d", engine=2)) == 1


# -- a router's hand-off -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routed", "answer", "handed_off"),
    [
        (True, (True, None), True),
        (True, (False, None), False),
        (True, (True, {"blocks": [1]}), True),
        (False, (True, None), False),
        (True, None, False),
        (True, (True,), False),
    ],
)
def test_with_a_router_whoever_keeps_the_blocks_has_handed_off(routed: bool, answer: Any, handed_off: bool) -> None:
    add = added()
    if routed:
        add = replace(add, detail={**add.detail, "routed": True})
    events = (add, asked("p", 1), ended(answer=answer), handed())
    assert followed(*events).handed_off is handed_off
    counted = {name: count for name, count in exercised(history(*events)).items() if name in ("pd", "producer")}
    assert counted == ({"pd": 1, "producer": 1} if handed_off else {})


# -- who kept the blocks -----------------------------------------------------------------------------------------------


def test_a_symptom_is_the_hold_s_unless_what_was_fetched_was_let_go() -> None:
    finding = Finding("LOAD-01", "", "", added())
    let_go, not_handed_off = ended(answer=(False, GIVEN)), ended(answer=(False, None))
    other = (added("q"), asked("q", 1), ended("q"), handed("e", "q"))

    def rule(*events: Event) -> str:
        return kept_rule(history(*events), finding)

    assert rule(*PREFILL[:2], let_go, handed()) == "FIN-09"
    assert rule(*PREFILL[:2], let_go, left()) == "ASYNC-08", "nobody fetched it"
    assert rule(*PREFILL[:2], not_handed_off, handed()) == "ASYNC-08", "there was nothing to fetch"
    assert rule(*PREFILL[:2], let_go, handed(), *other) == "ASYNC-08", "another one is kept"
