"""The completion state machine on hand-made histories."""

from __future__ import annotations

from typing import Any

import pytest
from histories import alloc, broken, found, match, stray, witness

from kvconform.engine.byte_events import Arrived, Compared
from kvconform.engine.events import Event, HookCall, NeverIdle, ProgramAction


def add(request: str = "r1", step: int = 0) -> ProgramAction:
    return ProgramAction(1, step, "add", {"request": request})


def results(
    step: int,
    *,
    received: tuple[str, ...] = (),
    sent: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    finished: tuple[str, ...] = (),
) -> HookCall:
    outcome = {"finished_sending": list(sent), "finished_recving": list(received), "failed_recving": list(failed)}
    return HookCall(1, step, "worker", "get_transfer_results", {"finished_req_ids": list(finished)}, outcome)


def taken(step: int, *requests: str) -> HookCall:
    """The scheduler takes the report of all workers on these loads."""
    args = {"finished_sending": [], "finished_recving": list(requests), "invalid_block_ids": []}
    return HookCall(1, step, "scheduler", "update_connector_output", args, None)


def finish(hold: Any, *, request: str = "r1", step: int = 2, status: str = "FINISHED_LENGTH_CAPPED") -> HookCall:
    args = {"request": request, "status": status, "block_ids": [1, 2]}
    return HookCall(1, step, "scheduler", "request_finished", args, (hold, None))


def stuck(*unfinished: str) -> NeverIdle:
    return NeverIdle(1, 99, 90, unfinished)


LOADING = (add(), match((32, True)), alloc(32))
LOADED = (*LOADING, results(2, received=("r1",)), taken(2, "r1"))
HELD = (add(), finish(True))


@pytest.mark.parametrize(
    "events",
    [
        (*LOADING, results(2, received=("r1",))),
        # A second load in the same life, after the first one failed.
        (*LOADING, results(2, received=("r1",), failed=("r1",)), match((32, True)), alloc(32, step=3),
         results(4, received=("r1",))),
        (*HELD, results(3, finished=("r1",)), results(5, sent=("r1",))),
        (*HELD, results(3, finished=("r1",), sent=("r1",))),
        # Aborted while loading.
        (*LOADING, finish(False, status="FINISHED_ABORTED"), results(4, received=("r1",), finished=("r1",))),
        (*LOADED, finish(True, step=5), results(6, sent=("r1",), finished=("r1",))),
        # Aborted while the report is on its way to the scheduler.
        (*LOADING, results(2, received=("r1",)), finish(False, status="FINISHED_ABORTED"), taken(2, "r1")),
        # The id of a request that is gone.
        (*LOADING, results(2, received=("r1",)), finish(False), add(step=4), match((32, True)), alloc(32, step=5),
         results(6, received=("r1",))),
    ],
)  # fmt: skip
def test_legal_completions(events: tuple[Event, ...]) -> None:
    assert broken(*events) == []


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("ASYNC-01", (*LOADING, stuck("r1"))),
        ("ASYNC-01", (*LOADING, finish(False, status="FINISHED_ABORTED"), stuck("r1"))),
        ("ASYNC-02", (results(1, received=("r9",)),)),
        ("ASYNC-02", (add(), finish(False), results(3, received=("r1",)))),
        ("ASYNC-03", (add(), match((32, False)), alloc(32), results(1, received=("r1",)))),
        ("ASYNC-03", (add(), results(1, received=("r1",)))),
        ("ASYNC-04", (*LOADING, results(2, received=("r1",)), results(3, received=("r1",)))),
        ("ASYNC-04", (*HELD, results(3, sent=("r1",), finished=("r1",)), results(4, sent=("r1",)))),
        ("ASYNC-06", (results(1, sent=("r9",)),)),
        ("ASYNC-06", (add(), results(1, sent=("r1",)))),
        ("ASYNC-06", (add(), finish(False), results(3, sent=("r1",), finished=("r1",)))),
        ("ASYNC-07", (*HELD, stuck("r1"))),
        ("ASYNC-07", (*HELD, results(3, sent=("r1",)))),
        ("ASYNC-07", (add(), results(2, sent=("r1",)), finish(True, step=2))),
        ("ASYNC-09", (*LOADING, finish(True, status="FINISHED_ABORTED"), results(3, sent=("r1",), finished=("r1",)))),
        ("ASYNC-09", (*LOADING, finish(False, status="FINISHED_ABORTED"), results(3, sent=("r1",), finished=("r1",)))),
        # The scheduler frees the blocks when it takes the report of the load.
        ("ASYNC-09", (*LOADING, results(2, received=("r1",)), finish(True, status="FINISHED_ABORTED"), taken(2, "r1"),
                      results(3, sent=("r1",), finished=("r1",)))),
        ("ASYNC-16", (*LOADING, results(2, failed=("r1",)), stuck("r1"))),
        ("ASYNC-22", (*LOADED, finish(False), add(step=4), results(5, received=("r1",)))),
        ("ASYNC-22", (*HELD, results(3, sent=("r1",), finished=("r1",)), add(step=4), results(5, sent=("r1",)))),
    ],
)  # fmt: skip
def test_each_wrong_completion_breaks_one_rule(rule: str, events: tuple[Event, ...]) -> None:
    assert broken(*events) == [rule]


def test_only_what_came_last_is_told_of_an_idle_engine_that_waits() -> None:
    (finding,) = found("ASYNC-01", *LOADING, add("r2"), stuck("r1", "r2"))
    assert finding.requests == ("r1",)
    assert not finding.symptom


def test_missing_report_for_an_id_used_before_may_be_due_to_that() -> None:
    events = (*LOADING, results(2, received=("r1",)), finish(False), add(step=4), match((32, True)), alloc(32, step=5))
    (finding,) = found("ASYNC-01", *events, stuck("r1"))
    assert finding.symptom


def test_load_that_is_written_after_its_report_was_reported_too_early() -> None:
    arrived = Arrived(1, 2, "r1", 32, "layer", 32, (1, 2))
    late = stray(2, "r1", step=4, late=("r1",))
    assert broken(*LOADING, results(2, received=("r1",)), arrived, late) == ["ASYNC-05"]


@pytest.mark.parametrize("late", [(), ("r2",)])
def test_what_misses_another_loads_blocks_makes_no_report_too_early(late: tuple[str, ...]) -> None:
    """It says where that load went, not when this one ended."""
    arrived = Arrived(1, 2, "r1", 32, "layer", 32, (1, 2))
    beside = stray(2, "r1", step=4, late=late)
    assert broken(*LOADING, results(2, received=("r1",)), arrived, beside) == ["ALLOC-02"]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ((), "layer layer; they came"),
        ((3,), "layer layer (token 3 holds zeros); they came"),
        ((3, 9), "layer layer (token 3 holds zeros, and 1 more run of tokens); they came"),
        ((3, 9, 12), "layer layer (token 3 holds zeros, and 2 more runs of tokens); they came"),
    ],
)
def test_load_reported_too_early_is_told_with_what_its_blocks_held(tokens: tuple[int, ...], said: str) -> None:
    observed = tuple(f"token {token} holds zeros" for token in tokens)
    arrived = Arrived(1, 2, "r1", 32, "layer", 2, (1, 2), observed=observed)
    (finding,) = found("ASYNC-05", *LOADING, results(2, received=("r1",)), arrived, Compared(1, 3, "r1", 0, 32, 2))
    assert said in finding.observed


def test_load_whose_bytes_come_before_the_forward_was_reported_too_early() -> None:
    arrived = Arrived(1, 2, "r1", 32, "layer", 32, (1, 2))
    assert broken(*LOADING, results(2, received=("r1",)), arrived, Compared(1, 3, "r1", 0, 32, 2)) == ["ASYNC-05"]


def test_load_reported_as_failed_need_not_be_there() -> None:
    arrived = Arrived(1, 2, "r1", 32, "layer", 32, (1, 2), reported_failed=True)
    assert found("ASYNC-05", *LOADING, arrived, stray(2, "r1", step=4, late=("r1",))) == []


def test_write_into_a_held_block() -> None:
    assert broken(*HELD, stray(2, "r1", step=3, held=True)) == ["ASYNC-12"]


@pytest.mark.parametrize("answer", [None, ("r1", None), 5, ({"set": []}, None, None)])
def test_answers_that_are_no_pair_of_sets(answer: Any) -> None:
    call = HookCall(1, 1, "worker", "get_finished", {"finished_req_ids": []}, answer)
    assert broken(call) == ["ASYNC-15"]


@pytest.mark.parametrize("answer", [(None, None), ({"set": []}, None), ("<builtins.list>", "<builtins.list>")])
def test_answers_that_vllm_takes(answer: Any) -> None:
    call = HookCall(1, 1, "worker", "get_finished", {"finished_req_ids": []}, answer)
    assert broken(call) == []


def test_pending_work_that_never_ends() -> None:
    call = HookCall(1, 98, "scheduler", "has_pending_push_work", {}, True)
    assert broken(call, stuck()) == ["ASYNC-17"]


def test_blocks_that_are_never_freed() -> None:
    call = HookCall(1, 99, "scheduler", "has_pending_block_frees", {}, True)
    assert broken(add(), call, stuck("r1")) == ["ASYNC-18"]
    assert witness("ASYNC-18", call) == 1
