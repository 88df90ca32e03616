"""Asynchronous loads: whose slots they may write until when, and completions that come before the data."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench, request, run

from kvconform.checks import examine
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.events import EngineRaised, HookCall, Leaked, ProgramAction, Scheduled, Tokens
from kvconform.engine.options import EngineOptions
from kvconform.scenario.program import RequestSpec


@pytest.fixture(params=["v1", "v2", "v2-full-graph"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


def clean(bench: Bench) -> None:
    for kind in (WrongBytes, Stray, EngineRaised, Leaked):
        assert bench.of(kind) == []
    assert examine(bench.history).clean


def external(bench: Bench) -> dict[str, tuple[int, int]]:
    """Per request (local, external) tokens at its first comparison."""
    seen: dict[str, tuple[int, int]] = {}
    for event in bench.of(Compared):
        seen.setdefault(event.request, (event.local_tokens, event.external_tokens))
    return seen


@pytest.mark.parametrize("mode", ["next step", "thread", "free thread"])
@pytest.mark.parametrize("crossing", ["pickle", "reference"])
def test_an_async_load_is_compared_and_accused_of_nothing(bench: Bench, mode: str, crossing: Any, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner, crossing=crossing), mode=mode)
    run(engine, request("store", 70, 2))
    engine.reset_prefix_cache()
    run(engine, request("reload", 70, 2))
    engine.audit()
    assert external(bench)["reload"] == (0, 64)
    answers = [call.result for call in bench.history.calls("get_num_new_matched_tokens")]
    assert answers == [(0, False), (64, True)]
    clean(bench)


def test_a_waiting_request_is_in_no_step(bench: Bench) -> None:
    engine = bench.engine("AsyncFileStore", mode="next step")
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.add(request("reload", 49))
    engine.step()
    assert bench.of(Scheduled)[-1].scheduled == {}
    assert "start_load_kv" in [call.hook for call in bench.of(HookCall) if call.step == engine.steps]
    engine.drain()
    assert [event.finish_reason for event in bench.of(Tokens) if event.finish_reason] == ["length", "length"]
    clean(bench)


def test_a_load_behind_a_local_hit(bench: Bench, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode="next step")
    run(engine, RequestSpec("store", ((1, 32), (2, 33))))
    engine.reset_prefix_cache()
    run(engine, RequestSpec("prefix", ((1, 32), (3, 5)), skip_reading_prefix_cache=True))
    run(engine, RequestSpec("reload", ((1, 32), (2, 33)), 2))
    engine.audit()
    assert external(bench)["reload"] == (32, 32)
    clean(bench)


def test_two_loads_and_a_running_request(bench: Bench, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode="next step")
    run(engine, request("store1", 49, seed=1), request("store2", 70, seed=2))
    engine.reset_prefix_cache()
    engine.add(request("busy", 30, 10, seed=3))
    engine.step()
    engine.add(request("reload1", 49, 2, seed=1))
    engine.add(request("reload2", 70, 2, seed=2))
    engine.add(request("same", 49, 2, seed=1))
    engine.drain()
    engine.audit()
    assert external(bench)["reload1"] == (0, 48)
    assert external(bench)["reload2"] == (0, 64)
    assert sum(external(bench)["same"]) == 48
    clean(bench)


def test_a_full_hit_recomputes_the_last_token(bench: Bench, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode="next step")
    run(engine, RequestSpec("store", ((1, 48), (2, 17))))
    engine.reset_prefix_cache()
    run(engine, RequestSpec("reload", ((1, 48),), 3))
    engine.audit()
    assert external(bench)["reload"][1] == 32, "the store never offers the last token, so the last block is computed"
    clean(bench)


@pytest.mark.parametrize("mode", ["early", "never loads"])
def test_a_completion_before_the_data_is_caught(bench: Bench, mode: str, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode=mode)
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.add(request("reload", 49, 3))
    for _ in range(2):
        engine.step()
    engine.drain()
    wrong = [event for event in bench.of(WrongBytes) if event.external]
    assert wrong[0].positions == tuple(range(48))
    assert all(sentence.endswith("nothing was written there") for sentence in wrong[0].observed)
    first = examine(bench.history).findings[0]
    assert first.requests == ("reload",)
    assert first.rule in ("LOAD-01", "ASYNC-05"), "the load was reported as complete, or delivered nothing"


def test_abort_while_a_load_is_under_way(bench: Bench, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode="next step")
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.add(request("reload", 49))
    engine.step()
    engine.abort("reload")
    # The blocks are the load's until it has ended.
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() < 31
    engine.drain()
    engine.audit()
    clean(bench)


def test_preempting_everything_while_a_load_holds_blocks_is_refused_by_vllm_and_kills_nobody(bench: Bench) -> None:
    engine = bench.engine("AsyncFileStore", mode="next step")
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.add(request("busy", 20, 10, seed=2))
    engine.step()
    engine.add(request("reload", 49, 2))
    engine.step()
    assert engine.reset_prefix_cache(running=True) is False
    engine.drain()
    engine.audit()
    assert external(bench)["reload"] == (0, 48)
    assert sorted(event.request for event in bench.of(Tokens) if event.finish_reason) == ["busy", "reload", "store"]
    clean(bench)


def test_preemption_and_resumption_with_an_async_load(bench: Bench, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode="thread")
    engine.add(request("a", 49, 24))
    for _ in range(4):
        engine.step()
    engine.reset_prefix_cache(running=True)
    engine.drain()
    engine.audit()
    answers = [call.result for call in bench.history.calls("get_num_new_matched_tokens")]
    assert answers == [(0, False), (48, True)]
    assert max(event.external_tokens for event in bench.of(Compared)) == 48
    clean(bench)


def test_a_write_after_the_completion_is_a_stray_write(bench: Bench) -> None:
    """With the completion the slots are the engine's; the load that still writes overwrites computed KV."""
    engine = bench.engine("AsyncFileStore", mode="early")
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.add(request("reload", 49, 3))
    engine.drain()
    late = [event for event in bench.of(Stray) if event.owners == ("reload",)]
    assert {slot for event in late for slot in event.slots} == set(range(16))
    assert {event.late for event in late} == {("reload",)}
    assert late[0].step == bench.of(WrongBytes)[0].step, "the load is done behind the forward that read"
    rules = {finding.rule for finding in examine(bench.history).findings}
    assert rules == {"ASYNC-05"}, "the early report is the cause, and what follows from it is not told again"


def test_the_longest_wait_for_a_transfer_is_known(bench: Bench) -> None:
    engine = bench.engine("AsyncFileStore", mode="next step")
    assert engine.longest_wait == 0.0
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    run(engine, request("reload", 49))
    assert 0.0 < engine.longest_wait < 5.0


def test_request_is_aborted_in_the_step_that_reports_the_end_of_its_load(bench: Bench, runner: Any) -> None:
    engine = bench.engine("AsyncFileStore", EngineOptions(runner=runner), mode="next step")
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.abort_on_arrival("reload")
    engine.abort_on_arrival("another")
    engine.add(request("reload", 49, 4))
    engine.add(request("beside", 20, 4, seed=2))
    engine.drain()
    engine.audit()
    (abort,) = [event for event in bench.of(ProgramAction) if event.action == "abort"]
    assert abort.detail == {"request": "reload", "when": "during step"}
    calls = bench.history.calls("request_finished", "update_connector_output")
    ended, taken = (call for call in calls if call.step == abort.step)
    assert ended.args["request"] == "reload"
    assert taken.args["finished_recving"] == ["reload"]
    assert sorted(event.request for event in bench.of(Tokens) if event.finish_reason) == ["beside", "store"]
    clean(bench)
