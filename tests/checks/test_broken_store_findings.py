"""What becomes of requests whose loads fail or whose saves do, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, compared, failing, history, match, raised, stray, witness, wrong
from test_asynchronous_findings import stuck
from test_failure_findings import GROUPS, START, step

from kvconform.checks import Finding
from kvconform.checks.failures import broken_rule, failed_rule, recomputed_rule, refused_rule
from kvconform.engine.events import Event, HookCall, ProgramAction, StoreBroken, Tokens

# -- symptoms of a broken store ----------------------------------------------------------------------------------------

TAINTED = wrong(16, 31, "tokens 16-31 hold r2's own (computed on top of wrong KV)", external=False, step=5)


def sorted_by(sort: Any, at: Event, *before: Event, rule: str = "LOAD-01") -> str:
    """The rule that a symptom is bound to."""
    answer: str = sort(history(START, *before, at), Finding(rule, "right", "wrong", at, symptom=True))
    return answer


@pytest.mark.parametrize(
    ("before", "rule"),
    [
        ((), "SAVE-04"),
        ((wrong(0, 15, step=4),), "FAIL-20"),
        ((wrong(0, 15, step=4), wrong(0, 15, reported_failed=True, step=3)), "FAIL-20"),
        ((wrong(0, 15, step=9, engine=0),), "FAIL-20"),
        # Known to be bad, not loaded, not earlier, or bad for the same reason.
        ((wrong(0, 15, step=4, reported_failed=True),), "SAVE-04"),
        ((wrong(0, 15, step=4, external=False),), "SAVE-04"),
        ((wrong(0, 15, step=5),), "SAVE-04"),
        ((wrong(0, 15, step=4, engine=2),), "SAVE-04"),
        ((replace(TAINTED, external=True, step=4),), "SAVE-04"),
        ((replace(TAINTED, external=True, step=4, observed=("token 3 holds zeros", *TAINTED.observed)),), "SAVE-04"),
    ],
)
def test_kv_that_was_computed_on_wrong_kv_is_stored_by_nobody_who_knows(before: tuple[Event, ...], rule: str) -> None:
    assert sorted_by(broken_rule, TAINTED, *before) == rule
    assert (
        sorted_by(broken_rule, replace(TAINTED, observed=("token 3 holds zeros", *TAINTED.observed)), *before) == rule
    )


def test_other_symptoms_of_a_broken_store_are_about_unnoticed_failures() -> None:
    assert sorted_by(broken_rule, wrong(0, 15)) == "FAIL-20"
    assert sorted_by(broken_rule, raised("wait_for_save")) == "FAIL-20"
    assert sorted_by(broken_rule, raised("wait_for_save"), rule="LIVE-01") == "LIVE-01"


LOST = step(1, [1], load=48)
LOST_ASYNCHRONOUS = (*step(1, load=48, asynchronous=True), *step(2, [1]))


@pytest.mark.parametrize(
    ("before", "rule"),
    [
        (LOST, "FAIL-11"),
        ((*LOST, *step(2, load=48, asynchronous=True, request="r2"), *step(3, [2])), "FAIL-11"),
        (LOST_ASYNCHRONOUS, "FAIL-20"),
        ((*LOST_ASYNCHRONOUS, *step(3, [3], load=16, request="r2")), "FAIL-20"),
        ((), "FAIL-20"),
        (step(1, load=48), "FAIL-20"),
        ((*step(1, load=48), *step(2, [1])), "FAIL-03"),
        ((*step(1, load=48, asynchronous=True), *step(2, received=["r1"]), *step(3, [3])), "FAIL-02"),
        (
            (*step(1, load=48, asynchronous=True), *step(2, received=["r1"]), *step(3, [3]),
             *step(4, load=48, request="r2"), *step(5, [1])),
            "FAIL-02",
        ),
        ((*LOST, *step(2, [7])), "FAIL-11"),
    ],
)  # fmt: skip
def test_symptom_under_recompute_is_of_the_failure_that_came_late_or_was_not_recomputed(
    before: tuple[Event, ...], rule: str
) -> None:
    assert sorted_by(recomputed_rule, wrong(0, 15, step=9), *before) == rule


def error(request: str = "r1", reason: str = "error") -> Tokens:
    return Tokens(1, 3, request, (), reason)


def end(request: str = "r1", status: str = "FINISHED_ERROR") -> HookCall:
    return HookCall(1, 3, "scheduler", "request_finished", {"request": request, "status": status, "block_ids": []})


@pytest.mark.parametrize(
    ("at", "before", "rule"),
    [
        (wrong(0, 15), (), "FAIL-08"),
        (wrong(0, 15), (error(),), "FAIL-06"),
        (wrong(0, 15), (end(),), "FAIL-06"),
        (wrong(0, 15), (error(reason="length"), error("r2"), end(status="FINISHED_STOPPED"), end("r3")), "FAIL-08"),
        (raised("wait_for_save"), (), "FAIL-06"),
    ],
)
def test_symptom_under_fail_is_of_the_failed_request_or_of_a_later_one(
    at: Event, before: tuple[Event, ...], rule: str
) -> None:
    assert sorted_by(failed_rule, at, *before) == rule


@pytest.mark.parametrize(
    ("at", "rule", "expected"),
    [
        (wrong(0, 15), "LOAD-01", "SAVE-16"),
        (stray(9), "LOAD-03", "SAVE-16"),
        (raised("wait_for_save"), "LIVE-01", "FAIL-16"),
        (stuck("r1"), "LIVE-02", "ASYNC-21"),
    ],
)
def test_symptom_of_saves_that_fail_is_of_its_kind(at: Event, rule: str, expected: str) -> None:
    assert sorted_by(refused_rule, at, rule=rule) == expected


def promised(times: int, *, request: str = "r1", asynchronous: bool = True) -> tuple[Event, ...]:
    """A load that fails, is reported properly and promised again, so many times."""
    received = [request] if asynchronous else []
    steps = (
        step(n, [1], load=48, request=request, asynchronous=asynchronous, received=received)
        for n in range(1, times + 1)
    )
    return tuple(event for events in steps for event in events)


NOT_RECEIVED = step(1, load=48, asynchronous=True, lost=["r1"])


@pytest.mark.parametrize(
    ("before", "rule"),
    [
        ((), None),
        (promised(3), None),
        (promised(4), "FAIL-10"),
        (promised(4, asynchronous=False), "FAIL-10"),
        (promised(4, request="r2"), None),
        (promised(2) + NOT_RECEIVED, "FAIL-02"),
        # More failed blocks of one load are one failure.
        ((*step(1, [1], load=48, asynchronous=True), *step(2, [1, 2]), *step(3, [2]), *step(4, [3])), "FAIL-02"),
        ((*step(1, load=48, asynchronous=True), *step(2), *step(3), *step(4)), None),
        (NOT_RECEIVED, "FAIL-02"),
        ((*NOT_RECEIVED, error()), "FAIL-09"),
        ((*NOT_RECEIVED, end()), "FAIL-09"),
        ((*NOT_RECEIVED, error("r2")), "FAIL-02"),
        ((*NOT_RECEIVED, *step(2, received=["r1"])), None),
        (step(1, load=48, asynchronous=True, lost=["r1"], received=["r1"]), None),
        (step(1, load=48, asynchronous=True, lost=["r1"], request="r2"), None),
        ((*step(1, load=16, asynchronous=True), *step(2, [3], load=48, asynchronous=True, request="r2")), None),
        ((*step(1, [1], load=48), *step(2)), None),
        ((*NOT_RECEIVED, *step(2, received=["r1"]), *step(3, load=48, asynchronous=True, lost=["r1"])), "FAIL-02"),
        ((*NOT_RECEIVED, *step(2, [1], received=["r1"], load=48)), None),
    ],
)
def test_request_that_never_ends_after_a_failed_load(before: tuple[Event, ...], rule: str | None) -> None:
    for sort, otherwise in ((broken_rule, "FAIL-20"), (recomputed_rule, "FAIL-20"), (failed_rule, "FAIL-06")):
        assert sorted_by(sort, stuck("r9", "r1"), *before, rule="LIVE-02") == (rule or otherwise)
        elsewhere = replace(stuck("r1"), engine=2)
        assert sorted_by(sort, elsewhere, *before, rule="LIVE-02") == otherwise


# -- witnesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "all_of_them", "asynchronous", "synchronous"),
    [
        (LOST, 1, 0, 1),
        (LOST_ASYNCHRONOUS, 1, 1, 0),
        ((*LOST_ASYNCHRONOUS, *step(3, [2])), 1, 1, 0),
        ((*LOST, *step(2, [2], load=48)), 2, 0, 2),
        (NOT_RECEIVED, 1, 1, 0),
        ((*LOST, *step(2, load=48, asynchronous=True, request="r2"), *step(3, [2])), 2, 1, 1),
        (step(1, load=48), 0, 0, 0),
        ((*step(1, load=16, asynchronous=True), *step(2, [3], load=48, request="r2")), 1, 0, 1),
        (step(1, [7], load=48), 0, 0, 0),
        (step(1, load=48, asynchronous=True, lost=["r2"]), 0, 0, 0),
        ((*step(1, load=48), *step(2, [1])), 0, 0, 0),
    ],
)
def test_failed_loads_that_were_reported_in_time_are_counted(
    events: tuple[Event, ...], all_of_them: int, asynchronous: int, synchronous: int
) -> None:
    for rule in ("FAIL-01", "FAIL-04", "FAIL-07", "FAIL-20"):
        assert witness(rule, START, *events) == all_of_them
    assert witness("FAIL-02", START, *events) == asynchronous
    assert witness("FAIL-03", START, *events) == witness("FAIL-12", START, *events) == synchronous


def test_requests_that_fail_are_counted_once() -> None:
    assert witness("FAIL-06", error(), end(), error("r2"), end("r3"), error("r4", "stop")) == 3


@pytest.mark.parametrize(
    ("events", "tokens"),
    [
        ((error(), compared(32, request="r2"), compared(16, request="r3")), 48),
        ((error(), compared(32)), 0),
        ((error("r1", "length"), compared(32, request="r2")), 0),
        ((compared(32, request="r2"), error()), 0),
        ((error(), stray(9), compared(0, request="r2")), 0),
        ((error(), end("r2"), wrong(0, 15, request="r2")), 0),
    ],
)
def test_loads_after_a_request_has_failed_are_counted(events: tuple[Event, ...], tokens: int) -> None:
    assert witness("FAIL-08", *events) == tokens


@pytest.mark.parametrize(("rule", "lost"), [("FAIL-10", LOST_ASYNCHRONOUS), ("FAIL-11", LOST)])
def test_requests_that_went_on_after_a_failed_load_are_counted(rule: str, lost: tuple[Event, ...]) -> None:
    other = {"FAIL-10": "FAIL-11", "FAIL-11": "FAIL-10"}[rule]
    for reason in ("length", "stop"):
        assert witness(rule, START, *lost, error(reason=reason)) == 1
    assert witness(other, START, *lost, error(reason="stop")) == 0
    for ended in ((), (error(),), (error("r2", "stop"),), (Tokens(1, 3, "r1", (5,), None),)):
        assert witness(rule, START, *lost, *ended) == 0
    assert witness(rule, START, *lost, replace(error(reason="stop"), engine=2)) == 0
    beside = (*step(1, load=16), *step(2, load=16, asynchronous=True, request="r2"))
    assert witness(rule, START, *beside, *step(3, [3]), error(reason="stop"), error("r2", "stop")) == 0


@pytest.mark.parametrize("rule", ["FAIL-05", "FAIL-15"])
def test_failures_with_several_groups_are_counted(rule: str) -> None:
    lost = step(1, load=48, asynchronous=True, lost=["r1", "r2"], received=["r1"])
    assert witness(rule, GROUPS, *lost) == 2
    assert witness(rule, START, *lost) == 0
    removed = StoreBroken(1, 1, "data", "removed", 3)
    assert witness(rule, GROUPS, removed, raised("start_load_kv"), raised("wait_for_save")) == 1


# -- saves that fail ---------------------------------------------------------------------------------------------------

REFUSING, MENDED = StoreBroken(1, 1, "writes", "full", 3), StoreBroken(1, 5, "mended", "", 3)


def added(request: str, *tokens: int, action: str = "add") -> ProgramAction:
    return ProgramAction(1, 0, action, {"request": request, "tokens": list(tokens)})


MISSED = (added("b", 1, 2), match((0, False), request="b"))
REFUSED = (REFUSING, added("a", 1, 2), MENDED)


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((*REFUSED, *MISSED), 1),
        ((replace(REFUSING, files=1), added("a", 1, 2), replace(MENDED, files=1), *MISSED), 1),
        ((*REFUSED, *MISSED, added("c", 1, 2), match((0, False), request="c")), 1),
        ((*REFUSED, added("b", 1, 2), match((0, False), request="b", computed=16), *MISSED), 0),
        ((REFUSING, added("a", 1, 2), added("c", 3, 4), MENDED, *MISSED, match((0, False), request="c")), 2),
        ((*REFUSED, added("b", 1, 2), match((2, False), request="b")), 0),
        ((*REFUSED, added("b", 1, 2), match((2, False), request="b"), match((0, False), request="b")), 0),
        ((*REFUSED, added("b", 1, 2), failing(match((0, False), request="b"))), 0),
        ((*REFUSED, added("b", 1), match((0, False), request="b")), 0),
        ((*REFUSED, added("b", 1, 2), alloc(0, request="b")), 0),
        ((*REFUSED, match((0, False), request="unknown")), 0),
        ((REFUSING, added("a", 1, 2), *MISSED), 0),
        ((REFUSING, MENDED, added("a", 1, 2), *MISSED), 0),
        ((added("a", 1, 2), REFUSING, MENDED, *MISSED), 0),
        ((REFUSING, added("a", 1, 2, action="abort"), MENDED, *MISSED), 0),
        # Nothing that could be made unwritable was there: the connector keeps nothing on a disk.
        ((replace(REFUSING, files=0), added("a", 1, 2), replace(MENDED, files=0), *MISSED), 0),
        ((REFUSING, MENDED, replace(REFUSING, files=0), added("a", 1, 2), MENDED, *MISSED), 1),
        ((replace(REFUSING, kind="data"), added("a", 1, 2), MENDED, *MISSED), 0),
        ((REFUSING, replace(REFUSING, kind="data"), *REFUSED[1:], *MISSED), 1),
        ((replace(REFUSING, kind="data"), replace(REFUSING, files=0), *REFUSED[1:], *MISSED), 0),
    ],
)
def test_prompts_that_are_missing_because_their_saves_failed_are_counted(events: tuple[Event, ...], count: int) -> None:
    assert witness("FAIL-16", *events) == count
