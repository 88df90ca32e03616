"""What the checks say of hand-made histories of a producer (engine 1) and a consumer (engine 2)."""

from __future__ import annotations

from typing import Any

import pytest
from histories import broken, compared, found, witness

from kvconform.engine.history import Arrived, Event, HookCall, Outlasted, ProgramAction, Scheduled, Tokens

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
