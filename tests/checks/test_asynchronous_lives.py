"""Lives of requests whose transfers end, or should, at several workers and in either form of a report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, broken, failing, found, history, match, witness
from test_asynchronous_findings import HELD, LOADED, LOADING, add, finish, results, stuck, taken

from kvconform.checks.asynchronous_lives import follow, reported
from kvconform.engine.events import Event, HookCall, NeverIdle, ProgramAction

ABORTED = (*LOADING, finish(False, status="FINISHED_ABORTED"))
FAILED = (*LOADING, finish(False, status="FINISHED_ERROR"))


def pair(step: int, *received: str, sent: tuple[str, ...] = (), rank: int = 0, engine: int = 1) -> HookCall:
    """What a worker answers before 0.30.0."""
    answer = ({"set": list(sent)}, {"set": list(received)})
    return HookCall(engine, step, "worker", "get_finished", {"finished_req_ids": []}, answer, rank=rank)


def workers(*ranks: int) -> tuple[Event, ...]:
    return tuple(HookCall(1, 0, "worker", "register_kv_caches", {"layers": []}, rank=rank) for rank in ranks)


def counted(result: Any, hook: str = "get_finished_count") -> HookCall:
    return HookCall(1, 0, "scheduler", hook, {}, result)


def load_of(request: str) -> tuple[Event, ...]:
    return add(request), match((32, True), request=request), alloc(32, request=request)


def of_rank(rank: int, call: HookCall) -> HookCall:
    return replace(call, rank=rank)


# -- what a finding says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "events", "said"),
    [
        ("ASYNC-02", (results(1, received=("r9",)),), "which the engine was never given"),
        ("ASYNC-02", (add(), finish(False), results(3, received=("r1",))), "which has ended and whose blocks are free"),
        ("ASYNC-03", (add(), match((32, False)), alloc(32), results(1, received=("r1",))), "was loaded synchronously"),
        ("ASYNC-03", (add(), alloc(1), results(1, received=("r1",))), "was loaded synchronously"),
        ("ASYNC-03", (add(), match((0, False)), alloc(0), results(1, received=("r1",))), "has no load at all"),
        ("ASYNC-03", (add(), match((0, True)), alloc(0), results(1, received=("r1",))), "has no load at all"),
        ("ASYNC-03", (*HELD, results(3, received=("r1",))), "has no load at all"),
        ("ASYNC-06", (results(1, sent=("r9",)),), "which the engine was never given"),
        ("ASYNC-06", (add(), results(1, sent=("r1",))), "which has not finished"),
        ("ASYNC-06", (add(), finish(False), results(3, sent=("r1",))), "for which request_finished had answered False"),
        ("ASYNC-09", (*ABORTED, results(3, sent=("r1",))), "request_finished had answered False"),
        (
            "ASYNC-09",
            (*LOADING, finish(True, status="FINISHED_ABORTED"), results(3, sent=("r1",))),
            "request_finished had answered True",
        ),
    ],
)
def test_finding_says_what_became_of_the_request(rule: str, events: tuple[Event, ...], said: str) -> None:
    (finding,) = found(rule, *events)
    assert said in finding.observed


def test_request_whose_completions_are_wrong_is_told_once_by_rule_and_engine() -> None:
    again = (results(1, sent=("r9",)), results(2, sent=("r9",)), results(3, received=("r9",)))
    (finding,) = found("ASYNC-06", *again)
    assert finding.at is again[0]
    assert len(found("ASYNC-06", *again, results(3, sent=("r8",)), replace(again[0], engine=2))) == 3


# -- what makes a transfer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "count"),
    [
        (LOADED, 1),
        (LOADING, 0),
        ((add(), match((1, True)), alloc(1), results(2, received=("r1",))), 1),
        ((add(), match((0, True)), alloc(0), results(2, received=("r1",))), 0),
        ((add(), match((32, False)), alloc(32), results(2, received=("r1",))), 0),
        ((add(), alloc(32), results(2, received=("r1",))), 0),
        ((add(), match((32, True)), failing(alloc(32)), results(2, received=("r1",))), 0),
        ((*LOADING, failing(results(2, received=("r1",)))), 0),
        # In earlier lives, too.
        ((*LOADED, finish(False), add(step=4), *LOADED[1:]), 2),
        ((*HELD, results(3, sent=("r1",))), 0),
    ],
)
@pytest.mark.parametrize("rule", ["ASYNC-01", "ASYNC-02"])
def test_loads_that_were_reported_are_counted(rule: str, events: tuple[Event, ...], count: int) -> None:
    assert witness(rule, *events) == count


@pytest.mark.parametrize("rule", ["ASYNC-06", "ASYNC-07", "ASYNC-12"])
def test_holds_that_were_reported_are_counted(rule: str) -> None:
    assert witness(rule, *HELD, results(3, sent=("r1",))) == 1
    assert witness(rule, *HELD) == witness(rule, *LOADED) == witness(rule, add()) == 0


@pytest.mark.parametrize(
    ("rule", "events", "count"),
    [
        ("ASYNC-04", LOADED, 1),
        ("ASYNC-04", (*HELD, results(3, sent=("r1",))), 1),
        ("ASYNC-04", (*LOADING, *HELD[1:]), 0),
        ("ASYNC-09", ABORTED, 1),
        ("ASYNC-09", (*LOADED, finish(True)), 0),
        # Reported, and not yet taken by the scheduler.
        ("ASYNC-09", (*LOADING, results(2, received=("r1",)), finish(False), taken(2, "r1")), 1),
        ("ASYNC-09", (*LOADING, taken(2, "r2"), add("r2"), taken(2, "r2"), finish(False)), 1),
        # A load of an earlier life that was taken is none of this one's.
        ("ASYNC-09", (*LOADED, finish(False, step=3), add(step=4), *LOADING[1:], finish(False, step=5)), 1),
        (
            "FAIL-09",
            (*LOADING, results(2, received=("r1",)), finish(False, status="FINISHED_ERROR"), taken(2, "r1")),
            1,
        ),
        ("ASYNC-16", (*LOADING, results(2, failed=("r1",)), results(3, received=("r1",))), 1),
        ("ASYNC-16", (*LOADING, results(2, failed=("r1",))), 0),
        ("ASYNC-16", (*LOADING, results(2, failed=("r2",)), results(3, received=("r1",))), 0),
        ("ASYNC-16", LOADED, 0),
        ("FAIL-09", FAILED, 1),
        ("FAIL-09", ABORTED, 0),
        ("FAIL-09", LOADING, 0),
        ("FAIL-09", (*LOADED, finish(False, status="FINISHED_ERROR")), 0),
        ("ASYNC-15", (results(1), results(2), results(3), failing(results(4))), 3),
    ],
)
def test_situations_are_witnessed(rule: str, events: tuple[Event, ...], count: int) -> None:
    assert witness(rule, *events) == count


@pytest.mark.parametrize(
    ("up", "count"),
    [
        (workers(0, 1), 3),
        # They come up in any order.
        (workers(1, 0), 3),
        (workers(0), 0),
        ((counted(2),), 3),
        ((*workers(0, 1), counted(1)), 0),
        ((*workers(0, 1), counted(None)), 3),
        ((*workers(0, 1), counted("1")), 3),
        ((*workers(0, 1), counted(1, "has_pending_push_work")), 3),
    ],
)
def test_transfers_count_for_several_workers_if_these_report_them(up: tuple[Event, ...], count: int) -> None:
    both = (*LOADED, of_rank(1, LOADED[-1]), *HELD[1:], results(3, sent=("r1",)), of_rank(1, results(3, sent=("r1",))))
    only_held = (add("r2"), finish(True, request="r2"), results(5, sent=("r2",)), of_rank(1, results(5, sent=("r2",))))
    only_loaded = (*load_of("r3"), results(4, received=("r3",)), of_rank(1, results(4, received=("r3",))))
    second = (*load_of("r4"), results(4, received=("r4",)))
    assert witness("ASYNC-14", *up, *both, *only_held, *only_loaded, *second) == count
    assert witness("ASYNC-14", *up, *second) == 0


# -- several workers ---------------------------------------------------------------------------------------------------


def test_each_worker_reports_a_load_and_a_hold_for_itself() -> None:
    both = (results(2, received=("r1",)), of_rank(1, results(3, received=("r1",))))
    assert broken(*workers(0, 1), *LOADING, *both) == []
    assert broken(*workers(0, 1), *LOADING, *both, of_rank(1, results(4, received=("r1",)))) == ["ASYNC-04"]
    ends = (results(3, finished=("r1",), sent=("r1",)), of_rank(1, results(3, finished=("r1",), sent=("r1",))))
    assert broken(*workers(0, 1), *HELD, *ends) == []
    assert broken(*workers(0, 1), *HELD, of_rank(1, results(3, finished=("r1",))), ends[0]) == []
    # It is this worker that must have been told.
    early = (of_rank(1, results(3, finished=("r1",))), results(3, sent=("r1",)))
    assert broken(*workers(0, 1), *HELD, *early) == ["ASYNC-07"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((*LOADING, of_rank(1, results(2, received=("r1",)))), "r1 in finished_recving by each worker, since"),
        (
            (*HELD, of_rank(1, results(3, finished=("r1",), sent=("r1",)))),
            "r1 in finished_sending by each worker, since",
        ),
    ],
)
def test_end_that_only_some_workers_report_never_comes(events: tuple[Event, ...], expected: str) -> None:
    (finding,) = found("ASYNC-14", *workers(0, 1, 2), *events, stuck("r1"))
    assert finding.expected.startswith(expected)
    assert "only worker 1 of 3 reported it within 90 steps" in finding.observed
    assert (finding.requests, finding.symptom) == (("r1",), False)


# -- what never ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "events", "expected"),
    [
        ("ASYNC-01", LOADING, "r1 in finished_recving once, since its load"),
        ("ASYNC-01", ABORTED, "r1, which was aborted while it was loading, in finished_recving once"),
        ("ASYNC-07", HELD, "r1 in finished_sending once"),
        ("ASYNC-16", (*LOADING, results(2, failed=("r1",))), "r1 in finished_recving as well"),
        ("FAIL-09", FAILED, "r1, which failed while it was loading,"),
        ("FAIL-09", (*FAILED, results(3, failed=("r1",))), "r1, which failed while it was loading,"),
        # An aborted load goes before the hold, which the engine does not wait for.
        ("ASYNC-01", (*LOADING, finish(True, status="FINISHED_ABORTED")), "r1, which was aborted"),
    ],
)
def test_report_that_an_engine_waits_for(rule: str, events: tuple[Event, ...], expected: str) -> None:
    assert broken(*events, stuck("r1")) == [rule]
    (finding,) = found(rule, *events, stuck("r1"))
    assert finding.expected.startswith(expected)
    assert "no report within 90 steps" in finding.observed


@pytest.mark.parametrize(
    "events",
    [
        (*LOADED,),
        (*LOADED, finish(False)),
        (*HELD, results(3, finished=("r1",), sent=("r1",))),
        (add(),),
        (*ABORTED, results(3, received=("r1",))),
        (*LOADING[:-1], alloc(32, request="r2")),
    ],
)
def test_request_that_waits_for_no_report_is_left_alone(events: tuple[Event, ...]) -> None:
    assert [rule for rule in broken(*events, stuck("r1")) if rule.startswith("ASYNC")] == []


def test_all_that_an_engine_waits_for_is_told_but_not_of_strangers() -> None:
    two = (*LOADING, *load_of("r2"))
    assert [finding.requests for finding in found("ASYNC-01", *two, stuck("r9", "r2", "r1"))] == [("r2",), ("r1",)]


@pytest.mark.parametrize(("begun", "told"), [(1, True), (54, True), (55, False), (98, False)])
def test_load_that_began_a_moment_ago_is_not_late(begun: int, told: bool) -> None:
    """Half of the 90 steps before step 99 have to be over; there is another one that never ends."""
    one = (add("r2"), match((32, True), request="r2", step=begun), alloc(32, request="r2", step=begun))
    findings = found("ASYNC-01", *LOADING, *one, stuck("r2", "r1"))
    assert [finding.requests for finding in findings] == [("r2",), ("r1",)][not told :]


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "ids"),
    [
        ({"finished_sending": ["a"], "finished_recving": ["b"]}, (["a"], ["b"])),
        ({"finished_sending": None}, ([], [])),
        (({"set": ["a"]}, {"set": ["b"]}), (["a"], ["b"])),
        ((None, {"set": ["b"]}), ([], ["b"])),
        (({"list": ["a"]}, "<builtins.set>"), ([], [])),
        (({"set": ["a"]}, {"set": ["b"]}, None), ([], [])),
        (({"set": ["a"]},), ([], [])),
        (None, ([], [])),
    ],
)
def test_ids_of_a_report_of_either_form(result: Any, ids: tuple[list[str], list[str]]) -> None:
    call = HookCall(1, 1, "worker", "get_finished", {}, result)
    assert (reported(call, "finished_sending"), reported(call, "finished_recving")) == ids
    assert reported(call, "failed_recving") == []


def test_get_finished_counts_where_vllm_does_not_ask_around_it() -> None:
    assert broken(*LOADING, pair(2, "r1")) == []
    assert witness("ASYNC-01", *LOADING, pair(2, "r1")) == 1
    assert broken(*LOADING, pair(2, "r1"), pair(3, "r1")) == ["ASYNC-04"]
    assert broken(*LOADING, pair(2, "r1"), results(2, received=("r1",))) == []
    # Another engine's answers tell nothing of this one's.
    assert broken(*LOADING, pair(2, "r1"), pair(3, "r1"), replace(results(2), engine=2)) == ["ASYNC-04"]


def test_hook_that_is_no_report_tells_of_no_end() -> None:
    """The output that goes to the scheduler repeats what the workers have said."""
    again = replace(results(3, received=("r1",)), hook="build_connector_worker_meta")
    assert broken(*LOADED, again) == []


@pytest.mark.parametrize(
    ("events", "rules"),
    [
        # Told of a request that goes on; it has to be told once more at the end.
        ((add(), results(1, finished=("r1",)), finish(True), results(3, sent=("r1",))), ["ASYNC-07"]),
        ((*HELD, results(3, finished=("r9", "r1")), results(4, sent=("r1",))), []),
        ((*HELD, replace(results(3), args={}), results(4, sent=("r1",))), ["ASYNC-07"]),
        ((*HELD, results(3, finished=("r1",)), of_rank(1, results(4, sent=("r1",)))), ["ASYNC-07"]),
    ],
)
def test_hold_ends_once_the_worker_was_told_of_the_end_of_the_request(
    events: tuple[Event, ...], rules: list[str]
) -> None:
    assert broken(*events) == rules


SENT = results(2, sent=("r1",))


@pytest.mark.parametrize(
    ("later", "rule"),
    [
        ((finish(True),), "ASYNC-07"),
        ((replace(finish(True), hook="request_finished_all_groups"),), "ASYNC-07"),
        ((finish(False),), "ASYNC-06"),
        ((finish(True, request="r2"), finish(True)), "ASYNC-07"),
        ((finish(False, request="r2"), finish(True)), "ASYNC-07"),
        ((finish(True, request="r2"),), "ASYNC-06"),
        ((finish(True, step=3),), "ASYNC-06"),
        ((match((0, False), step=3), finish(True)), "ASYNC-06"),
        ((match((0, False), step=3, engine=2), finish(True)), "ASYNC-07"),
        ((ProgramAction(1, 2, "abort", {"request": "r1"}), match((0, False), step=2), finish(True)), "ASYNC-07"),
        ((replace(finish(True), engine=2),), "ASYNC-06"),
    ],
)
def test_report_of_a_request_that_ends_in_the_very_step_depends_on_its_answer(
    later: tuple[Event, ...], rule: str
) -> None:
    assert broken(add(), SENT, *later)[:1] == [rule]


def test_answer_of_a_later_life_says_nothing_of_this_one() -> None:
    assert broken(add(), finish(False), SENT, add(step=2), finish(True))[:1] == ["ASYNC-06"]


def test_every_life_is_kept_with_its_request() -> None:
    lives = follow(history(*LOADED, finish(False), add(step=4), add("r2")))[1][1]
    assert [(life.request, life.ended is not None) for life in lives.all()] == [
        ("r1", True),
        ("r1", False),
        ("r2", False),
    ]


def test_waiting_time_is_told() -> None:
    (finding,) = found("ASYNC-01", *LOADING, NeverIdle(1, 99, 90, ("r1",), 2.5))
    assert "no report within 90 steps and 2.5 s" in finding.observed
