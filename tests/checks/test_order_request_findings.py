"""Requests that ask, end and complete at unexpected moments, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, failing, found, match, witness

from kvconform.engine.events import Event, HookCall, ProgramAction

# -- allocations of nothing --------------------------------------------------------------------------------------------

ASKED = match((0, False))


@pytest.mark.parametrize(
    ("before", "rule"),
    [
        ((), "ORDER-01"),
        ((ASKED,), "ORDER-05"),
        ((match((0, False), step=2), ASKED, match((0, False), step=3)), "ORDER-05"),
        ((match((0, False), step=2),), "ORDER-01"),
        ((match((0, False), request="r2"),), "ORDER-01"),
        ((match((0, False), engine=2),), "ORDER-01"),
    ],
    ids=["never asked", "asked", "asked in other steps, too", "another step", "another request", "another engine"],
)
def test_allocation_of_nothing_is_of_the_rule_that_its_match_decides(before: tuple[Event, ...], rule: str) -> None:
    other = {"ORDER-01": "ORDER-05", "ORDER-05": "ORDER-01"}[rule]
    refused = failing(alloc(0))
    (finding,) = found(rule, *before, refused)
    assert finding.at is refused
    assert finding.requests == ("r1",)
    assert found(other, *before, refused) == []
    assert (witness(rule, *before, alloc(0)), witness(other, *before, alloc(0))) == (1, 0)
    assert witness(rule, *before, refused) == 0
    assert found(rule, *before, alloc(0)) == []


@pytest.mark.parametrize("rule", ["ORDER-01", "ORDER-05"])
def test_allocation_of_something_is_another_matter(rule: str) -> None:
    assert found(rule, ASKED, failing(alloc(16)), failing(alloc(1, request="r2"))) == []
    assert witness(rule, ASKED, alloc(16), alloc(1, request="r2")) == 0


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((ASKED,), 0),
        ((ASKED, ASKED), 1),
        ((ASKED, ASKED, ASKED), 2),
        ((ASKED, alloc(0), ASKED), 0),
        ((ASKED, alloc(0, request="r2"), ASKED), 1),
        ((ASKED, alloc(0, engine=2), ASKED), 1),
        ((ASKED, match((0, False), request="r2"), match((0, False), engine=2)), 0),
    ],
)
def test_match_counts_as_asked_again_as_long_as_nothing_was_allocated(events: tuple[Event, ...], count: int) -> None:
    assert witness("ORDER-03", *events) == count


# -- completions of requests that end ----------------------------------------------------------------------------------


def ended(
    request: str = "r1", step: int = 2, *, hook: str = "request_finished", error: str | None = None, engine: int = 1
) -> HookCall:
    args = {"request": request, "status": "FINISHED_ABORTED", "block_ids": [1]}
    return HookCall(engine, step, "scheduler", hook, args, (False, None), error, "vendor.py:7 in hook")


def taken(
    *received: str, sent: tuple[str, ...] = (), step: int = 2, error: str | None = None, engine: int = 1
) -> HookCall:
    args = {"finished_sending": list(sent), "finished_recving": list(received), "invalid_block_ids": []}
    return HookCall(engine, step, "scheduler", "update_connector_output", args, None, error, "vendor.py:7 in hook")


@pytest.mark.parametrize(
    ("events", "requests"),
    [
        ((ended(), taken("r1")), ("r1",)),
        # vLLM asks in either order: the request is ended by the very output, or was aborted before it came.
        ((taken("r1"), ended()), ("r1",)),
        ((ended(), taken(sent=("r1",))), ("r1",)),
        ((ended("r2"), ended(), taken("r1", sent=("r2", "r3"))), ("r1", "r2")),
        ((ended(hook="request_finished_all_groups"), taken("r1", "r4")), ("r1",)),
        ((ended(), taken("r2")), ()),
        ((ended(), taken("r1", step=3)), ()),
        ((ended(), taken("r1", engine=2)), ()),
        ((ended(), taken()), ()),
        ((taken("r1"),), ()),
    ],
)
def test_completion_of_a_request_that_ends_in_the_same_step(
    events: tuple[HookCall, ...], requests: tuple[str, ...]
) -> None:
    refused = [failing(each) if each.hook == "update_connector_output" else each for each in events]
    findings = found("ORDER-15", *refused)
    assert [finding.requests for finding in findings] == ([requests] if requests else [])
    assert all(finding.observed.endswith(f" for {', '.join(requests)}") for finding in findings)
    assert found("ORDER-15", *events) == []
    assert witness("ORDER-15", *events) == len(findings)
    assert witness("ORDER-15", *refused) == 0


def test_completion_without_names_is_no_completion() -> None:
    assert found("ORDER-15", ended(), replace(taken(error="KeyError: 'r1'"), args={})) == []


# -- aborts ------------------------------------------------------------------------------------------------------------


def acted(action: str = "abort", when: str | None = "during step", request: str = "r1") -> ProgramAction:
    return ProgramAction(1, 2, action, {"request": request} | ({} if when is None else {"when": when}))


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((acted(), ended()), 1),
        ((acted(), ended(hook="request_finished_all_groups")), 1),
        ((acted(), taken("r1"), ended()), 1),
        ((acted(request="r2"), ended("r2"), acted(), ended()), 2),
        ((acted(), ended("r2")), 0),
        ((acted(), match((0, False)), alloc(0)), 0),
        ((acted(when="before step"), ended()), 0),
        ((acted(when=None), ended()), 0),
        ((acted("add"), ended()), 0),
        ((acted(), acted("add", None, "r2"), ended()), 0),
        ((ended(), acted()), 0),
    ],
)
def test_request_that_is_aborted_while_its_step_is_under_way(events: tuple[Event, ...], count: int) -> None:
    assert (len(found("ORDER-17", *events)), witness("ORDER-17", *events)) == (0, count)
    refused = [failing(event) if isinstance(event, HookCall) and "request" in event.args else event for event in events]
    findings = found("ORDER-17", *refused)
    assert len(findings) == count
    assert all(finding.requests == (finding.at.args["request"],) for finding in findings)  # type: ignore[attr-defined]
    assert all(finding.at.hook in finding.expected for finding in findings)  # type: ignore[attr-defined]
    assert witness("ORDER-17", *refused) == 0


# -- finished ids that were never scheduled ----------------------------------------------------------------------------


def built(*scheduled: str, engine: int = 1, step: int = 1) -> HookCall:
    args = {"scheduled": dict.fromkeys(scheduled, 16)}
    return HookCall(engine, step, "scheduler", "build_connector_meta", args, "<Metadata>")


def told(*finished: str, hook: str = "get_finished", role: Any = "worker") -> HookCall:
    return HookCall(1, 2, role, hook, {"finished_req_ids": list(finished)}, (None, None))


@pytest.mark.parametrize("hook", ["get_finished", "get_transfer_results"])
@pytest.mark.parametrize(
    ("before", "finished", "strangers"),
    [
        ((), ("r1",), ("r1",)),
        ((built("r1"),), ("r1",), ()),
        ((built("r1"), built("r2")), ("r2", "r3", "r1", "r4"), ("r3", "r4")),
        ((built("r1", engine=2),), ("r1",), ("r1",)),
        ((built(),), ("r1",), ("r1",)),
        ((built("r1"),), (), ()),
    ],
)
def test_finished_id_that_was_in_no_step_so_far_is_a_strangers(
    hook: str, before: tuple[Event, ...], finished: tuple[str, ...], strangers: tuple[str, ...]
) -> None:
    call = told(*finished, hook=hook)
    later = built(*finished, step=3)
    findings = found("ORDER-19", *before, failing(call), later)
    assert [finding.requests for finding in findings] == ([strangers] if strangers else [])
    assert all(finding.observed.endswith(f" for {', '.join(strangers)}") for finding in findings)
    assert (witness("ORDER-19", *before, call, later), found("ORDER-19", *before, call, later)) == (len(strangers), [])
    assert witness("ORDER-19", *before, failing(call), later) == 0


def test_only_workers_are_told_of_finished_ids() -> None:
    asked = told("r1", role="scheduler")
    assert found("ORDER-19", failing(asked)) == []
    assert witness("ORDER-19", asked) == 0


def test_calls_whose_arguments_were_not_recorded_tell_nothing() -> None:
    bare = HookCall(1, 2, "worker", "get_finished", {}, (None, None))
    unknown = HookCall(1, 1, "scheduler", "build_connector_meta", {}, "<Metadata>")
    assert found("ORDER-19", unknown, failing(bare)) == []
    assert witness("ORDER-19", unknown, bare) == 0
