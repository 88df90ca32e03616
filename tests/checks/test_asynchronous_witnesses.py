"""What the checks of asynchronous transfers count, and where a late arrival ends to be one, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, compared, found, match, stray, witness, wrong
from test_asynchronous_findings import HELD, LOADED, LOADING, add, finish, results, stuck

from kvconform.engine.byte_events import Arrived, Compared, Held, Stray
from kvconform.engine.events import Event, HookCall, Scheduled


def arrived(step: int = 2, *, engine: int = 1, **more: Any) -> Arrived:
    return Arrived(engine, step, "r1", 32, "layer", 32, (1, 2), **more)


def written(block: int, *, step: int, engine: int = 1) -> Stray:
    """What may be r1's load comes to a block."""
    return stray(block, step=step, engine=engine, late=("r1",))


def asked(hook: str, result: Any, step: int = 1, *, engine: int = 1, error: str | None = None) -> HookCall:
    return HookCall(engine, step, "scheduler", hook, {}, result, error)


def finished(answer: Any, role: Any = "worker", error: str | None = None) -> HookCall:
    return HookCall(1, 1, role, "get_finished", {"finished_req_ids": []}, answer, error)


def scheduled(step: int, *requests: str, engine: int = 1) -> Scheduled:
    return Scheduled(engine, step, {}, dict.fromkeys(requests, 16))


# -- a load that was reported too early ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "late",
    [
        written(1, step=2),
        written(2, step=22),
        compared(32, step=3),
        # Wrong bytes of somebody else, of a part that was not loaded, or of a later forward are another matter.
        (compared(32, step=3), wrong(0, 15, request="r2", step=3)),
        (compared(32, step=3), wrong(0, 15, external=False, step=3)),
        (compared(32, step=3), wrong(0, 15, step=4), compared(32, step=5)),
        # The engine beside it has nothing to do with it.
        (Compared(2, 30, "r1", 0, 32, 2), compared(32, step=3)),
    ],
)
def test_bytes_came_after_the_report(late: Any) -> None:
    events = late if isinstance(late, tuple) else (late,)
    (finding,) = found("ASYNC-05", *LOADED, arrived(), *events)
    assert finding.requests == ("r1",)


@pytest.mark.parametrize(
    "late",
    [
        (),
        (written(3, step=3),),
        (written(2, step=23),),
        (written(2, step=3, engine=2),),
        (stray(2, step=3),),
        (stray(2, step=3, late=("r2",)),),
        (compared(0, step=3),),
        (compared(32, step=3, request="r2"),),
        (compared(32, step=23),),
        (compared(32, step=3), wrong(0, 15, step=3)),
        (compared(32, step=3), wrong(0, 15, step=3), wrong(0, 15, step=4)),
        (written(2, step=23), compared(32, step=3)),
    ],
)
def test_bytes_that_never_came_or_have_another_cause_are_no_early_report(late: tuple[Event, ...]) -> None:
    assert found("ASYNC-05", *LOADED, arrived(), *late) == []


def test_one_token_in_its_blocks_is_enough_of_a_load() -> None:
    assert len(found("ASYNC-05", *LOADED, arrived(), compared(1, step=3))) == 1


LAST_TOKEN = Held(31, 31, "poison", "poison")


@pytest.mark.parametrize(
    ("missing", "covered", "told"),
    [
        ({"wrong": 1, "held": (LAST_TOKEN,)}, (0, 31), True),
        # With a local hit on the rest, the forward reads nothing of what the connector promised.
        ({"wrong": 1, "held": (LAST_TOKEN,)}, (31, 0), True),
        ({"wrong": 1, "held": (LAST_TOKEN,)}, (30, 0), False),
        ({"wrong": 1, "held": (Held(30, 30, "poison", "poison"),)}, (31, 0), False),
        ({"wrong": 2, "held": (Held(30, 31, "poison", "poison"),)}, (30, 0), False),
        ({"wrong": 1}, (31, 0), False),
    ],
)
def test_last_token_of_a_prompt_offered_whole_has_to_be_there_though_it_is_computed_anew(
    missing: dict[str, Any], covered: tuple[int, int], told: bool
) -> None:
    load = replace(Arrived(1, 2, "r1", 32, "layer", 32, (1, 2)), **missing)
    first = Compared(1, 3, "r1", *covered, 2)
    findings = found("ASYNC-05", *LOADED, load, first, compared(32, step=4), wrong(0, 15, step=4))
    observed = [finding.observed for finding in findings if "computed it anew" in finding.observed]
    assert bool(observed) is told


def test_only_the_first_forward_behind_a_load_computes_its_last_token_anew() -> None:
    load = Arrived(1, 2, "r1", 32, "layer", 1, (1, 2), held=(LAST_TOKEN,))
    forwards = [Compared(1, 3, "r1", 5, 0, 2), Compared(1, 4, "r1", 31, 0, 2)]
    assert found("ASYNC-05", *LOADED, load, *forwards) == []
    assert len(found("ASYNC-05", *LOADED, load, Compared(1, 3, "r2", 5, 0, 2), forwards[1])) == 1


def test_what_came_before_the_report_is_not_looked_at() -> None:
    assert found("ASYNC-05", *LOADED, written(2, step=2), arrived()) == []


def test_load_whose_bytes_were_all_there_is_right() -> None:
    right = Arrived(1, 2, "r1", 32, "layer", 0, (1, 2))
    assert found("ASYNC-05", *LOADED, right, written(2, step=3)) == []
    assert witness("ASYNC-05", right, arrived()) == 2


# -- types of answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "None"),
        (True, "True"),
        (0, "0"),
        ("r1", "'r1'"),
        (("r1", None), "the string 'r1'"),
        ((None, 3), "3 for a set"),
        ((), "0 values"),
    ],
)
def test_answer_that_is_no_pair_of_sets_is_told(answer: Any, said: str) -> None:
    (finding,) = found("ASYNC-15", finished(answer), finished(answer))
    assert said in finding.observed


@pytest.mark.parametrize(
    "answer", ["<some.Pair>", ["a", "b", "c"], ("", None), (0, None), ("<builtins.set>", None), {"set": [], "x": 1}]
)
def test_answer_that_vllm_can_turn_into_sets_is_taken(answer: Any) -> None:
    assert found("ASYNC-15", finished(answer)) == []


def test_answer_of_another_kind_in_place_of_results_is_told() -> None:
    results = HookCall(1, 1, "worker", "get_transfer_results", {"finished_req_ids": []}, "a pair")
    (finding,) = found("ASYNC-15", results)
    assert "get_transfer_results returned a pair" in finding.observed
    assert found("ASYNC-15", HookCall(**{**vars(results), "error": "RuntimeError: x"})) == []


def test_only_answers_of_workers_count_and_exceptions_are_none() -> None:
    assert found("ASYNC-15", finished(5, role="scheduler"), finished(5, error="RuntimeError: x")) == []
    assert witness("ASYNC-15", finished((None, None)), finished(None, error="x"), finished(None, "scheduler")) == 1


# -- what is under way -----------------------------------------------------------------------------------------------

PUSH, FREES = "has_pending_push_work", "has_pending_block_frees"


def test_push_work_counts_as_endless_only_without_requests_and_by_its_last_answer() -> None:
    assert len(found("ASYNC-17", asked(PUSH, False), asked(PUSH, True), stuck())) == 1
    assert found("ASYNC-17", asked(PUSH, True), stuck("r1")) == []
    assert found("ASYNC-17", asked(PUSH, True), asked(PUSH, False), stuck()) == []
    assert found("ASYNC-17", asked(PUSH, True, engine=2), stuck()) == []
    assert found("ASYNC-17", asked(PUSH, True, error="RuntimeError: x"), stuck()) == []
    assert found("ASYNC-17", stuck()) == []


def test_end_of_push_work_is_witnessed_where_there_was_some() -> None:
    assert witness("ASYNC-17", asked(PUSH, True), asked(PUSH, False)) == 1
    assert witness("ASYNC-17", asked(PUSH, False)) == witness("ASYNC-17", asked(PUSH, True)) == 0


def test_blocks_that_are_to_come_free_count_in_the_last_steps_only() -> None:
    for step in (98, 99):
        (finding,) = found("ASYNC-18", add(), asked(FREES, True, step), stuck("r1"))
        assert finding.requests == ("r1",)
    assert found("ASYNC-18", asked(FREES, True, 97), stuck("r1")) == []
    assert found("ASYNC-18", asked(FREES, True, 98), asked(FREES, False, 99), stuck("r1")) == []
    assert witness("ASYNC-18", asked(FREES, True), asked(FREES, None, error="RuntimeError: x")) == 1


def test_block_that_changes_while_it_is_held_is_told_once() -> None:
    write, again = stray(2, "r1", step=3, held=True), stray(2, "r1", step=4, held=True)
    (finding,) = found("ASYNC-12", *HELD, write, again)
    assert finding.requests == ("r1",)
    assert len(found("ASYNC-12", *HELD, write, stray(1, "r1", held=True))) == 2
    assert found("ASYNC-12", *HELD, stray(2, "r1", step=3)) == []


# -- witnesses -------------------------------------------------------------------------------------------------------

SECOND = (add("r2"), match((32, True), request="r2", step=2), alloc(32, request="r2", step=2))


def test_loads_beside_another_one_are_counted_where_bytes_were_compared() -> None:
    assert witness("ASYNC-13", *LOADING, *SECOND, compared(32)) == 1
    assert witness("ASYNC-13", *LOADING, *SECOND) == 0
    assert witness("ASYNC-13", *LOADED, *SECOND, compared(32)) == 0
    assert witness("ASYNC-13", *LOADING, results(2, sent=("r1",)), *SECOND, compared(32)) == 1
    third = (add("r3"), match((32, True), request="r3"), alloc(32, request="r3"))
    assert witness("ASYNC-13", *LOADING, *SECOND, *third, compared(32)) == 2


def test_loads_in_the_same_step_and_allocations_without_one_are_no_company() -> None:
    synchronous = (add("r2"), match((32, False), request="r2"), alloc(32, request="r2"))
    assert witness("ASYNC-13", *LOADING, *synchronous, compared(32)) == 0
    assert witness("ASYNC-13", *LOADING, add("r2"), match((32, True), request="r2"), alloc(0, request="r2"),
                   compared(32)) == 0  # fmt: skip
    assert witness("ASYNC-13", *LOADING, add("r2"), match((1, True), request="r2"), alloc(1, request="r2"),
                   compared(32)) == 1  # fmt: skip


def test_holds_after_several_steps_are_counted_where_bytes_were_compared() -> None:
    steps = (scheduled(1, "r1"), scheduled(2, "r1"))
    assert witness("ASYNC-20", *steps, *HELD, compared(32)) == 1
    assert witness("ASYNC-20", *steps, *HELD) == 0
    assert witness("ASYNC-20", scheduled(1, "r1"), *HELD, compared(32)) == 0
    assert witness("ASYNC-20", scheduled(1, "r1"), scheduled(1, "r1", engine=2), *HELD, compared(32)) == 0
    assert witness("ASYNC-20", *steps, add(), finish(False), compared(32)) == 0
    assert witness("ASYNC-20", *HELD, compared(32)) == 0


def test_id_used_again_counts_where_the_first_life_had_a_transfer() -> None:
    loaded, held = (*LOADED, finish(False)), (*HELD, results(3, sent=("r1",), finished=("r1",)))
    for life in (loaded, held):
        assert witness("ASYNC-22", *life, add(step=4)) == 1
        assert witness("ASYNC-22", *life) == 0
    assert witness("ASYNC-22", add(), finish(False), add(step=4)) == 0
