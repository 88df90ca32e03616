"""Known defects of vLLM: what they explain is held against nobody, and nothing else is explained by them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, match, wrong

from kvconform.checks import Examination, examine
from kvconform.checks.known_engine_bugs import SITUATIONS
from kvconform.engine.events import ChildCall, EngineRaised, EngineStarted, Event, HookCall, ProgramAction, Scheduled
from kvconform.engine.history import History
from kvconform.rules.engine_bugs import EngineBug, load_engine_bugs

AFFECTED = "0.33.0"


def examined(*events: Event, release: str = AFFECTED) -> Examination:
    return examine(History(list(events)), release)


def rules(examination: Examination) -> list[str]:
    return [finding.rule for finding in examination.findings]


def call(hook: str, step: int, result: Any = None, role: Any = "worker", **args: Any) -> HookCall:
    return HookCall(1, step, role, hook, args, result)


def step(number: int) -> tuple[Event, Event]:
    """What a scheduled step looks like to whoever counts them."""
    built = HookCall(1, number, "scheduler", "build_connector_meta", {}, "<Metadata>")
    return built, HookCall(1, number, "worker", "bind_connector_metadata", {})


def failed(number: int, *blocks: int) -> HookCall:
    return call("get_block_ids_with_load_errors", number, {"set": list(blocks)})


def finished(number: int, request: str, status: str = "FINISHED_ABORTED") -> HookCall:
    return HookCall(1, number, "scheduler", "request_finished", {"request": request, "status": status}, (False, None))


# -- the data --


def test_every_situation_of_the_data_has_its_recogniser() -> None:
    assert {bug.situation for bug in load_engine_bugs()} == set(SITUATIONS)
    assert len({bug.id for bug in load_engine_bugs()}) == len(load_engine_bugs())


@pytest.mark.parametrize("bug", load_engine_bugs(), ids=lambda bug: bug.id)
def test_every_defect_has_evidence_in_the_first_release_that_has_it(bug: EngineBug) -> None:
    assert bug.since in {evidence.release for evidence in bug.evidence}
    assert bug.affects(bug.since)
    assert not bug.affects("0.21.0")
    assert not replace(bug, until="0.33.0").affects("0.34.0")


# -- a block whose load failed stays in the local prefix cache --

STARTED = EngineStarted(1, 0, (16,), "recompute")
# r1's two blocks 1 and 2 are loaded synchronously, the second one fails.
LOADING = (
    STARTED,
    match((32, False), tokens=40),
    alloc(32),
    *step(1),
    failed(1, 2),
)
# r2 gets both as a local hit.
LATER = (match((0, False), request="r2", computed=32, tokens=40, step=3), alloc(0, request="r2", step=3), *step(2))
BAD = wrong(16, 31, "tokens 16-31 hold poison of block 2", request="r2", external=False, step=3)


def test_local_hit_on_a_block_whose_failed_load_was_never_recomputed() -> None:
    met = examined(*LOADING, finished(2, "r1"), *LATER, BAD)
    assert not met.findings
    assert "cached-failed-load" in met.engine_bug
    assert met.excused == ("LOAD-01",)
    assert met.excused_symptom
    assert not any(count for seen in met.witnesses.values() for count in seen.values())


def test_what_comes_before_the_defect_is_held_against_the_connector_all_the_same() -> None:
    early = match((-16, False), request="r3", step=1)
    assert rules(examined(STARTED, early, *LOADING[1:], finished(2, "r1"), *LATER, BAD)) == ["MATCH-03"]


RECOMPUTED = Scheduled(1, 2, {"r1": 16}, {"r1": 24})
EXACTLY = replace(RECOMPUTED, scheduled={"r1": 16})
PARTLY = replace(RECOMPUTED, scheduled={"r1": 8})
ENDED = finished(2, "r1")


# r4 gets its first block locally and the other one anew.
PARTLY_SHARED = (match((0, False), request="r4", computed=16, step=2), alloc(0, request="r4", step=2))
ACTED = ProgramAction(1, 3, "abort", {"request": "r9"})
# Loads that go well: before the failing one, and beside it.
TWO_BLOCKS = (match((32, False), request="r0"), alloc(32, request="r0"), *step(1))
EARLIER = (match((16, False), request="r0"), alloc(16, request="r0"), *step(1))
NEVER_ENDING = (match((32, False), request="r0"), alloc(32, request="r0"))
LOAD_OF_NO_FAILURE = (match((32, False), request="r3", step=2), alloc(32, request="r3", step=2), *step(2), failed(2, 3))


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((*LOADING, RECOMPUTED, finished(2, "r1"), *LATER, BAD), "it was computed anew"),
        ((*LOADING, EXACTLY, ENDED, *LATER, BAD), "all of it was computed anew"),
        ((*LOADING, replace(RECOMPUTED, computed={}, scheduled={"r1": 32}), ENDED, *LATER, BAD), "from the front"),
        ((*LOADING, PARTLY, RECOMPUTED, ENDED, *LATER, BAD), "it was computed anew in two steps"),
        ((*LOADING, RECOMPUTED, PARTLY, ENDED, *LATER, BAD), "it was computed anew, and in part again"),
        ((*LOADING, *LATER, BAD, ENDED), "the request ended afterwards"),
        ((ENDED, *LOADING, *LATER, BAD), "an earlier one of the id has ended"),
        ((*LOADING, finished(2, "r3"), *LATER, BAD), "somebody else has ended"),
        ((*LOADING, replace(ENDED, engine=2), *LATER, BAD), "it ended in another engine"),
        ((*LOADING, ENDED, *LATER, replace(BAD, blocks=())), "no block is named"),
        ((*LOADING, ENDED, *LATER, replace(BAD, blocks=(2, 7))), "so is a block of nobody"),
        ((STARTED, *TWO_BLOCKS, *LOADING[1:], RECOMPUTED, ENDED, finished(2, "r0"), *LATER, BAD), "an old load"),
        ((*LOADING, ENDED, ACTED, alloc(0, request="r3", step=2), *LATER, BAD), "it has another owner, later"),
        ((*LOADING, ENDED, alloc(0, request="r3", step=2), alloc(0, request="r4"), *LATER, BAD), "two others"),
        ((*LOADING, ENDED, *PARTLY_SHARED, *LATER, BAD), "it is behind the local hit of its new owner"),
        ((*LOADING, *LOAD_OF_NO_FAILURE, finished(3, "r3"), *LATER, BAD), "the other load did not fail"),
        ((*LOADING[:-1], finished(2, "r1"), *LATER, BAD), "no failure was reported"),
        ((*LOADING, *LATER, BAD), "the request has not ended"),
        ((*LOADING, finished(2, "r1"), *LATER, replace(BAD, blocks=(1, 2))), "so is a block that was loaded"),
        ((*LOADING, finished(2, "r1"), *LATER, replace(BAD, external=True)), "it was loaded once more"),
        ((*LOADING, finished(2, "r1"), alloc(0, request="r3", step=2), *LATER, BAD), "it has another owner"),
        ((replace(STARTED, load_failure_policy="fail"), *LOADING[1:], finished(2, "r1"), *LATER, BAD), "vLLM evicts"),
        (
            (STARTED, match((32, True), tokens=40), *LOADING[2:], finished(2, "r1"), *LATER, BAD),
            "asynchronous loads are not cached before they end",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_wrong_local_hits_are_the_connectors(events: tuple[Event, ...], why: str) -> None:
    examination = examined(*events)
    assert "LOAD-01" in rules(examination), why
    assert not examination.engine_bug


OTHER_ENGINE = (
    replace(RECOMPUTED, engine=2),
    alloc(0, request="r3", step=2, engine=2),
    alloc(0, request="r2", engine=2),
)
# r3 loads block 1, which fails, after r1's second block has: both are bad, each since its own end.
GIVEN = {"request": "r3", "block_ids": [[1, 9]], "num_external_tokens": 16}
SECOND_FAILURE = (
    match((16, False), request="r3", step=3),
    replace(alloc(16, request="r3", step=3), args=GIVEN),
    *step(3),
    failed(3, 1),
)


@pytest.mark.parametrize(
    "events",
    [
        (*LOADING, PARTLY, ENDED, *LATER, BAD),
        (*LOADING, replace(PARTLY, computed={}, scheduled={"r1": 31}), ENDED, *LATER, BAD),
        (*LOADING, replace(RECOMPUTED, computed={}, scheduled={"r3": 40}), ENDED, *LATER, BAD),
        # What was computed in the step of the load, and by a later request of the id.
        (*LOADING[:-1], RECOMPUTED, LOADING[-1], ENDED, *LATER, BAD),
        (*LOADING, ENDED, RECOMPUTED, *LATER, BAD),
        (*LOADING, replace(ENDED, hook="request_finished_all_groups"), *LATER, BAD),
        (*LOADING, Scheduled(1, 2, {}, {}, preempted=("r3", "r1")), *LATER, BAD),
        (*LOADING, replace(ENDED, engine=2), ENDED, *LATER, BAD),
        (*LOADING, finished(2, "r3"), ENDED, *LATER, BAD),
        (*LOADING, *OTHER_ENGINE, ENDED, *OTHER_ENGINE, *LATER, BAD),
        (*LOADING, ENDED, *LATER, ACTED, BAD),
        # Given away after it was read, and left once more.
        (*LOADING, ENDED, *LATER, BAD, alloc(0, request="r3", step=4)),
        (*LOADING, ENDED, *LATER, BAD, *LOADING[1:3], *step(3), failed(3, 2), finished(4, "r1")),
        (*LOADING, ENDED, *LOADING[1:3], *step(3), failed(3, 2), finished(4, "r1"), *LATER, BAD),
        (*LOADING, ENDED, *SECOND_FAILURE, finished(3, "r3"), *LATER, BAD),
        (*LOADING, ENDED, *SECOND_FAILURE, finished(3, "r3"), *LATER, replace(BAD, blocks=(1, 2))),
        # Other loads are known when the failure is reported, one of which never ends.
        (STARTED, *EARLIER, *LOADING[1:], ENDED, *LATER, BAD),
        (STARTED, *NEVER_ENDING, *LOADING[1:], ENDED, *LATER, BAD),
        (STARTED, match((32, True), request="r0"), *NEVER_ENDING[1:], *LOADING[1:], ENDED, *LATER, BAD),
    ],
)
def test_block_that_was_not_computed_anew_before_its_request_ended(events: tuple[Event, ...]) -> None:
    met = examined(*events)
    assert not met.findings
    assert "cached-failed-load" in met.engine_bug


def test_first_token_of_a_block_is_enough_to_compute() -> None:
    small = (replace(STARTED, block_sizes=(1,)), match((1, False)), alloc(1), *step(1), failed(1, 1), ENDED)
    later = (match((0, False), request="r2", computed=1, step=3), alloc(0, request="r2", step=3), *step(2))
    bad = replace(BAD, positions=(0,), blocks=(1,))
    assert not examined(*small, *later, bad).findings
    assert examined(*small, alloc(0, request="r3"), *later, bad).findings


def test_release_without_the_defect() -> None:
    assert rules(examined(*LOADING, finished(2, "r1"), *LATER, BAD, release="0.21.0")) == ["LOAD-01"]


# -- two completions of an aborted request --

WHERE = "vllm/v1/core/sched/scheduler.py:3234 in _update_from_kv_xfer_finished"
ASSERTED = EngineRaised(1, 3, "update_from_output", "AssertionError:", WHERE)


def completions(step: int, sent: list[str], received: list[str]) -> HookCall:
    args = {"finished_sending": sent, "finished_recving": received, "invalid_block_ids": []}
    return HookCall(1, step, "scheduler", "update_connector_output", args)


def of_the_child(sent: list[str], received: list[str]) -> ChildCall:
    return ChildCall(1, 3, call("get_finished", 3, ({"set": sent}, {"set": received}), finished_req_ids=[]))


LOADED_BY_THE_CHILD = (ChildCall(1, 1, match((32, True))), ChildCall(1, 1, alloc(32)))
TWICE = (STARTED, *LOADED_BY_THE_CHILD, finished(2, "r1"), completions(3, ["r1"], ["r1"]))


def test_two_children_that_complete_an_aborted_request() -> None:
    met = examined(*TWICE, of_the_child([], ["r1"]), ASSERTED)
    assert not met.findings
    assert "two-completions-of-an-aborted-request" in met.engine_bug
    assert met.excused == ("LIVE-01",)


@pytest.mark.parametrize(
    "events",
    [
        (*TWICE, of_the_child(["r1"], ["r1"]), ASSERTED),
        (STARTED, finished(2, "r1"), TWICE[-1], ASSERTED),
        (
            STARTED,
            *LOADED_BY_THE_CHILD,
            finished(2, "r1", "FINISHED_STOPPED"),
            TWICE[-1],
            of_the_child([], ["r1"]),
            ASSERTED,
        ),
        (*TWICE[:-1], completions(3, [], ["r1"]), of_the_child([], ["r1"]), ASSERTED),
        (*TWICE, of_the_child([], ["r1"]), replace(ASSERTED, error="KeyError: 'r1'")),
        (*TWICE, of_the_child([], ["r1"]), replace(ASSERTED, where="vendor.py:7 in hook")),
        (*TWICE[:-1], replace(TWICE[-1], engine=2), of_the_child([], ["r1"]), ASSERTED),
        (STARTED, *TWICE[3:], replace(of_the_child([], ["r1"]), engine=2), ASSERTED),
        (*TWICE[:3], replace(TWICE[3], engine=2), TWICE[-1], of_the_child([], ["r1"]), ASSERTED),
        (*TWICE[:3], finished(2, "r2"), TWICE[-1], of_the_child([], ["r1"]), ASSERTED),
    ],
    ids=[
        "both are the child's",
        "no MultiConnector",
        "not aborted",
        "one completion",
        "another exception",
        "elsewhere",
        "completed in another engine",
        "MultiConnector in another engine",
        "aborted in another engine",
        "another one aborted",
    ],
)
def test_other_exceptions_of_the_scheduler_are_held_against_the_connector(events: tuple[Event, ...]) -> None:
    examination = examined(*events)
    assert not examination.engine_bug
    assert examination.findings


def test_earlier_exceptions_explain_nothing() -> None:
    other = replace(ASSERTED, error="KeyError: 'r1'")
    assert examined(*TWICE, of_the_child([], ["r1"]), other, ASSERTED).engine_bug


# -- too few blocks for the state of an external hit --


def out_of_blocks(
    during: str = "schedule", where: str = "vllm/v1/core/block_pool.py:679 in get_new_blocks"
) -> EngineRaised:
    return EngineRaised(1, 2, during, "ValueError: Cannot get 1 free blocks from the pool", where, None)


RECURRENT = EngineStarted(1, 0, (16, 16), "recompute", (1,))


def test_pool_that_runs_out_under_an_external_hit_on_a_model_with_recurrent_layers() -> None:
    examination = examined(RECURRENT, match((32, False), step=2), out_of_blocks())
    assert (rules(examination), "external-state-not-counted" in examination.engine_bug) == ([], True)
    assert examination.excused == ("LIVE-01",)


@pytest.mark.parametrize(
    "events",
    [
        (EngineStarted(1, 0, (16,), "recompute"), match((32, False), step=2), out_of_blocks()),
        (RECURRENT, match((0, False), step=2), out_of_blocks()),
        (RECURRENT, match((32, True), step=2), out_of_blocks()),
        (RECURRENT, match((32, False), step=1), out_of_blocks()),
        (RECURRENT, match((32, False), step=2), out_of_blocks(during="execute_model")),
        (RECURRENT, match((32, False), step=2), out_of_blocks(where="vendor.py:7 in touch")),
        (RECURRENT, match((32, False), step=2), replace(out_of_blocks(), error="ValueError: block 3 is in use")),
        (RECURRENT, match((32, False), step=2, engine=2), out_of_blocks()),
        (RECURRENT, match((32, False), step=2), match((0, False), request="r2", step=2), out_of_blocks()),
    ],
    ids=[
        "no states",
        "no hit",
        "asynchronous",
        "another step",
        "not scheduling",
        "elsewhere",
        "another exception",
        "another engine",
        "another request",
    ],
)
def test_pool_that_runs_out_otherwise_is_held_against_the_connector(events: tuple[Event, ...]) -> None:
    assert rules(examined(*events)) == ["LIVE-01"]


def test_first_of_two_defects_counts() -> None:
    pool = (match((32, False), step=2), out_of_blocks())
    twice = (*TWICE[1:], of_the_child([], ["r1"]), ASSERTED)
    assert "external-state-not-counted" in examined(RECURRENT, *pool, *twice).engine_bug
    assert "two-completions-of-an-aborted-request" in examined(RECURRENT, *twice, *pool).engine_bug
    assert examined(RECURRENT, pool[0], ASSERTED, pool[1]).engine_bug, "whatever raised before"
