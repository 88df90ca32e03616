"""Asynchronous scheduling: a step is scheduled before the results of the one before are taken."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench, request, stored_then_asked_again

from kvconform.checks import examine
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import EngineRaised, HookCall, Leaked, Scheduled, Tokens
from kvconform.engine.options import EngineOptions


@pytest.fixture(params=["v1", "v2"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


def delivered(bench: Bench, number: int, name: str) -> list[int]:
    events = [event for event in bench.of(Tokens) if (event.engine, event.request) == (number, name)]
    return [token for event in events for token in event.token_ids]


def test_the_next_step_is_scheduled_before_the_results_are_taken(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(async_scheduling=True, runner=runner))
    engine.add(request("a", 20, 5))
    engine.step()
    assert engine.steps == 1
    assert bench.of(Tokens) == []
    engine.step()
    assert engine.steps == 2
    (first,) = bench.of(Tokens)
    assert len(first.token_ids) == 1
    kinds = [
        call.hook for call in bench.of(HookCall) if call.hook in ("build_connector_meta", "update_connector_output")
    ]
    assert kinds == ["build_connector_meta", "build_connector_meta", "update_connector_output"]


def test_tokens_and_bytes_are_those_of_a_scheduler_that_waits(bench: Bench, runner: Any) -> None:
    for asynchronous in (False, True):
        engine = bench.engine(options=EngineOptions(async_scheduling=asynchronous, runner=runner))
        stored_then_asked_again(engine, 49, 20)
        engine.audit()
        engine.shutdown()
    assert delivered(bench, 1, "store") == delivered(bench, 2, "store") != []
    assert delivered(bench, 1, "reload") == delivered(bench, 2, "reload")
    for kind in (WrongBytes, EngineRaised, Leaked):
        assert bench.of(kind) == []
    assert examine(bench.history).clean


def test_an_abort_between_execution_and_results(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(async_scheduling=True, runner=runner))
    engine.add(request("a", 40, 30))
    for _ in range(4):
        engine.step()
    assert engine.begin_step()
    engine.finish_step(("a",))
    engine.drain()
    engine.audit()
    assert max(event.step for event in bench.of(Scheduled) if event.scheduled) <= engine.steps
    for kind in (WrongBytes, EngineRaised, Leaked):
        assert bench.of(kind) == []
