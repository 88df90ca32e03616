"""The in-process engine: vLLM's own order of calls, real crossings, failures that end it, and what its audit sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bench import Bench, hooks_of_step, request, run, stored_then_asked_again
from packaging.version import Version

from kvconform.engine import compat
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.events import Audited, Crossing, EngineRaised, HookCall, Leaked, NeverIdle, Scheduled, Tokens
from kvconform.engine.options import EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.engine.vllm_engine import waiting
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.scenario.program import RequestSpec

THREE_LAYERS = KVCacheShape((LayerShape(count=3),))


def nothing_wrong(bench: Bench) -> None:
    """No finding of any kind in the history."""
    for kind in (WrongBytes, Stray, EngineRaised, NeverIdle, Leaked):
        assert bench.of(kind) == []


# -- call order ------------------------------------------------------------------------------------------------

# Contract, section 1 (0.32.0). A hook that the base class calls from another hook returns, and is recorded, first:
# bind_gpu_block_pool before bind_kv_cache_manager, get_finished before get_transfer_results.
START = [
    "get_mem_pool_context",
    "register_kv_caches",
    "set_host_xfer_buffer_ops",
    "bind_gpu_block_pool",
    "bind_kv_cache_manager",
    "get_finished_count",
    "get_handshake_metadata",
    "set_xfer_handshake_metadata",
    "set_xfer_handshake_metadata_pp_aware",
]
RESULTS = [
    "wait_for_save",
    "get_finished",
    "get_transfer_results",
    "get_block_ids_with_load_errors",
    "get_kv_connector_stats",
    "get_kv_connector_kv_cache_events",
    "build_connector_worker_meta",
    "clear_connector_metadata",
]
LAYERS = [f"{hook} {layer}" for layer in range(3) for hook in ("wait_for_layer_load", "save_kv_layer")]
AFTER_FORWARD = {"v1": [], "v2": ["finish_forward"], "v2-full-graph": ["finish_forward"]}
HOOKED = {"v1": LAYERS, "v2": LAYERS, "v2-full-graph": []}


@pytest.fixture(params=["v1", "v2", "v2-full-graph"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


def steps_of(bench: Bench) -> dict[str, int]:
    """Which step was what, in a run of :func:`stored_then_asked_again` with two tokens each."""
    named: dict[str, int] = {}
    for event in bench.of(Scheduled):
        kind = "empty" if not event.scheduled else "load" if event.sync_loads else "prefill" if event.new else "decode"
        named.setdefault(kind, event.step)
    return named


def test_the_order_of_start_up_is_the_engine_cores(bench: Bench, runner: Any) -> None:
    bench.engine(options=EngineOptions(runner=runner))
    assert hooks_of_step(bench.history, 0) == START
    roles = [call.role for call in bench.of(HookCall)]
    assert roles == ["worker"] * 3 + ["scheduler"] * 3 + ["worker"] + ["scheduler"] * 2


def test_the_worker_is_built_before_the_scheduler(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvconform.reference.file_store import FileStoreConnector

    built: list[str] = []
    original = FileStoreConnector.__init__

    def noting(self: Any, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        built.append(role.name)
        original(self, vllm_config, role, kv_cache_config)

    monkeypatch.setattr(FileStoreConnector, "__init__", noting)
    bench.engine()
    assert built == ["WORKER", "SCHEDULER"]


def test_the_roles_get_their_own_copies_of_the_cache_config(bench: Bench) -> None:
    engine = bench.engine()
    assert engine.worker is not None
    assert engine.worker.connector._kv_cache_config is not engine.connector._kv_cache_config
    assert engine.worker.connector is not engine.connector


def test_a_step_without_loads_calls_start_load_kv_behind_the_forward(bench: Bench, runner: Any) -> None:
    stored_then_asked_again(bench.engine(options=EngineOptions(THREE_LAYERS, runner=runner)), 49, 2)
    forward = ["handle_preemptions", "bind_connector_metadata", *HOOKED[runner], *AFTER_FORWARD[runner]]
    worker = [*forward, "start_load_kv", *RESULTS]
    assert hooks_of_step(bench.history, steps_of(bench)["prefill"]) == [
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "build_connector_meta",
        *worker,
        "update_connector_output",
        "get_kv_connector_stats",
        "take_events",
    ]
    assert hooks_of_step(bench.history, steps_of(bench)["decode"]) == [
        "build_connector_meta",
        *worker,
        "request_finished",
        "update_connector_output",
        "get_kv_connector_stats",
        "take_events",
    ]


def test_a_step_with_sync_loads_calls_start_load_kv_before_the_forward(bench: Bench, runner: Any) -> None:
    stored_then_asked_again(bench.engine(options=EngineOptions(THREE_LAYERS, runner=runner)), 49, 2)
    sources = ["get_external_cache_hit_sources"] if compat.release() >= Version("0.32.0") else []
    assert hooks_of_step(bench.history, steps_of(bench)["load"]) == [
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        *sources,
        "build_connector_meta",
        "handle_preemptions",
        "bind_connector_metadata",
        "start_load_kv",
        *HOOKED[runner],
        *AFTER_FORWARD[runner],
        *RESULTS,
        "update_connector_output",
        "get_kv_connector_stats",
        "take_events",
    ]
    nothing_wrong(bench)


def test_a_step_without_tokens_calls_no_layer_hook(bench: Bench, runner: Any) -> None:
    stored_then_asked_again(bench.engine(options=EngineOptions(THREE_LAYERS, runner=runner)), 49, 2)
    empty = hooks_of_step(bench.history, steps_of(bench)["empty"])
    assert empty[: empty.index("clear_connector_metadata") + 1] == [
        "build_connector_meta",
        "handle_preemptions",
        "bind_connector_metadata",
        *AFTER_FORWARD[runner],
        "start_load_kv",
        *RESULTS,
    ]
    # With no KVConnectorOutput to report, only the polls are left.
    assert "update_connector_output" not in empty


def test_start_load_kv_gets_what_each_runner_gives_it(bench: Bench, runner: Any) -> None:
    stored_then_asked_again(bench.engine(options=EngineOptions(THREE_LAYERS, runner=runner)), 49, 2)
    named = steps_of(bench)
    calls = {call.step: call.args for call in bench.history.calls("start_load_kv")}
    batch = ["num_tokens", "request_ids", "request_state_indices", "scheduler_output"]
    expected: dict[str, list[str]] = {"v1": [], "v2": batch, "v2-full-graph": ["attn_metadata", *batch]}
    assert calls[named["load"]]["keywords"] == expected[runner]
    assert calls[named["load"]]["attn_metadata"] is (runner != "v2-full-graph")
    assert calls[named["empty"]]["keywords"] == []
    assert calls[named["empty"]]["attn_metadata"] is False


def test_shutdown_is_worker_first(bench: Bench) -> None:
    engine = bench.engine()
    engine.shutdown()
    assert [call.role for call in bench.history.calls("shutdown")] == ["worker", "scheduler"]


def test_an_idle_engine_calls_nothing_of_a_step(bench: Bench) -> None:
    engine = bench.engine()
    run(engine, request("a", 20))
    steps, calls = engine.steps, len(bench.of(HookCall))
    assert engine.step() is False
    assert engine.steps == steps
    assert {call.hook for call in bench.of(HookCall)[calls:]} <= {"has_pending_push_work"}


# -- bytes and tokens ------------------------------------------------------------------------------------------


def test_a_stored_prompt_comes_back_and_is_compared(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(runner=runner))
    stored_then_asked_again(engine, 49, 3)
    engine.audit()
    first = next(event for event in bench.of(Compared) if event.request == "reload")
    assert (first.local_tokens, first.external_tokens, first.layers) == (0, 48, 2)
    assert [event.free_blocks for event in bench.of(Audited)] == [31]
    nothing_wrong(bench)


def test_generated_tokens_are_the_oracles_and_the_same_again(bench: Bench) -> None:
    stored_then_asked_again(bench.engine(), 49, 5)
    delivered: dict[str, list[int]] = {}
    for event in bench.of(Tokens):
        delivered.setdefault(event.request, []).extend(event.token_ids)
    assert delivered["store"] == delivered["reload"]
    chain = bench.engines[0].chains["store"]
    assert delivered["store"] == chain.tokens(54)[49:]
    assert [event.finish_reason for event in bench.of(Tokens) if event.finish_reason] == ["length", "length"]


def test_a_chunk_samples_nothing_until_the_prompt_is_done(bench: Bench) -> None:
    engine = bench.engine(options=EngineOptions(max_num_batched_tokens=20))
    run(engine, request("a", 50, 2))
    scheduled = [event.scheduled["a"] for event in bench.of(Scheduled) if event.scheduled]
    assert scheduled == [20, 20, 10, 1]
    assert [event.step for event in bench.of(Tokens)] == [3, 4]
    nothing_wrong(bench)


def test_local_and_external_hits_are_told_apart(bench: Bench) -> None:
    engine = bench.engine()
    run(engine, RequestSpec("store", ((1, 32), (2, 33))))
    engine.reset_prefix_cache()
    # The prefix comes back by a load of its own and stays in the local cache.
    run(engine, RequestSpec("prefix", ((1, 32), (3, 5))))
    run(engine, RequestSpec("reload", ((1, 32), (2, 33))))
    seen = {event.request: (event.local_tokens, event.external_tokens) for event in bench.of(Compared)}
    assert seen["prefix"] == (0, 32)
    assert seen["reload"] == (32, 32)
    nothing_wrong(bench)


def test_a_sync_load_that_a_second_request_shares_in_the_same_step(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(runner=runner))
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    for name in ("first", "second"):
        engine.add(request(name, 49, 2))
    engine.drain()
    engine.audit()
    seen: dict[str, tuple[int, int]] = {}
    for event in bench.of(Compared):
        seen.setdefault(event.request, (event.local_tokens, event.external_tokens))
    assert seen["first"] == (0, 48)
    assert seen["second"] == (48, 0)
    nothing_wrong(bench)


def test_a_known_id_may_be_used_again_for_another_prompt(bench: Bench) -> None:
    engine = bench.engine()
    run(engine, request("a", 40, 2, seed=1), request("a", 40, 2, seed=2), request("a", 40, 2, seed=1))
    engine.audit()
    # Two steps each. The third prompt is the first one again, and so found; the second is not.
    assert [event.local_tokens for event in bench.of(Compared)] == [0, 40, 0, 40, 32, 40]
    nothing_wrong(bench)


def test_the_same_id_in_the_step_after_its_abort(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(request("a", 40, 20, seed=1))
    engine.step()
    engine.abort("a")
    engine.add(request("a", 40, 2, seed=2))
    engine.drain()
    engine.audit()
    last = bench.of(Compared)[-1]
    assert (last.request, last.local_tokens) == ("a", 40)
    nothing_wrong(bench)


# -- aborts and preemption -------------------------------------------------------------------------------------


def test_abort_before_the_first_step(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(request("a", 40))
    engine.abort("a")
    engine.drain()
    engine.audit()
    (finished,) = bench.history.calls("request_finished")
    assert finished.args == {"request": "a", "status": "FINISHED_ABORTED", "block_ids": []}
    assert list(bench.history.calls("get_num_new_matched_tokens")) == []
    nothing_wrong(bench)


def test_abort_while_running(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(request("a", 40, 50))
    for _ in range(3):
        engine.step()
    engine.abort("a")
    engine.drain()
    engine.audit()
    (finished,) = bench.history.calls("request_finished")
    assert finished.args["status"] == "FINISHED_ABORTED"
    assert len(finished.args["block_ids"]) == 3
    assert [event.finished for event in bench.of(Scheduled)][-1] == ("a",)
    assert bench.of(Audited)[0].free_blocks == 31
    nothing_wrong(bench)


def test_an_unknown_id_can_be_aborted(bench: Bench) -> None:
    engine = bench.engine()
    engine.abort("nobody")
    assert engine.step() is False
    nothing_wrong(bench)


def test_preemption_by_pressure(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(KVCacheShape(num_blocks=7), runner=runner))
    for name, seed in (("a", 1), ("b", 2)):
        engine.add(request(name, 40, 24, seed))
    engine.drain()
    engine.audit()
    preempted = [event for event in bench.of(Scheduled) if event.preempted]
    assert [event.preempted for event in preempted] == [("b",)]
    back = [event for event in bench.of(Scheduled) if event.step > preempted[0].step and "b" in event.scheduled]
    # Model runner V2 is told of a resumed request as of a new one.
    assert (back[0].resumed, back[0].new) == ((("b",), ()) if runner == "v1" else ((), ("b",)))
    # What had been saved before the preemption is an external hit now.
    hits = [call.result for call in bench.history.calls("get_num_new_matched_tokens") if call.args["request"] == "b"]
    assert hits[0] == (0, False)
    assert hits[-1][0] > 0
    assert sorted(event.request for event in bench.of(Tokens) if event.finish_reason) == ["a", "b"]
    nothing_wrong(bench)


def test_preemption_by_reset(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(runner=runner))
    engine.add(request("a", 40, 24))
    for _ in range(4):
        engine.step()
    assert engine.reset_prefix_cache(running=True) is True
    engine.drain()
    engine.audit()
    events = bench.of(Scheduled)
    assert events[4].preempted == ("a",)
    assert "a" in (events[4].new + events[4].resumed)
    tokens = [token for event in bench.of(Tokens) for token in event.token_ids]
    assert tokens == engine.chains["a"].tokens(64)[40:]
    nothing_wrong(bench)


def test_blocks_of_a_resumed_request_have_a_new_life(bench: Bench, runner: Any) -> None:
    """What the request wrote before its preemption must not pass for what the connector should have loaded."""
    engine = bench.engine(options=EngineOptions(runner=runner))
    assert engine.worker is not None
    memory = engine.worker.memory
    engine.add(request("a", 40, 24))
    for _ in range(4):
        engine.step()
    before = {block: memory.life(block) for block in range(32)}
    engine.reset_prefix_cache(running=True)
    engine.step()
    (table,) = engine.scheduler.kv_cache_manager.get_block_ids("a")
    assert table
    assert all(memory.life(block) == before[block] + 1 for block in table)


def test_reset_of_a_busy_cache_fails_and_says_so(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(request("a", 40, 24))
    engine.step()
    assert engine.reset_prefix_cache() is False
    engine.drain()
    assert engine.reset_prefix_cache() is True
    nothing_wrong(bench)


def test_reset_of_the_connector_reaches_it_and_its_store(bench: Bench) -> None:
    engine = bench.engine()
    run(engine, request("store", 49))
    assert engine.reset_prefix_cache(connector=True) is True
    run(engine, request("reload", 49))
    assert [call.result for call in bench.history.calls("reset_cache")] == [True]
    assert list(bench.history.calls("get_num_new_matched_tokens"))[-1].result == (0, False)
    nothing_wrong(bench)


def test_a_restart_keeps_the_store(bench: Bench) -> None:
    first = bench.engine()
    run(first, request("store", 49))
    first.shutdown()
    run(bench.engine(), request("reload", 49))
    loaded = [event for event in bench.of(Compared) if event.external_tokens]
    assert [(event.engine, event.request, event.external_tokens) for event in loaded] == [(2, "reload", 48)]
    nothing_wrong(bench)


# -- crossings -------------------------------------------------------------------------------------------------


def test_what_crosses_a_process_boundary_is_pickled(bench: Bench) -> None:
    stored_then_asked_again(bench.engine("OddMessages", unpicklable="nothing"), 49, 2)
    crossed = {event.what for event in bench.of(Crossing)}
    assert crossed == {"handshake metadata", "scheduler output", "worker output"}
    assert all(event.size_bytes > 0 and event.error is None for event in bench.of(Crossing))
    outputs = [event.step for event in bench.of(Crossing) if event.what == "scheduler output"]
    assert outputs == [event.step for event in bench.of(Scheduled)]


def test_the_worker_sees_a_copy_of_the_metadata(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for crossing, same in (("pickle", False), ("reference", True)):
        engine = bench.engine(options=EngineOptions(crossing=crossing))  # type: ignore[arg-type]
        seen: dict[str, Any] = {}
        assert engine.worker is not None
        build, bind = engine.connector.build_connector_meta, engine.worker.connector.bind_connector_metadata

        def building(output: Any, build: Any = build, seen: dict[str, Any] = seen) -> Any:
            seen["made"] = build(output)
            return seen["made"]

        def binding(metadata: Any, bind: Any = bind, seen: dict[str, Any] = seen) -> None:
            seen["bound"] = metadata
            bind(metadata)

        monkeypatch.setattr(engine.connector, "build_connector_meta", building)
        monkeypatch.setattr(engine.worker.connector, "bind_connector_metadata", binding)
        run(engine, request("a", 20))
        assert (seen["made"] is seen["bound"]) is same


@pytest.mark.parametrize(
    ("unpicklable", "what", "step"),
    [("metadata", "scheduler output", 1), ("report", "worker output", 1), ("handshake", "handshake metadata", 0)],
)
def test_what_no_pickler_takes_is_found(bench: Bench, unpicklable: str, what: str, step: int) -> None:
    with pytest.raises(EngineStopped, match=f"serialising the {what}: TypeError: cannot pickle"):
        run(bench.engine("OddMessages", unpicklable=unpicklable), request("a", 20))
    (crossing,) = [event for event in bench.of(Crossing) if event.error]
    assert (crossing.what, crossing.step) == (what, step)
    assert "cannot pickle '_thread.lock' object" in crossing.error
    (raised,) = bench.of(EngineRaised)
    assert raised.cause_hook is None


def test_by_reference_nothing_is_pickled(bench: Bench) -> None:
    run(bench.engine("OddMessages", EngineOptions(crossing="reference"), unpicklable="metadata"), request("a", 20))
    assert bench.of(Crossing) == []
    nothing_wrong(bench)


# -- failures --------------------------------------------------------------------------------------------------

STARTING = {"register_kv_caches", "set_host_xfer_buffer_ops", "get_handshake_metadata", "bind_kv_cache_manager"}
STARTING |= {"set_xfer_handshake_metadata_pp_aware"}
PHASES = {
    "on_new_request": "add_request",
    "get_num_new_matched_tokens": "schedule",
    "update_state_after_alloc": "schedule",
    "build_connector_meta": "schedule",
    "handle_preemptions": "execute_model",
    "bind_connector_metadata": "execute_model",
    "start_load_kv": "execute_model",
    "wait_for_layer_load": "execute_model",
    "save_kv_layer": "execute_model",
    "wait_for_save": "execute_model",
    "get_finished": "execute_model",
    "get_block_ids_with_load_errors": "execute_model",
    "build_connector_worker_meta": "execute_model",
    "clear_connector_metadata": "execute_model",
    "update_connector_output": "update_from_output",
    "request_finished": "update_from_output",
    "take_events": "update_from_output",
}


@pytest.mark.parametrize("hook", PHASES)
def test_an_exception_in_a_hook_ends_the_engine_and_names_the_hook(bench: Bench, hook: str) -> None:
    engine = bench.engine("Raising", raise_in=hook)
    with pytest.raises(EngineStopped, match=f"{PHASES[hook]}: RuntimeError: planted in {hook}"):
        run(engine, request("a", 20))
    (raised,) = bench.of(EngineRaised)
    assert (raised.during, raised.cause_hook, raised.error) == (PHASES[hook], hook, f"RuntimeError: planted in {hook}")
    assert raised.where.startswith("planted_connectors.py:")
    (call,) = [call for call in bench.of(HookCall) if call.error and call.hook == hook]
    assert (call.error, call.result) == (raised.error, None)
    for action in (engine.step, engine.drain, engine.reset_prefix_cache, lambda: engine.abort("a")):
        with pytest.raises(EngineStopped, match="the engine is dead"):
            action()
    assert bench.of(EngineRaised) == [raised]


@pytest.mark.parametrize("hook", sorted(STARTING))
def test_an_exception_at_start_up_names_the_hook(bench: Bench, hook: str) -> None:
    with pytest.raises(EngineStopped, match=f"start-up: RuntimeError: planted in {hook}"):
        bench.engine("Raising", raise_in=hook)
    (raised,) = bench.of(EngineRaised)
    assert (raised.step, raised.during, raised.cause_hook) == (0, "start-up", hook)


def test_an_exception_of_vllm_itself_names_no_hook(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bench.engine()

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("vLLM's own")

    monkeypatch.setattr(engine.scheduler.kv_cache_manager, "allocate_slots", broken)
    with pytest.raises(EngineStopped, match="schedule: ValueError: vLLM's own"):
        run(engine, request("a", 20))
    assert bench.of(EngineRaised)[0].cause_hook is None


def test_shutdown_that_raises_is_recorded(bench: Bench) -> None:
    engine = bench.engine("Raising", raise_in="shutdown", role="SCHEDULER")
    with pytest.raises(EngineStopped, match="scheduler shutdown: RuntimeError: planted in shutdown"):
        engine.shutdown()
    (raised,) = bench.of(EngineRaised)
    assert (raised.during, raised.cause_hook) == ("scheduler shutdown", "shutdown")


def test_an_engine_that_never_becomes_idle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STEP_LIMIT", 10)
    engine = bench.engine()
    engine.add(request("endless", 20, 100))
    with pytest.raises(EngineStopped, match="not idle after 10 steps"):
        engine.drain()
    assert [(event.limit, event.unfinished) for event in bench.of(NeverIdle)] == [(10, ("endless",))]
    assert bench.of(NeverIdle)[0].step == 10


# -- the audit -------------------------------------------------------------------------------------------------


def test_the_audit_finds_a_block_that_somebody_keeps(bench: Bench) -> None:
    engine = bench.engine()
    run(engine, request("a", 40))
    pool = engine.scheduler.kv_cache_manager.block_pool
    kept = pool.get_new_blocks(1)[0].block_id
    engine.audit()
    (leak,) = bench.of(Leaked)
    assert leak.what == "blocks"
    assert leak.detail == f"1 blocks with references: [{kept}]; 30 of 31 free"


def test_the_audit_finds_a_request_that_never_left(bench: Bench) -> None:
    engine = bench.engine()
    run(engine, request("a", 40))
    engine.scheduler.finished_recving_kv_req_ids.add("a")
    engine.audit()
    (leak,) = bench.of(Leaked)
    assert (leak.what, leak.detail) == ("requests in scheduler.finished_recving_kv_req_ids", "a")


def test_the_audit_of_an_engine_with_a_running_request_finds_everything_it_holds(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(request("a", 40, 5))
    engine.step()
    engine.audit()
    leaks = {leak.what: leak.detail for leak in bench.of(Leaked)}
    assert leaks["requests in scheduler.requests"] == "a"
    assert leaks["requests in scheduler.running"] == "a"
    assert leaks["blocks"].startswith("3 blocks with references")


@pytest.mark.parametrize(("where", "block"), [("null", 0), ("free", 31), ("guard", -1)])
def test_a_write_to_a_forbidden_place_is_recorded(bench: Bench, where: str, block: int) -> None:
    engine = bench.engine("Careless", where=where)
    stored_then_asked_again(engine)
    found = bench.of(Stray)
    assert {(write.block, write.owners) for write in found} == {(block, ())}
    assert found[0].phase == "before layer model.layers.0.self_attn.attn was computed"
    assert found[0].step == steps_of(bench)["load"]


def test_a_write_to_a_shared_prefix_is_recorded_with_its_owners(bench: Bench) -> None:
    engine = bench.engine("Careless", where="prefix")
    run(engine, RequestSpec("store", ((1, 32), (2, 33))))
    engine.reset_prefix_cache()
    # Three blocks: two of prefix, and its own.
    engine.add(RequestSpec("owner", ((1, 32), (3, 5)), 10, skip_reading_prefix_cache=True))
    engine.step()
    engine.add(RequestSpec("reload", ((1, 32), (2, 33)), 2))
    engine.step()
    found = bench.of(Stray)
    assert len(found) == 1
    assert found[0].owners == ("owner", "reload")
    assert found[0].slots == tuple(range(16))
    wrong = [event for event in bench.of(WrongBytes) if event.request in ("owner", "reload")]
    assert {event.request for event in wrong} == {"owner", "reload"}
    assert not any(event.external for event in wrong)


# -- process-wide state ----------------------------------------------------------------------------------------


def agent() -> Any:
    from vllm.distributed.kv_transfer import kv_transfer_state

    return kv_transfer_state._KV_CONNECTOR_AGENT


def test_vllms_connector_of_the_process_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.kv_transfer import kv_transfer_state

    somebody = object()
    monkeypatch.setattr(kv_transfer_state, "_KV_CONNECTOR_AGENT", somebody)
    engine = bench.engine()
    run(engine, request("a", 20))
    engine.shutdown()
    assert agent() is somebody
    engine.shutdown()
    assert agent() is somebody, "also after a second shutdown"
    monkeypatch.setattr(kv_transfer_state, "_KV_CONNECTOR_AGENT", None)


@pytest.mark.parametrize("role", ["WORKER", "SCHEDULER"])
def test_a_failed_start_leaves_nothing_behind(bench: Bench, role: str) -> None:
    with pytest.raises(EngineStopped, match="planted in __init__"):
        bench.engine("Raising", raise_in="__init__", role=role)
    assert agent() is None
    (raised,) = bench.of(EngineRaised)
    assert (raised.step, raised.engine) == (0, 1)
    # The worker that was built before the scheduler failed is shut down.
    shut = [call.role for call in bench.history.calls("shutdown")]
    assert shut == (["worker"] if role == "SCHEDULER" else [])


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_engines_at_once_in_any_order(bench: Bench, first_out: int) -> None:
    one, two = bench.engine(), bench.engine()
    run(one, request("a", 49))
    run(two, request("b", 49))
    engines = [one, two]
    engines.pop(first_out).shutdown()
    run(engines[0], request("c", 49, seed=2))
    engines[0].shutdown()
    assert agent() is None
    calls = {(call.engine, call.hook) for call in bench.of(HookCall)}
    assert (1, "start_load_kv") in calls
    assert (2, "start_load_kv") in calls
    loaded = {event.request: event.external_tokens for event in bench.of(Compared)}
    assert loaded["b"] == 48, "two engines share the store"
    nothing_wrong(bench)


def test_a_class_that_vllm_refuses_fails_with_vllms_words(bench: Bench) -> None:
    with pytest.raises(EngineStopped, match="deprecated 2-argument constructor"):
        bench.engine("TwoArguments")
    assert bench.of(HookCall) == []


def test_an_unknown_class_fails_at_start_up(bench: Bench) -> None:
    with pytest.raises(EngineStopped, match="start-up: AttributeError"):
        bench.engine("NoSuchConnector")


def test_the_options_of_the_connector_reach_both_roles_unchanged(bench: Bench) -> None:
    given = {"path": str(bench.path), "nested": {"list": [1, 2]}}
    engine = bench.engine("Extended", nested={"list": [1, 2]})
    assert engine.worker is not None
    for connector in (engine.connector, engine.worker.connector):
        assert connector.options == given


def test_a_budget_below_the_number_of_sequences_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"max_num_batched_tokens \(8\) must be at least max_num_seqs \(16\)"):
        EngineOptions(max_num_batched_tokens=8)
    assert replace(EngineOptions(), max_num_seqs=8, max_num_batched_tokens=8).max_num_seqs == 8
