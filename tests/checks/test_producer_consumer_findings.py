"""What the checks say of hand-made histories of a producer (engine 1) and a consumer (engine 2)."""

from __future__ import annotations

from typing import Any

import pytest
from histories import broken, compared, found, witness

from kvconform.engine.byte_events import Arrived
from kvconform.engine.events import Event, HookCall, Outlasted, ProgramAction, Scheduled, Tokens

DECODE = {"do_remote_decode": True}
GIVEN = {"do_remote_prefill": True}


def added(request: str = "p", engine: int = 1, params: Any = None) -> ProgramAction:
    params = DECODE if params is None and engine == 1 else params
    return ProgramAction(engine, 0, "add", {"request": request, "tokens": [], "kv_transfer_params": params})


def handed(request: str = "d", of: str = "p", delivered: bool = True) -> ProgramAction:
    return ProgramAction(2, 0, "hand off", {"request": request, "of": of, "delivered": delivered})


def asked(request: str, engine: int, computed: int = 0, tokens: int = 32) -> HookCall:
    args = {"request": request, "num_computed_tokens": computed, "num_tokens": tokens}
    return HookCall(engine, 1, "scheduler", "get_num_new_matched_tokens", args, (tokens - computed, True))


def load(request: str = "d", tokens: int = 32) -> HookCall:
    args = {"request": request, "block_ids": [[1, 2]], "num_external_tokens": tokens}
    return HookCall(2, 1, "scheduler", "update_state_after_alloc", args)


def ended(request: str = "p", answer: Any = (True, GIVEN), status: str = "LENGTH_CAPPED", engine: int = 1) -> HookCall:
    args = {"request": request, "status": f"FINISHED_{status}", "block_ids": [1, 2]}
    return HookCall(engine, 2, "scheduler", "request_finished", args, answer)


def sent(request: str = "p") -> HookCall:
    args = {"finished_sending": [request], "finished_recving": [], "invalid_block_ids": []}
    return HookCall(1, 9, "scheduler", "update_connector_output", args)


def arrived(request: str = "d", *, failed: bool = False) -> Arrived:
    return Arrived(2, 3, request, 32, reported_failed=failed)


def outlasted(engine: int = 1, limit: float = 3.0, **more: Any) -> Outlasted:
    return Outlasted(engine, 9, 5.5, limit, **more)


def left() -> ProgramAction:
    return ProgramAction(1, 0, "leave", {"silent": False})


#: A prompt that is computed, held and handed off.
PREFILL = (added(), asked("p", 1), ended())
FETCHED = (*PREFILL, handed(), asked("d", 2), load(), arrived(), sent(), compared(32, request="d", engine=2))


def test_a_hold_that_nobody_fetches_has_to_end_within_the_named_time() -> None:
    held = outlasted(held=("p",))
    (finding,) = found("ASYNC-19", *PREFILL, held)
    assert finding.requests == ("p",)
    assert "within 3 s" in finding.expected
    assert found("ASYNC-19", *PREFILL, outlasted(limit=0.0, held=("p",))) == []
    assert found("ASYNC-19", *PREFILL, sent(), outlasted()) == []
    assert witness("ASYNC-19", *PREFILL, sent(), outlasted()) == 1
    assert witness("ASYNC-19", *PREFILL, held) == 0
    # Somebody has come: then it is not a matter of time-outs.
    assert found("ASYNC-19", *PREFILL, handed(), held) == []


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ((outlasted(limit=0.0, held=("p",)),), 1),
        ((sent(), outlasted(held_for={"p": 3.0})), 1),
        ((sent(), outlasted(held_for={"p": 0.2})), 0),
        ((sent(), outlasted(limit=0.0, held_for={"p": 3.0})), 0),
    ],
)
def test_a_consumer_that_needs_nothing_tells_the_producer(what: tuple[Event, ...], count: int) -> None:
    unneeded = (*PREFILL, handed(), ended("d", (False, None), "ABORTED", engine=2))
    assert len(found("ASYNC-23", *unneeded, *what)) == count
    assert bool(witness("ASYNC-23", *unneeded, *what)) != bool(count)


def test_a_consumer_that_loads_or_got_nothing_has_nothing_to_tell() -> None:
    done = ended("d", (False, None), engine=2)
    assert found("ASYNC-23", *PREFILL, handed(), load(), done, outlasted(held=("p",))) == []
    assert found("ASYNC-23", *PREFILL, handed(delivered=False), done, outlasted(held=("p",))) == []


def test_an_aborted_prefill_is_held_for_nobody() -> None:
    aborted = (*FETCHED, added("a"), ended("a", (True, GIVEN), "ABORTED"))
    (finding,) = found("FIN-05", *aborted, outlasted(held=("a",)))
    assert "finished_aborted" in finding.expected
    assert found("FIN-05", *aborted, outlasted(limit=0.0, held=("a",))) == []
    assert witness("FIN-05", *aborted, sent("a"), outlasted()) == 1
    assert witness("FIN-05", *FETCHED, added("a"), ended("a", (False, None), "ABORTED"), outlasted()) == 1


def test_a_stop_token_is_a_normal_end() -> None:
    refused = (added("s"), asked("s", 1, tokens=40), ended("s", (False, None), "STOPPED"))
    (finding,) = found("FIN-15", *FETCHED, *refused)
    assert finding.requests == ("s", "p")
    # A shorter prompt may be too short to be worth it; and who hands off nothing at all breaks no promise.
    shorter = (added("s"), asked("s", 1, tokens=9), ended("s", (False, None), "STOPPED"))
    assert found("FIN-15", *FETCHED, *shorter) == []
    assert found("FIN-15", added(), asked("p", 1), ended(answer=(False, None)), handed(), *refused) == []


def test_a_failed_load_from_a_producer_that_keeps_the_blocks_is_a_symptom() -> None:
    failed = (handed(), asked("d", 2), load(), arrived(failed=True))
    (finding,) = found("MATCH-10", *PREFILL, *failed, sent())
    assert finding.symptom
    assert found("MATCH-10", *PREFILL, sent(), *failed) == []
    assert found("MATCH-10", *PREFILL, left(), *failed) == []
    assert found("MATCH-10", *FETCHED) == []


def test_a_load_from_a_producer_that_is_gone_ends() -> None:
    waiting = (*PREFILL, left(), handed(), asked("d", 2), load())
    (finding,) = found("LIVE-05", *waiting, outlasted(2, unfinished=("d",)))
    assert finding.requests == ("d",)
    assert found("LIVE-05", *waiting, outlasted(2, limit=0.0, unfinished=("d",))) == []
    done = (*waiting, arrived(failed=True), ended("d", (False, None), engine=2), outlasted(2))
    assert found("LIVE-05", *done) == []
    assert witness("LIVE-05", *done) == 1


def test_a_prefill_that_is_preempted_in_its_last_step_has_to_be_computed_again() -> None:
    last = (
        added("l"),
        asked("l", 1, tokens=48),
        Scheduled(1, 4, {"l": 0}, {"l": 48}, new=("l",)),
        Scheduled(1, 5, {}, {}, preempted=("l",)),
    )
    (finding,) = found("PRE-06", *FETCHED, *last, ended("l", (False, None)))
    assert finding.requests == ("l",)
    again = (*last, ended("l"), handed("m", "l"), asked("m", 2, tokens=48), load("m", 48), arrived("m"))
    assert found("PRE-06", *FETCHED, *again) == []
    assert witness("PRE-06", *FETCHED, *again) == 1
    # Preempted amid its prefill: nothing was in flight that ends it.
    early = (added("l"), asked("l", 1, tokens=48), Scheduled(1, 4, {"l": 0}, {"l": 24}, preempted=("l",)))
    assert found("PRE-06", *FETCHED, *early, ended("l", (False, None))) == []


def test_witnesses_of_situations() -> None:
    assert witness("FIN-12", *FETCHED) == 1
    assert witness("LOAD-11", *FETCHED) == 0
    local = (*PREFILL, handed(), asked("d", 2, computed=16), load(tokens=16), arrived(), compared(16, engine=2))
    assert witness("LOAD-11", *local) == 1
    assert witness("FIN-14", *FETCHED) == 0
    assert witness("FIN-14", added(), Tokens(1, 1, "p", (5, 6), None), *FETCHED[1:]) == 1


def test_histories_without_a_pair_are_of_no_concern() -> None:
    alone = (added(), asked("p", 1), ended(status="STOPPED", answer=(False, None)))
    assert broken(*alone) == []
    assert all(witness(rule, *alone) == 0 for rule in ("FIN-12", "FIN-15", "ASYNC-19", "ASYNC-23", "LIVE-05"))


# -- whose rule it is, and what is told --------------------------------------------------------------------------------

UNNEEDED = (*PREFILL, handed(), ended("d", (False, None), "ABORTED", engine=2))
ABORTED = (added("a"), ended("a", (True, GIVEN), "ABORTED"))
STOPPED = (added("s"), asked("s", 1), ended("s", (False, None), "STOPPED"))
FAILED = (handed(), asked("d", 2), load(), arrived(failed=True))
WAITING = (*PREFILL, left(), handed(), asked("d", 2), load())
#: A prefill that is preempted while its last token is in flight.
LAST = (
    added("l"), asked("l", 1, tokens=48), Scheduled(1, 4, {"l": 0}, {"l": 48}, new=("l",)),
    Scheduled(1, 5, {}, {}, preempted=("l",)),
)  # fmt: skip
NOT_COMPUTED_AGAIN = (*LAST, ended("l", (False, None)))


@pytest.mark.parametrize(
    ("rule", "events", "requests", "words"),
    [
        ("MATCH-10", (*PREFILL, *FAILED), ("d", "p"), "d's 32 tokens from the producer, which is there and keeps p"),
        ("ASYNC-23", (*UNNEEDED, outlasted(held=("p",))), ("p", "d"), "lets go of p once d has ended"),
        ("ASYNC-19", (*PREFILL, outlasted(held=("p",))), ("p",), "p, which nobody fetches"),
        ("FIN-05", (*ABORTED, outlasted(held=("a",))), ("a",), "it was finished_aborted"),
        ("FIN-15", (*FETCHED, *STOPPED), ("s", "p"), "s, which ended with a stop token, is handed off like p"),
        ("PRE-06", (*FETCHED, *NOT_COMPUTED_AGAIN), ("l",), "l is computed again and handed off, as p was"),
        ("LIVE-05", (*WAITING, outlasted(2, unfinished=("d",))), ("d",), "d's load ends within 3 s"),
    ],
    ids=lambda value: value if isinstance(value, str) and value[-1].isdigit() else "",
)
def test_finding_names_its_rule_and_the_requests_of_both_sides(
    rule: str, events: tuple[Event, ...], requests: tuple[str, ...], words: str
) -> None:
    (finding,) = found(rule, *events)
    assert (finding.rule, finding.requests) == (rule, requests)
    assert words in finding.expected


@pytest.mark.parametrize(("held", "how"), [(("p",), "is still held"), ((), "was held until the time-out")])
def test_hold_that_was_not_needed_is_told_with_how_it_went_on(held: tuple[str, ...], how: str) -> None:
    (finding,) = found("ASYNC-23", *UNNEEDED, outlasted(held=held, held_for={"p": 3.0}))
    assert finding.observed == f"it {how}; 5.5 s were spent waiting for that"


@pytest.mark.parametrize(
    ("limit", "held_for", "findings"),
    [(0.5, {"p": 0.4}, 1), (0.5, {"p": 0.3}, 0), (0.5, {"other": 0.5}, 0), (3.0, {"p": 2.5}, 0), (1.0, {"p": 9.0}, 1)],
)
def test_hold_as_long_as_the_time_out_was_ended_by_it(limit: float, held_for: dict[str, float], findings: int) -> None:
    assert len(found("ASYNC-23", *UNNEEDED, sent(), outlasted(limit=limit, held_for=held_for))) == findings


# -- what is no finding ------------------------------------------------------------------------------------------------

GIVEN_UNHELD = (added(), asked("p", 1), ended(answer=(False, GIVEN)))


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("MATCH-10", (*PREFILL, handed(), asked("d", 2))),
        ("MATCH-10", (*GIVEN_UNHELD, *FAILED)),
        ("ASYNC-23", (*UNNEEDED[:-1], outlasted(held=("p",)))),
        ("ASYNC-23", (*PREFILL, left(), *UNNEEDED[3:], outlasted(held=("p",)))),
        ("ASYNC-23", (*UNNEEDED, handed("e"), outlasted(held=("p",)))),
        ("ASYNC-23", (*UNNEEDED, outlasted(2, held=("p",)))),
        ("ASYNC-19", (*ABORTED, outlasted(held=("a",)))),
        ("ASYNC-19", (*PREFILL, outlasted(2, held=("p",)))),
        ("FIN-05", (*PREFILL, outlasted(held=("p",)))),
        ("FIN-05", (*ABORTED, outlasted(held=("x",)))),
        ("FIN-15", (*FETCHED, added("s"), asked("s", 1), ended("s", (False, None)))),
        ("FIN-15", (*FETCHED, added("s"), asked("s", 1), ended("s", status="STOPPED"))),
        ("FIN-15", (added(), asked("p", 1), ended(status="STOPPED"), *STOPPED, handed())),
        ("LIVE-05", (*PREFILL, *WAITING[4:], outlasted(2, unfinished=("d",)))),
        ("LIVE-05", (*PREFILL, handed(), load(), outlasted(2, unfinished=("d",)))),
        ("LIVE-05", (*WAITING, outlasted(2, unfinished=("other",)))),
        ("PRE-06", (*FETCHED, *LAST)),
        ("PRE-06", (*FETCHED, *LAST, ended("l", (False, None), "ABORTED"))),
        ("PRE-06", (*FETCHED, *LAST, ended("l"))),
    ],
    ids=[
        "it has not arrived", "not kept", "the consumer has not ended", "the producer is gone", "another consumer",
        "the consumer's wait", "aborted", "the consumer's hold", "not aborted", "let go", "ended by its length",
        "handed off", "only stopped ones are handed off", "nobody is gone", "the producer is there", "another request",
        "not ended", "aborted at last", "computed again",
    ],
)  # fmt: skip
def test_what_breaks_no_promise(rule: str, events: tuple[Event, ...]) -> None:
    assert found(rule, *events) == []


@pytest.mark.parametrize(
    "shown",
    [
        PREFILL,
        (*PREFILL, handed(), asked("d", 2), load(), arrived(failed=True)),
        (*GIVEN_UNHELD, *FETCHED[3:]),
        (added(), asked("p", 1), ended(answer=(True, None)), *FETCHED[3:]),
        (),
    ],
    ids=["nobody came", "it failed", "not held", "nothing was returned", "no hand-off"],
)
def test_delivery_is_required_only_of_who_has_delivered(shown: tuple[Event, ...]) -> None:
    assert found("PRE-06", *shown, handed("other", "x"), *NOT_COMPUTED_AGAIN) == []


def test_one_consumer_that_got_it_shows_that_there_is_delivery() -> None:
    """And the history of the consumer's own steps tells nothing of the producer's."""
    consumers_step = Scheduled(2, 1, {"d": 0}, {"d": 1}, preempted=("l",))
    events = (*FETCHED, handed("e"), consumers_step, *LAST)
    assert len(found("PRE-06", *events, ended("l", (False, None)))) == 1
    again = (ended("l"), handed("m", "l"), asked("m", 2, tokens=48), load("m", 48), arrived("m"), handed("n", "l"))
    assert witness("PRE-06", *events, *again) == 1


def test_prefill_without_its_last_tokens_was_not_in_its_last_step() -> None:
    chunk = Scheduled(1, 4, {"l": 0}, {"l": 24, "unknown": 1}, new=("l",))
    events = (*LAST[:2], chunk, Scheduled(1, 5, {}, {}, preempted=("l",)), ended("l", (False, None)))
    assert found("PRE-06", *FETCHED, *events) == []


# -- what counts -------------------------------------------------------------------------------------------------------


def fetched(
    request: str = "d", *, local: int = 0, tokens: int = 32, prefill: tuple[Event, ...] = PREFILL, lost: bool = False
) -> tuple[Event, ...]:
    """A hand-off, in a run in which the bytes of some load were compared."""
    loads = (load(request), arrived(request, failed=lost), compared(32, request="x", engine=2))
    return (*prefill, handed(request), asked(request, 2, computed=local, tokens=tokens), *loads)


GENERATED = Tokens(1, 1, "p", (5, 6), None)
OTHER = HookCall(1, 3, "scheduler", "update_state_after_alloc", {"request": "o", "block_ids": [[7]]})
BEFORE_IT = (added(), asked("p", 1), OTHER, ended())


@pytest.mark.parametrize(
    ("rule", "events", "count"),
    [
        ("MATCH-10", fetched(), 1),
        ("MATCH-10", fetched(lost=True), 0),
        ("MATCH-10", fetched(prefill=(*PREFILL, left())), 0),
        ("FIN-12", fetched(), 1),
        ("FIN-12", fetched("p"), 0),
        ("FIN-12", fetched(lost=True), 0),
        ("LOAD-11", fetched(local=1), 1),
        ("LOAD-11", fetched(tokens=33), 1),
        ("LOAD-11", fetched(), 0),
        ("LOAD-11", fetched(local=16, lost=True), 0),
        ("ASYNC-08", fetched(prefill=(*PREFILL, OTHER)), 1),
        ("ASYNC-08", fetched(prefill=(*PREFILL, OTHER), lost=True), 0),
        ("ASYNC-08", fetched(prefill=(*GIVEN_UNHELD, OTHER)), 0),
        ("ASYNC-08", fetched(prefill=BEFORE_IT), 0),
        ("ASYNC-08", (*fetched(), OTHER), 0),
        ("ASYNC-08", fetched(prefill=(*PREFILL, load("o"))), 0),
        ("ASYNC-08", fetched(prefill=(*PREFILL, asked("o", 1))), 0),
        ("ASYNC-08", fetched(prefill=(*PREFILL, GENERATED)), 0),
        ("FIN-14", fetched(prefill=(added(), GENERATED, *PREFILL[1:])), 1),
        ("FIN-14", fetched(prefill=(added(), Tokens(1, 1, "p", (5,), None), *PREFILL[1:])), 0),
        ("FIN-14", fetched(prefill=(added(), GENERATED, *PREFILL[1:]), lost=True), 0),
        ("FIN-15", fetched(prefill=(*PREFILL[:2], ended(status="STOPPED"))), 1),
        ("FIN-15", fetched(prefill=(*PREFILL[:2], ended(status="STOPPED")), lost=True), 0),
        ("FIN-15", fetched(), 0),
    ],
)
def test_loaded_hand_offs_are_counted_by_their_situation(rule: str, events: tuple[Event, ...], count: int) -> None:
    assert witness(rule, *events) == count


@pytest.mark.parametrize(
    ("rule", "events", "count"),
    [
        ("ASYNC-23", (*UNNEEDED, sent()), 1),
        ("ASYNC-23", (*UNNEEDED,), 0),
        ("ASYNC-23", (*GIVEN_UNHELD, *UNNEEDED[3:], sent()), 0),
        ("ASYNC-19", (*PREFILL, sent(), outlasted()), 1),
        ("ASYNC-19", (*GIVEN_UNHELD, sent(), outlasted()), 0),
        ("ASYNC-19", (*PREFILL, sent(), handed()), 0),
        ("ASYNC-19", (*ABORTED, sent("a"), outlasted()), 0),
        ("FIN-05", (*FETCHED, *ABORTED, sent("a")), 1),
        ("FIN-05", (*FETCHED, *ABORTED), 0),
        ("FIN-05", (*FETCHED, added("a")), 0),
        ("FIN-05", (added("a"), ended("a", (False, None), "ABORTED"), outlasted()), 0),
        ("LIVE-05", (*WAITING, ended("d", (False, None), engine=2)), 1),
        ("LIVE-05", (*WAITING,), 0),
        ("LIVE-05", (*WAITING[:-1], ended("d", (False, None), engine=2)), 0),
        ("LIVE-05", (*PREFILL, *WAITING[4:], ended("d", (False, None), engine=2)), 0),
        ("LIVE-05", (*FETCHED, ended("d", (False, None), engine=2)), 0),
    ],
)
def test_ends_of_holds_and_loads_are_counted(rule: str, events: tuple[Event, ...], count: int) -> None:
    assert witness(rule, *events) == count
