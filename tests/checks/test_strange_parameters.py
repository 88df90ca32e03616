"""kv_transfer_params that are not the connector's own words, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import found, witness
from test_producer_consumer_findings import GIVEN, added, asked, handed

from kvconform.engine.events import Event, HookCall, ProgramAction

QUERIES = ("on_new_request", "get_num_new_matched_tokens", "update_state_after_alloc")


def query(hook: str, request: str, error: str | None = None, engine: int = 1) -> HookCall:
    return HookCall(engine, 1, "scheduler", hook, {"request": request}, None, error, "vendor.py:7 in hook")


STRANGE = added("odd", params={"some": "words"})
PLAIN = ProgramAction(1, 0, "add", {"request": "plain"})
HANDED = (added("h", 2, GIVEN), handed("h"))


@pytest.mark.parametrize("hook", QUERIES)
def test_query_that_fails_only_for_strange_parameters_is_found_once(hook: str) -> None:
    refused = query(hook, "odd", "KeyError: 'do_remote_prefill'")
    usual = (PLAIN, STRANGE, *(query(each, "plain") for each in QUERIES))
    (finding,) = found("MATCH-24", *usual, refused, refused)
    assert (finding.rule, finding.requests, finding.at) == ("MATCH-24", ("odd",), refused)
    assert finding.observed == f"{hook} raised KeyError: 'do_remote_prefill' (vendor.py:7 in hook)"


WORKS, REFUSED = query("on_new_request", "plain"), query("on_new_request", "odd", "KeyError: 'x'")


@pytest.mark.parametrize(
    "events",
    [
        (STRANGE, REFUSED, WORKS),
        (STRANGE, query("on_new_request", "odd"), REFUSED),
        (STRANGE, query("update_state_after_alloc", "plain"), REFUSED),
        (PLAIN, STRANGE, WORKS, query("on_new_request", "odd")),
        (PLAIN, STRANGE, WORKS, query("on_new_request", "plain", "KeyError: 'x'")),
        (PLAIN, replace(STRANGE, action="abort"), WORKS, REFUSED),
        (PLAIN, ProgramAction(1, 0, "add", {"request": "odd"}), WORKS, REFUSED),
        (STRANGE, WORKS, query("on_new_request", "odd", "KeyError: 'x'", engine=2)),
        (*HANDED, WORKS, query("on_new_request", "h", "KeyError: 'x'", engine=2)),
    ],
    ids=[
        "nothing had worked yet", "only strange ones had worked", "another hook had worked", "it works",
        "a plain one fails", "not added", "without parameters", "in another engine", "a producer's own words",
    ],
)  # fmt: skip
def test_query_that_fails_for_another_reason_is_no_matter_of_parameters(events: tuple[Event, ...]) -> None:
    assert found("MATCH-24", *events) == []


def test_requests_with_strange_parameters_are_counted_where_they_were_asked_about() -> None:
    events = (PLAIN, STRANGE, *HANDED, asked("odd", 1), asked("odd", 1), asked("plain", 1), asked("h", 2))
    assert witness("MATCH-24", *events) == 1
    assert witness("MATCH-24", STRANGE, query("on_new_request", "odd")) == 0
