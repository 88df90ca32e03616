"""What each role's instance needs, holds and changes, on hand-made histories."""

from __future__ import annotations

from typing import Any

import pytest
from histories import broken, compared, found, history, match, witness

from kvconform.checks import CHECKS_BY_RULE, examine
from kvconform.checks.roles import disturbance
from kvconform.engine.events import (
    BorrowedChanged,
    Event,
    ForeignState,
    HookCall,
    MetadataHeld,
    ProgramAction,
    RolesInspected,
    TransferParams,
)


def failed(hook: str, role: Any = "scheduler", step: int = 1, engine: int = 1, **args: Any) -> HookCall:
    return HookCall(engine, step, role, hook, args, None, "AttributeError: no views", "vendor.py:3 in hook")


def called(hook: str, role: Any = "scheduler", step: int = 1, result: Any = None) -> HookCall:
    return HookCall(1, step, role, hook, {}, result)


def handshake(*ranks: str, error: str | None = None, engine: int = 1) -> HookCall:
    hook = "set_xfer_handshake_metadata_pp_aware"
    return HookCall(engine, 0, "scheduler", hook, {"ranks": list(ranks)}, None, error, "vendor.py:4 in hook")


@pytest.mark.parametrize(
    ("rule", "events", "observed"),
    [
        (
            "ROLE-01",
            (
                failed("request_finished", request="r1", status="FINISHED_STOPPED"),
                ForeignState(1, 1, "scheduler", "request_finished", "self.views"),
            ),
            "request_finished raised for want of self.views: AttributeError: no views",
        ),
        (
            "ROLE-02",
            (ForeignState(1, 1, "worker", "get_finished", "self._requests"),),
            "get_finished raised for want of self._requests",
        ),
        (
            "ROLE-03",
            (failed("get_kv_connector_stats"),),
            "get_kv_connector_stats on the scheduler-role instance raised",
        ),
        ("ROLE-04", (RolesInspected(1, 2, ("a tensor in self.cache",)),), "a tensor in self.cache"),
        ("ROLE-07", (MetadataHeld(1, 2, ("loads lost an entry",)),), "scheduling the next step changed it: loads lost"),
        ("ROLE-10", (handshake(error="KeyError: 0"),), "set_xfer_handshake_metadata_pp_aware with an empty dictionary"),
        ("ROLE-12", (TransferParams(1, 2, "r1", ("a set at blocks",)),), "request_finished of r1: a set at blocks"),
        (
            "ROLE-14",
            (BorrowedChanged(1, 2, "take_events", "request or block", ("a block table",)),),
            "take_events changed",
        ),
        (
            "ROLE-16",
            (handshake("(0, 0)"), handshake("(0, 0)", error="ValueError: twice")),
            "with the metadata of (0, 0)",
        ),
        (
            "META-01",
            (BorrowedChanged(1, 2, "build_connector_meta", "scheduler output", ("a field",)),),
            "changed a field",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value[-1].isdigit() else "",
)
def test_each_role_rule_finds_its_own(rule: str, events: tuple[Event, ...], observed: str) -> None:
    (finding,) = found(rule, *events)
    assert finding.rule == rule
    assert observed in finding.observed
    assert broken(*events) == [rule]


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("ROLE-01", (match((0, False)),)),
        ("ROLE-02", (HookCall(1, 1, "worker", "get_finished"),)),
        ("ROLE-03", (HookCall(1, 1, "scheduler", "shutdown"),)),
        ("ROLE-04", (RolesInspected(1, 2, ()),)),
        ("ROLE-07", (MetadataHeld(1, 2, ()),)),
        ("ROLE-10", (handshake(),)),
        ("ROLE-12", (TransferParams(1, 2, "r1", ()),)),
        ("ROLE-14", (match((0, False)),)),
        ("ROLE-16", (handshake("(0, 0)"), handshake("(0, 0)"))),
        ("META-01", (HookCall(1, 1, "scheduler", "build_connector_meta"),)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_role_rule_is_witnessed_by_its_situation(rule: str, events: tuple[Event, ...]) -> None:
    assert found(rule, *events) == []
    assert witness(rule, *events) > 0


def test_a_first_delivery_is_no_repetition() -> None:
    assert witness("ROLE-16", handshake("(0, 0)"), handshake("(0, 0)", engine=2)) == 0


def foreign(hook: str, role: Any = "scheduler", step: int = 1) -> ForeignState:
    return ForeignState(1, step, role, hook, "self.views")


def params(request: str, *problems: str, engine: int = 1) -> TransferParams:
    return TransferParams(engine, 2, request, problems)


def counts(rule: str, *events: Event) -> dict[str, int]:
    return dict(CHECKS_BY_RULE[rule].witness(history(*events)))


@pytest.mark.parametrize(
    ("rule", "role", "other"), [("ROLE-01", "scheduler", "worker"), ("ROLE-02", "worker", "scheduler")]
)
def test_want_of_the_other_roles_state_is_told_with_the_exception_of_that_very_call(
    rule: str, role: Any, other: Any
) -> None:
    want = foreign("take_events", role)
    (finding,) = found(rule, want)
    assert (
        finding.expected == f"take_events works on a {role}-role instance on which no {other}-side hook is ever called"
    )
    elsewhere = (failed("take_events", role, step=2), failed("take_events", other), called("take_events", role))
    (finding,) = found(rule, *elsewhere, want)
    assert finding.observed == "take_events raised for want of self.views"
    (finding,) = found(rule, *elsewhere, failed("take_events", role), want)
    assert finding.observed.endswith("self.views: AttributeError: no views (vendor.py:3 in hook)")
    assert found(rule, foreign("take_events", other)) == []
    assert found(rule, foreign("shutdown", role)) == [], "it is called on both roles (ROLE-03)"


def test_calls_that_returned_are_counted_by_role() -> None:
    events = (
        match((0, False)),
        failed("take_events"),
        called("get_finished", "worker"),
        failed("wait_for_save", "worker"),
    )
    assert witness("ROLE-01", *events) == witness("ROLE-02", *events) == 1
    stats = called("get_kv_connector_stats")
    worker = called("get_kv_connector_stats", "worker")
    seen = counts("ROLE-03", stats, stats, worker, failed("get_kv_connector_stats"), called("shutdown"))
    assert seen == {"get_kv_connector_stats on the scheduler role": 2, "shutdown on the scheduler role": 1}


@pytest.mark.parametrize(
    ("events", "findings"),
    [
        ((failed("get_kv_connector_stats"),), 1),
        ((failed("get_kv_connector_stats", "worker"),), 0),
        ((called("get_kv_connector_stats"),), 0),
        ((failed("take_events"),), 0),
        ((foreign("shutdown"), failed("shutdown")), 1),
        # Such a shutdown fails on any role (SHUT-05), and a second one is another matter (SHUT-06).
        ((failed("shutdown"),), 0),
        ((ProgramAction(1, 1, "shutdown again"), foreign("shutdown"), failed("shutdown")), 0),
        ((ProgramAction(1, 1, "shutdown"), foreign("shutdown"), failed("shutdown")), 1),
        ((ProgramAction(2, 1, "shutdown again"), foreign("shutdown"), failed("shutdown")), 1),
    ],
)
def test_hook_of_both_roles_has_to_work_on_the_scheduler_role(events: tuple[Event, ...], findings: int) -> None:
    assert len(found("ROLE-03", *events)) == findings


def test_both_instances_of_an_engine_are_searched() -> None:
    assert witness("ROLE-04", RolesInspected(1, 2, ()), RolesInspected(2, 2, ())) == 4
    assert [finding.observed for finding in found("ROLE-04", RolesInspected(1, 2, ("a", "b")))] == ["a", "b"]


def test_every_change_is_told_the_first_one_first() -> None:
    (finding,) = found("ROLE-07", MetadataHeld(1, 2, ("a", "b", "c")), MetadataHeld(1, 3, ("d",)))
    assert finding.details == ("b", "c")
    assert witness("ROLE-07", MetadataHeld(1, 2, ()), MetadataHeld(1, 3, ())) == 2
    (finding,) = found("ROLE-12", params("r1", "a", "b", "c"), params("r2", "d"))
    assert (finding.details, finding.requests) == (("b", "c"), ("r1",))
    assert witness("ROLE-12", params("r1"), params("r2")) == 2
    changes = BorrowedChanged(1, 2, "take_events", "request or block", ("a", "b", "c"))
    (finding,) = found("ROLE-14", changes)
    assert finding.details == ("b", "c")


def test_what_a_hook_changes_is_one_finding_per_hook_and_engine() -> None:
    first, again = (BorrowedChanged(1, step, "take_events", "request or block", ("a",)) for step in (1, 2))
    other = BorrowedChanged(1, 2, "request_finished", "request or block", ("a",))
    elsewhere = BorrowedChanged(2, 2, "take_events", "request or block", ("a",))
    assert [finding.at for finding in found("ROLE-14", first, again, other, elsewhere)] == [first, other, elsewhere]
    assert found("META-01", first) == found("FIN-04", first) == []


@pytest.mark.parametrize(("rule", "ranks"), [("ROLE-10", ()), ("ROLE-16", ("(0, 0)",))])
def test_refused_handshake_is_told_with_what_is_expected(rule: str, ranks: tuple[str, ...]) -> None:
    (finding,) = found(rule, handshake(*ranks), handshake(*ranks, error="KeyError: 0"))
    expected = {"ROLE-10": "an empty dictionary is taken", "ROLE-16": "a second delivery replaces the first"}
    assert finding.expected == expected[rule]


def test_parameters_are_compared_with_those_of_another_request() -> None:
    assert witness("FIN-04", params("r1"), params("r1")) == 0
    assert witness("FIN-04", params("r1"), params("r2")) == 2
    assert witness("FIN-04", params("r1"), params("r1", engine=2), params("r3")) == 3


def test_only_calls_of_the_scheduler_role_in_a_step_are_watched() -> None:
    assert witness("ROLE-14", match((0, False)), match((0, False), step=0), called("get_finished", "worker")) == 1


FAILED = called("get_block_ids_with_load_errors", "worker", result={"set": [4, 5]})


def test_failed_loads_are_counted_where_loaded_bytes_were_compared() -> None:
    assert counts("ROLE-05", FAILED, FAILED, compared(32)) == {
        "external tokens compared": 32, "blocks reported as not loaded": 4,
    }  # fmt: skip
    assert not any(counts("ROLE-05", FAILED).values())
    assert counts("ROLE-05", called("get_finished", "worker", result={"set": [4]}), compared(32)) == {
        "external tokens compared": 32, "blocks reported as not loaded": 0,
    }  # fmt: skip


def test_loads_that_fail_only_beside_another_engine_are_a_finding() -> None:
    fails, loads = examine(history(FAILED, compared(32))), examine(history(compared(32)))
    (finding,) = disturbance(fails, loads)
    assert (finding.rule, finding.at) == ("ROLE-05", Event(0, 0))
    assert "reported 2 blocks as not loaded" in finding.observed
    assert list(disturbance(loads, loads)) == list(disturbance(fails, fails)) == list(disturbance(loads, fails)) == []
