"""Loads that fail: what was reported is not accused, what was not is, and what was built on it is known to be wrong."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench, request, run

from kvconform.checks import examine
from kvconform.engine.byte_events import Compared, WrongBytes
from kvconform.engine.events import Leaked, Scheduled, Tokens
from kvconform.engine.options import EngineOptions
from kvconform.scenario.program import RequestSpec

RECOMPUTE = EngineOptions(load_failure_policy="recompute")
FAIL = EngineOptions(load_failure_policy="fail")


@pytest.fixture(params=["v1", "v2", "v2-full-graph"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


def failing_reload(bench: Bench, options: EngineOptions, **extra: Any) -> Any:
    """A prompt of three blocks is stored and asked for again; some blocks fail to load."""
    engine = bench.engine("Failing", options, **extra)
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    run(engine, request("reload", 49, 3))
    engine.audit()
    return engine


def accused(bench: Bench) -> list[WrongBytes]:
    return [event for event in bench.of(WrongBytes) if not event.reported_failed]


@pytest.mark.parametrize("fail", [[0], [1], [2], [0, 1, 2], [1, 2]], ids=str)
def test_reported_failures_are_repaired_and_not_accused(bench: Bench, fail: list[int], runner: Any) -> None:
    failing_reload(bench, EngineOptions(runner=runner), fail=fail, report=fail, fail_once=True)
    wrong = bench.of(WrongBytes)
    assert wrong, "the oracle saw the failed blocks"
    assert accused(bench) == []
    assert {position // 16 for event in wrong for position in event.positions if event.external} == set(fail)
    # The engine rolls the request back to the first failed block and computes from there.
    again = [event.computed["reload"] for event in bench.of(Scheduled) if "reload" in event.scheduled]
    assert again[:2] == [48, 16 * fail[0]]
    assert [event.finish_reason for event in bench.of(Tokens) if event.finish_reason] == ["length", "length"]
    assert bench.of(Leaked) == []
    assert examine(bench.history).clean


def test_reporting_the_first_of_several_covers_all_behind_it(bench: Bench) -> None:
    """The engine recomputes from the first reported block on, so a later one may stay unreported."""
    failing_reload(bench, RECOMPUTE, fail=[1, 2], report=[1], fail_once=True)
    assert bench.of(WrongBytes)
    assert accused(bench) == []


def test_reporting_only_a_later_block_does_not_cover_an_earlier_one(bench: Bench) -> None:
    failing_reload(bench, RECOMPUTE, fail=[0, 2], report=[2], fail_once=True)
    first = accused(bench)[0]
    assert first.positions[0] == 0
    assert first.external
    finding = examine(bench.history).findings[0]
    assert (finding.rule, finding.requests) == ("LOAD-01", ("reload",))
    assert "the 1-byte value 0xee" in finding.observed


def test_unreported_failures_are_accused(bench: Bench, runner: Any) -> None:
    failing_reload(bench, EngineOptions(runner=runner), fail=[1], report=[])
    assert accused(bench)[0].positions == tuple(range(16, 32))
    (finding,) = examine(bench.history).findings
    assert finding.rule == "LOAD-01"


def test_the_fail_policy_ends_the_request_and_accuses_nobody(bench: Bench, runner: Any) -> None:
    options = EngineOptions(runner=runner, load_failure_policy="fail")
    failing_reload(bench, options, fail=[1], report=[1])
    assert bench.of(WrongBytes)
    assert accused(bench) == []
    assert [event.finish_reason for event in bench.of(Tokens) if event.finish_reason] == ["length", "error"]
    assert bench.of(Leaked) == []
    assert examine(bench.history).clean


def test_a_reported_block_is_not_excused_for_ever(bench: Bench) -> None:
    """The block was computed anew; a later load behind it has to be right, although it once failed."""
    engine = bench.engine("Failing", RECOMPUTE, fail=[0], report=[0], fail_once=True)
    run(engine, RequestSpec("store", ((1, 32), (2, 33))))
    engine.reset_prefix_cache()
    run(engine, RequestSpec("prefix", ((1, 32), (3, 5))))
    assert bench.of(WrongBytes)
    assert accused(bench) == []
    # Now the prefix is local, and the second load fails without a word.
    worker = engine.worker.connector  # type: ignore[union-attr]
    worker.options = {**worker.options, "fail": [0], "report": [], "fail_once": False}
    run(engine, RequestSpec("reload", ((1, 32), (2, 33))))
    loaded = next(event for event in bench.of(Compared) if event.request == "reload")
    assert (loaded.local_tokens, loaded.external_tokens) == (32, 32)
    assert accused(bench)[0].positions == tuple(range(32, 48))


def test_a_failure_that_is_repaired_leaves_right_kv_for_others(bench: Bench) -> None:
    engine = failing_reload(bench, RECOMPUTE, fail=[1], report=[1], fail_once=True)
    before = len(bench.of(WrongBytes))
    run(engine, request("local", 49, 2))
    seen = [event for event in bench.of(Compared) if event.request == "local"]
    assert seen[0].local_tokens == 48
    assert len(bench.of(WrongBytes)) == before


def test_a_failed_block_that_two_requests_share_accuses_neither(bench: Bench) -> None:
    engine = bench.engine("Failing", RECOMPUTE, fail=[1], report=[1], fail_once=True)
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    for name in ("first", "second"):
        engine.add(request(name, 49, 3))
    engine.drain()
    engine.audit()
    assert {event.request for event in bench.of(WrongBytes)} == {"first", "second"}
    assert accused(bench) == []
    assert examine(bench.history).clean
