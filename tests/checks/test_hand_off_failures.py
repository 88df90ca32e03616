"""Loads whose producer is gone, on hand-made histories: which of them end, and whose rule it is if they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import found, history
from test_broken_store_findings import NOT_RECEIVED, error, promised
from test_failure_findings import START, step
from test_producer_consumer_findings import WAITING, arrived, ended, load, outlasted

from kvconform.checks.failures import without_peer_rule
from kvconform.checks.producer_consumer import MANY_TRIES
from kvconform.engine.events import Event

LEFT_WAITING = outlasted(2, unfinished=("d",))
HELD = outlasted(2, held=("d",))
FAILED = ended("d", (False, None), "ERROR", engine=2)


@pytest.mark.parametrize(
    ("more", "findings"),
    [(0, 1), (1, 0), (MANY_TRIES - 1, 0), (MANY_TRIES, 1)],
    ids=["one load", "the second one", "as many as are bounded", "more than that"],
)
def test_load_that_ended_and_was_tried_again_is_given_time_but_not_for_ever(more: int, findings: int) -> None:
    assert len(found("LIVE-05", *WAITING, *[load()] * more, LEFT_WAITING)) == findings


def test_only_its_own_loads_are_tries_of_a_request() -> None:
    assert len(found("LIVE-05", *WAITING, load("other"), LEFT_WAITING)) == 1


def test_request_that_failed_is_not_kept_for_the_end_of_its_load() -> None:
    (finding,) = found("LIVE-05", *WAITING, FAILED, HELD)
    assert finding.symptom
    assert finding.observed == "the ended request was still kept for it after 5.5 s"
    (waiting,) = found("LIVE-05", *WAITING, LEFT_WAITING)
    assert waiting.observed == "the request still waited for it after 5.5 s"


@pytest.mark.parametrize(
    "events",
    [
        (*WAITING, FAILED, outlasted(2, held=("other",))),
        (*WAITING, FAILED, outlasted(2, limit=0.0, held=("d",))),
        (*WAITING, arrived(failed=True), FAILED, HELD),
        (*WAITING, ended("d", (True, None), "ERROR", engine=2), HELD),
        (*WAITING, HELD),
        (*WAITING[:-1], FAILED, HELD),
    ],
    ids=["another", "no time named", "its load has ended", "a hold of its own", "not ended", "no load"],
)
def test_request_that_is_kept_for_something_else_is_no_matter_of_its_load(events: tuple[Event, ...]) -> None:
    assert found("LIVE-05", *events) == []


@pytest.mark.parametrize(
    ("before", "unfinished", "held", "rule"),
    [
        ((), ("r1",), (), "LIVE-05"),
        (promised(3), ("r1",), (), "LIVE-05"),
        (promised(4), ("r1",), (), "FAIL-10"),
        (promised(4), ("r2",), (), "LIVE-05"),
        (NOT_RECEIVED, ("r1",), (), "ASYNC-16"),
        (NOT_RECEIVED, ("r2",), (), "LIVE-05"),
        ((*NOT_RECEIVED, *step(2, received=["r1"])), ("r1",), (), "LIVE-05"),
        ((*NOT_RECEIVED, error()), (), ("r1",), "FAIL-09"),
        (step(1, [1], load=48, asynchronous=True), ("r1",), (), "FAIL-02"),
    ],
)
def test_what_never_ends_without_its_producer_is_sorted_by_what_was_reported(
    before: tuple[Event, ...], unfinished: tuple[str, ...], held: tuple[str, ...], rule: str
) -> None:
    wait = outlasted(unfinished=unfinished, held=held)
    assert without_peer_rule(history(START, *before, wait), wait) == rule
    other = outlasted(2, unfinished=unfinished, held=held)
    assert without_peer_rule(history(START, *before, other), other) == "LIVE-05"


def test_end_of_the_same_ids_load_elsewhere_is_none_of_this_engines() -> None:
    elsewhere = [replace(event, engine=2) for event in (*NOT_RECEIVED, *step(2, received=["r1"]))]
    wait = outlasted(unfinished=("r1",))
    assert without_peer_rule(history(START, *NOT_RECEIVED, *elsewhere, wait), wait) == "ASYNC-16"
