"""Several workers in one process: own ranks, own bytes, one aggregated output."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench, request, run, stored_then_asked_again

from kvconform.checks import examine
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.events import EngineRaised, HookCall, Leaked, Unsimulated
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.protocol import NotSimulated
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.engine.vllm_engine.ranks import RankWorld


@pytest.fixture(params=["v1", "v2", "v2-full-graph"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_each_worker_loads_what_it_stored(bench: Bench, runner: Any) -> None:
    engine = bench.engine(options=EngineOptions(workers=2, runner=runner))
    stored_then_asked_again(engine, 49, 3)
    engine.audit()
    loaded = [event.external_tokens for event in bench.of(Compared) if event.request == "reload"]
    assert loaded.count(48) >= 2
    for kind in (WrongBytes, Stray, EngineRaised, Leaked, Unsimulated):
        assert bench.of(kind) == []
    assert examine(bench.history).clean


def test_hooks_are_recorded_with_the_rank(bench: Bench) -> None:
    engine = bench.engine(options=EngineOptions(workers=2))
    run(engine, request("a", 20))
    ranks = [call.rank for call in bench.of(HookCall) if call.hook == "start_load_kv" and call.step == 1]
    assert ranks == [0, 1]
    assert {call.rank for call in bench.of(HookCall) if call.role == "scheduler"} == {0}


def test_the_same_tokens_are_other_bytes_on_another_rank(bench: Bench) -> None:
    engine = bench.engine(options=EngineOptions(workers=2))
    run(engine, request("a", 32))
    first, second = (worker.memory for worker in engine.execution.workers)
    name = next(iter(first.layers))
    assert not bool((first.layers[name].bytes[1] == second.layers[name].bytes[1]).all())


def test_a_shard_of_another_rank_is_named(bench: Bench) -> None:
    engine = bench.engine(options=EngineOptions(workers=2))
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    engine.add(request("reload", 49))
    zero, one = (worker.connector._worker for worker in engine.execution.workers)
    one._rank = zero._rank
    engine.drain()
    wrong = bench.of(WrongBytes)
    assert {event.rank for event in wrong} == {1}
    assert wrong[0].observed == ("tokens 0-47 hold store's tokens 0-47 (of rank 0)",)


def test_workers_know_their_rank_while_they_run(bench: Bench) -> None:
    from vllm.distributed import parallel_state

    engine = bench.engine(options=EngineOptions(workers=2))
    seen = []
    for worker in engine.execution.workers:
        original = worker.connector.wait_for_save

        def wait_for_save(original: Any = original) -> None:
            seen.append(
                (parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size())
            )
            original()

        worker.connector.wait_for_save = wait_for_save
    run(engine, request("a", 5))
    assert seen[:2] == [(0, 2), (1, 2)]
    assert parallel_state.get_tensor_model_parallel_world_size() == 1
    assert [worker.vllm_config.parallel_config.rank for worker in engine.execution.workers] == [0, 1]
    assert engine.vllm_config.parallel_config.tensor_parallel_size == 2


def test_a_broadcast_while_workers_are_built_reaches_the_later_ranks(bench: Bench) -> None:
    from vllm.distributed import parallel_state

    bench.engine().shutdown()
    world = RankWorld(2)
    with world.of(0):
        assert parallel_state.get_tp_group().broadcast_object({"id": 1}, src=0) == {"id": 1}
    with world.of(1):
        assert parallel_state.get_tp_group().broadcast_object(None, src=0) == {"id": 1}
    world.built()
    with world.of(1), pytest.raises(NotSimulated, match="take turns"):
        parallel_state.get_tp_group().broadcast_object(None, src=0)
    with world.of(1), pytest.raises(NotSimulated):
        parallel_state.get_tp_group().all_gather(None)


def test_completions_of_the_last_worker_may_come_later(bench: Bench) -> None:
    module, name = "kvconform.reference.async_file_store", "AsyncFileStoreConnector"
    connector = ConnectorSpec(name, module, extra_config={"path": str(bench.path)})
    engine = VllmEngine(EngineOptions(workers=2, late_steps=2), connector, bench.history, bench.provenance)
    bench.engines.append(engine)
    stored_then_asked_again(engine, 49, 2)
    done = [call for call in bench.of(HookCall) if call.hook == "update_connector_output"]
    voted = [call for call in bench.of(HookCall) if call.hook == "get_transfer_results" and call.rank == 1]
    first_vote = next(call.step for call in voted if "reload" in call.result["finished_recving"])
    complete = next(call.step for call in done if "reload" in call.args["finished_recving"])
    assert complete == first_vote + 2
    assert bench.of(EngineRaised) == []
