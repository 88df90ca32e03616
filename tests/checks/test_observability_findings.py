"""Statistics and events on hand-made histories, and where a constructor looks for its options."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import broken, found, witness

from kvconform.checks.class_model import ClassObservation, Raised, RoleObservation
from kvconform.checks.configuration import REMOVED, built, misplaced, missing_fields
from kvconform.engine.events import ChildCall, EventsPublished, HookCall, StatisticsRead, StatisticsTaken

BUILT = RoleObservation("worker", is_connector=True, role_kept=True, kv_cache_config="kept")
SEEN = ClassObservation(worker=BUILT, scheduler=replace(BUILT, role="scheduler"))


def call(hook: str, result: object, error: str | None = None) -> HookCall:
    return HookCall(1, 1, "scheduler", hook, {}, result, error)


def lacking(name: str) -> Raised:
    return Raised("AttributeError", f"'KVTransferConfig' object has no attribute '{name}'")


def test_events_that_are_none_are_found_once() -> None:
    none, again = call("take_events", None), call("take_events", None)
    (finding,) = found("EVT-01", call("take_events", ()), none, again)
    assert (finding.rule, finding.at) == ("EVT-01", none)
    assert "returned None" in finding.observed
    assert found("EVT-01", call("take_events", ()), call("take_events", None, "RuntimeError: x")) == []
    assert broken(call("take_events", None, "RuntimeError: x")) == []
    assert broken(call("has_pending_push_work", None)) == []


@pytest.mark.parametrize("rule", ["EVT-01", "EVT-02", "EVT-03", "EVT-04", "EVT-07", "EVT-08"])
def test_noted_problem_of_events_is_found_once(rule: str) -> None:
    other = EventsPublished(1, 1, 1, 0, (("EVT-99", "", ""),))
    noted = EventsPublished(1, 2, 1, 0, ((rule, "this", "that"), (rule, "more", "of it")))
    (finding,) = found(rule, other, noted, noted)
    assert (finding.rule, finding.expected, finding.observed, finding.at) == (rule, "this", "that", noted)


@pytest.mark.parametrize("rule", ["STAT-01", "STAT-02", "STAT-07", "STAT-08", "STAT-10"])
def test_noted_problem_of_statistics_is_found(rule: str) -> None:
    assert broken(StatisticsTaken(1, 1, "worker", True, ((rule, "this", "that"),))) == [rule]


def test_blocks_that_events_name_are_counted() -> None:
    assert witness("EVT-07", EventsPublished(1, 1, 2, 3), EventsPublished(1, 2, 1, 0)) == 6


def test_collections_of_worker_events_are_counted() -> None:
    hook = "get_kv_connector_kv_cache_events"
    seen = (call(hook, "events"), call(hook, None), call(hook, "more events"), call(hook, "events", "RuntimeError: x"))
    assert witness("EVT-03", *seen) == 2
    assert witness("EVT-03", call("take_events", "events")) == 0


def test_filled_statistics_are_counted_and_those_of_both_roles() -> None:
    worker, empty = StatisticsTaken(1, 1, "worker", True), StatisticsTaken(1, 1, "worker", False)
    scheduler = StatisticsTaken(1, 1, "scheduler", True)
    assert witness("STAT-01", worker, empty, scheduler) == 2
    assert witness("STAT-02", worker, scheduler, scheduler) == 2
    assert witness("STAT-02", scheduler) == witness("STAT-02", worker) == witness("STAT-02", empty, scheduler) == 0
    assert witness("STAT-02", worker, StatisticsTaken(1, 1, "scheduler", False)) == 0


def test_statistics_that_arrive_whole_are_counted() -> None:
    wrong = StatisticsRead(1, 1, (("STAT-03", "this", "that"),))
    assert witness("STAT-03", StatisticsRead(1, 1), wrong) == 1
    assert broken(wrong) == ["STAT-03"]


def test_statistics_of_children_are_counted_where_the_connector_is_one() -> None:
    child = ChildCall(2, 1, call("get_kv_connector_stats", None))
    assert witness("STAT-06", child, StatisticsRead(1, 1), StatisticsRead(2, 1), StatisticsRead(2, 2)) == 2
    assert witness("STAT-06", StatisticsRead(1, 1)) == 0


@pytest.mark.parametrize("where", ["configured", "worker", "scheduler"])
def test_option_read_as_an_attribute_is_found_wherever_the_class_is_built(where: str) -> None:
    raised = lacking("path")
    change = raised if where == "configured" else RoleObservation(where, raised)
    (finding,) = misplaced(replace(SEEN, **{where: change}))
    assert finding.rule == "CFG-02"
    assert "'path' read from kv_connector_extra_config" in finding.expected
    assert missing_fields(replace(SEEN, **{where: change})) == {"path": raised}


@pytest.mark.parametrize("name", REMOVED)
def test_field_that_is_gone_is_another_matter(name: str) -> None:
    (finding,) = misplaced(replace(SEEN, worker=RoleObservation("worker", lacking(name))))
    assert (finding.rule, finding.expected) == ("CFG-03", f"no use of kv_transfer_config.{name}")


def test_first_exception_about_an_option_is_told_and_others_are_no_matter_of_options() -> None:
    first, second = lacking("path"), replace(lacking("path"), where="elsewhere.py:1")
    seen = replace(SEEN, worker=RoleObservation("worker", first), scheduler=RoleObservation("scheduler", second))
    assert missing_fields(seen)["path"] is first
    assert missing_fields(replace(SEEN, configured=Raised("OSError", "no device"))) == {}
    assert missing_fields(replace(SEEN, worker=None, scheduler=None)) == {}
    assert missing_fields(SEEN) == {}


def test_roles_that_were_built_are_counted() -> None:
    assert built(SEEN) == 2
    assert built(replace(SEEN, worker=None)) == 1
    assert built(replace(SEEN, scheduler=RoleObservation("scheduler", lacking("path")))) == 1
