"""Speculative decoding: drafts are scheduled, some are refused, and their slots are written again."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench, request, stored_then_asked_again
from packaging.version import Version

from kvconform.checks import examine
from kvconform.engine import compat
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import EngineRaised, HookCall, Leaked, Scheduled, Tokens
from kvconform.engine.options import EngineOptions

DRAFTS = 3
END_OF_STEP = ("get_finished", "wait_for_save")


@pytest.fixture(params=["v1", "v2"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_what_is_generated_does_not_depend_on_drafts(bench: Bench, runner: Any) -> None:
    for drafts in (0, DRAFTS):
        engine = bench.engine(options=EngineOptions(runner=runner, drafts=drafts))
        engine.add(request("a", 20, 40))
        engine.drain()
        engine.shutdown()
    tokens = [
        [token for event in bench.of(Tokens) if event.engine == number for token in event.token_ids]
        for number in (1, 2)
    ]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 40
    with_drafts = [event for event in bench.of(Tokens) if event.engine == 2]
    assert {len(event.token_ids) for event in with_drafts[1:-1]} == {1, 2, 3, 4}
    assert {count for event in bench.of(Scheduled) if event.engine == 2 for count in event.scheduled.values()} >= {4}


def test_refused_drafts_are_rolled_back_and_computed_anew(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(runner=runner, drafts=DRAFTS))
    engine.add(request("a", 20, 60))
    engine.drain()
    engine.audit()
    ends = [event.computed["a"] + event.scheduled["a"] for event in bench.of(Scheduled) if "a" in event.scheduled]
    starts = [event.computed["a"] for event in bench.of(Scheduled) if "a" in event.scheduled]
    assert any(start < end for start, end in zip(starts[1:], ends, strict=False))
    for kind in (WrongBytes, EngineRaised, Leaked):
        assert bench.of(kind) == []
    assert examine(bench.history).clean


def test_a_step_ends_once_the_draft_model_has_run(bench: Bench, runner: Any) -> None:
    """Results are collected before it then: V1, and V2 from 0.33.0 on. Before that V2 ended the step first."""
    stored_then_asked_again(bench.engine(options=EngineOptions(runner=runner, drafts=DRAFTS)))
    deferred = runner == "v1" or compat.release() >= Version("0.33.0")
    with_tokens = {event.step for event in bench.of(Scheduled) if event.scheduled}
    assert with_tokens
    for step in with_tokens:
        order = [call.hook for call in bench.of(HookCall) if call.step == step and call.hook in END_OF_STEP]
        assert order == sorted(END_OF_STEP, reverse=not deferred)


def test_drafts_come_with_plain_scheduling_only() -> None:
    with pytest.raises(ValueError, match="plain scheduling"):
        EngineOptions(drafts=1, async_scheduling=True)
