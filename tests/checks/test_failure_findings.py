"""FAIL, SHUT, STAT and EVT on histories made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, failing, found, match, raised, witness

from kvconform.checks import CHECKS_BY_RULE
from kvconform.engine.events import EngineStarted, Event, EventsPublished, HookCall, StatisticsTaken

START = EngineStarted(1, 0, (16,), "recompute")


def step(number: int, failed: Any = (), *, request: str = "r1", load: int = 0, local: int = 0, **more: Any) -> Any:
    """One step: perhaps a load is promised, metadata built and bound, results and failed blocks handed out."""
    asynchronous, received = more.get("asynchronous", False), more.get("received", ())
    results = {"finished_sending": [], "finished_recving": list(received), "failed_recving": more.get("lost", [])}
    promise: list[Event] = []
    if load:
        promise = [match((load, asynchronous), request=request, computed=local, step=number)]
        promise.append(alloc(load, request=request, step=number))
    errors = {"set": list(failed)} if isinstance(failed, (tuple, list)) else failed
    return (
        *promise,
        HookCall(1, number, "scheduler", "build_connector_meta"),
        HookCall(1, number, "worker", "bind_connector_metadata"),
        HookCall(1, number, "worker", "get_transfer_results", {}, results),
        HookCall(1, number, "worker", "get_block_ids_with_load_errors", {}, errors),
    )


REPORTS = ("FAIL-01", "FAIL-02", "FAIL-03", "FAIL-04", "FAIL-05", "FAIL-07", "FAIL-12")


def rules(*events: Event) -> list[str]:
    return [rule for rule in REPORTS if found(rule, START, *events)]


def test_a_report_in_the_step_that_loads_is_right() -> None:
    events = step(1, [1, 3], load=48)
    assert rules(*events) == []
    assert witness("FAIL-03", START, *events) == 1


@pytest.mark.parametrize(("later", "rule"), [(2, "FAIL-03"), (4, "FAIL-03"), (5, "FAIL-04"), (9, "FAIL-04")])
def test_a_report_after_the_step_is_late_and_much_later_it_is_foreign(later: int, rule: str) -> None:
    between = [event for number in range(2, later) for event in step(number)]
    assert rules(*step(1, load=48), *between, *step(later, [1])) == [rule]


def test_a_block_reported_twice_for_one_load() -> None:
    assert rules(*step(1, [1], load=48), *step(2, [1])) == ["FAIL-01"]


def test_a_block_that_fails_in_two_loads_is_reported_twice() -> None:
    assert rules(*step(1, [1], load=48), *step(2, [1], load=48)) == []


def test_a_local_block_and_one_that_nobody_loads() -> None:
    assert rules(*step(1, [1], load=32, local=16)) == ["FAIL-07"]
    assert rules(*step(1, [7], load=48)) == ["FAIL-04"]
    assert rules(*step(1, load=32, local=16), *step(2, [1])) == ["FAIL-04"], "its load is over"


def test_an_asynchronous_load_may_be_reported_in_parts_and_again_until_it_was_received() -> None:
    loading = (*step(1, [1], load=48, asynchronous=True), *step(2, [1, 2]))
    assert rules(*loading, *step(3, [3], received=["r1"])) == []
    for later, rule in ((4, "FAIL-02"), (6, "FAIL-02"), (7, "FAIL-04")):
        between = [event for number in range(4, later) for event in step(number)]
        assert rules(*loading, *step(3, received=["r1"]), *between, *step(later, [3])) == [rule]


def of_rank(events: tuple[Event, ...], rank: int) -> tuple[Event, ...]:
    """What another worker does in the same step."""
    calls = [event for event in events if isinstance(event, HookCall) and event.role == "worker"]
    return tuple(replace(call, rank=rank) for call in calls)


def test_each_worker_reports_an_asynchronous_load_when_its_own_part_is_done() -> None:
    """The other one's part may fail earlier and end the request; the blocks are the same ones."""
    first = (*step(1, load=48, asynchronous=True), *of_rank(step(1, [3], received=["r1"]), 1))
    assert rules(*first, *step(2, [2, 3], received=["r1"])) == []
    late = of_rank(step(2, [2]), 1)
    assert rules(*first, *step(2, received=["r1"]), *late) == ["FAIL-02"]
    again = of_rank(step(2, [3]), 1)
    assert rules(*first, *step(2, received=["r1"]), *again) == ["FAIL-01"]


def test_a_synchronous_load_is_reported_by_each_worker_in_its_step() -> None:
    assert rules(*step(1, [1], load=48), *of_rank(step(1, [1]), 1)) == []
    assert rules(*step(1, [1], load=48), *of_rank(step(1), 1), *of_rank(step(2, [1]), 1)) == ["FAIL-03"]


@pytest.mark.parametrize(
    ("rule", "events", "expected", "observed", "requests"),
    [
        (
            "FAIL-01",
            (*step(1, [1], load=48), *step(2), *step(3, [1])),
            "block 1 of r1's load was reported before",
            "reported block 1 again, 2 steps later",
            ("r1",),
        ),
        (
            "FAIL-02",
            (*step(1, load=48, asynchronous=True), *step(2, received=["r1"]), *step(3, [3])),
            "in the output with its finished_recving, at the latest",
            "reported block 3 1 step too late",
            ("r1",),
        ),
        (
            "FAIL-03",
            (*step(1, load=48), *step(2), *step(3, [3])),
            "in the step that loads it",
            "reported block 3 2 steps too late",
            ("r1",),
        ),
        (
            "FAIL-07",
            (*step(1, [1], load=32, local=16),),
            "only blocks 2, 3, which r1's load was to fill",
            "reported block 1, which is a local hit of r1",
            ("r1",),
        ),
        ("FAIL-04", step(1, [7]), "only blocks that a load of now", "reported block 7, which no load was to fill", ()),
    ],
)
def test_block_that_should_not_have_been_reported_is_told_with_its_load(
    rule: str, events: tuple[Event, ...], expected: str, observed: str, requests: tuple[str, ...]
) -> None:
    (finding,) = found(rule, START, *events)
    assert (expected in finding.expected, observed in finding.observed) == (True, True)
    assert finding.requests == requests


def test_blocks_of_one_report_are_one_finding_by_rule() -> None:
    assert len(found("FAIL-04", START, *step(1, [7, 8]), *step(2, [8, 9]))) == 2


def test_failed_recving_is_for_asynchronous_loads() -> None:
    assert rules(*step(1, load=48, lost=["r1"])) == ["FAIL-12"]
    assert rules(*step(1, load=48, asynchronous=True, lost=["r1"], received=["r1"])) == []
    other = step(1, load=48, request="r2")
    assert rules(*step(1, load=48, asynchronous=True), *other, *step(2, lost=["r1"], received=["r1"])) == []
    assert rules(*step(1, lost=["r9"])) == [], "nobody's load"
    again = (*step(1, load=48), *step(2, load=48, asynchronous=True, lost=["r1"], received=["r1"]))
    assert rules(*again) == [], "the last load counts"
    (finding,) = found("FAIL-12", START, *step(1, load=48, lost=["r1"]))
    assert finding.requests == ("r1",)


GROUPS = EngineStarted(1, 0, (16, 32), "recompute")


def test_block_ids_with_several_groups() -> None:
    first, second = found("FAIL-05", GROUPS, *step(1, [3, 1], load=48), *step(2, [2]))
    assert (first.observed, second.observed) == ("block ids 1, 3 were reported", "block ids 2 were reported")
    assert found("FAIL-05", GROUPS, *step(1, load=48, asynchronous=True, lost=["r1"], received=["r1"])) == []


@pytest.mark.parametrize("answer", [None, "<builtins.list>", {"list": [1]}])
def test_only_a_set_is_a_set(answer: Any) -> None:
    assert rules(*step(1, answer), *step(2, answer)) == ["FAIL-01"]
    (finding,) = found("FAIL-01", *step(1, answer), *step(2, answer))
    assert finding.observed == f"get_block_ids_with_load_errors returned {answer}"


def test_exception_is_no_answer() -> None:
    assert rules(*map(failing, step(1))) == []


# -- ends, statistics, events --------------------------------------------------------------------------------------


def test_a_shutdown_that_raises_breaks_one_rule_only() -> None:
    assert found("SHUT-05", raised("shutdown", during="worker shutdown"))
    assert found("SHUT-06", raised("shutdown", during="second worker shutdown"))
    assert not found("LIVE-01", raised("shutdown", during="worker shutdown"))


@pytest.mark.parametrize("rule", [rule for rule in CHECKS_BY_RULE if rule.startswith(("STAT", "EVT"))])
def test_problems_that_the_engine_noted_are_findings_of_their_rules(rule: str) -> None:
    problem = (rule, "this", "that")
    events = (StatisticsTaken(1, 1, "worker", True, (problem,)), EventsPublished(1, 1, 2, 0, (problem,)))
    (finding,) = found(rule, *events)
    assert (finding.expected, finding.observed) == ("this", "that")
