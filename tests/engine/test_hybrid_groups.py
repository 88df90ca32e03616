"""Several KV cache groups over the same bytes: windows, null blocks, and whose block is whose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bench import Bench, request, run

from kvconform.checks import examine
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.events import EngineRaised, HookCall, Leaked, Scheduled, Tokens
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.kvcache.shape import KVCacheShape, LayerShape

WINDOW = 40
SHAPE = KVCacheShape((LayerShape(2), LayerShape(2, kind="sliding_window", sliding_window=WINDOW)), num_blocks=48)


@pytest.fixture(params=["v1", "v2", "v2-full-graph"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def empty_store(vllm_cpu: object) -> Iterator[None]:
    from planted_hybrid import HybridMemory

    HybridMemory.store.clear()
    yield
    HybridMemory.store.clear()


def hybrid(bench: Bench, options: EngineOptions, **extra: Any) -> VllmEngine:
    connector = ConnectorSpec("HybridMemory", "planted_hybrid", extra_config=extra)
    engine = VllmEngine(options, connector, bench.history, bench.provenance, len(bench.engines) + 1)
    bench.engines.append(engine)
    return engine


def clean(bench: Bench) -> None:
    for kind in (WrongBytes, Stray, EngineRaised, Leaked):
        assert bench.of(kind) == []
    assert examine(bench.history).clean


def test_the_groups_share_their_bytes_and_not_their_blocks(bench: Bench) -> None:
    engine = hybrid(bench, EngineOptions(SHAPE))
    assert engine.worker is not None
    layers = engine.worker.memory.layers
    assert [layer.group for layer in layers.values()] in ([0, 1, 0, 1], [0, 0, 1, 1])
    assert sorted(engine.windows.values()) == [WINDOW, WINDOW]
    assert len({view.data_ptr() for view in engine.worker.memory.views.values()}) == 2
    engine.add(request("a", 60))
    engine.step()
    full, window = engine.worker.requests["a"].block_ids
    assert not set(full) & (set(window) - {0})


def test_long_requests_leave_their_window_behind(bench: Bench, runner: Any) -> None:
    engine = hybrid(bench, EngineOptions(SHAPE, runner=runner, max_num_batched_tokens=50))
    run(engine, request("a", 120, 30))
    engine.audit()
    (finished,) = bench.history.calls("request_finished_all_groups")
    full, window = finished.args["block_ids"]
    assert 0 not in full
    assert window.count(0) >= 5, "blocks behind the window are null blocks"
    clean(bench)


def test_an_external_hit_fills_the_window_only(bench: Bench, runner: Any) -> None:
    engine = hybrid(bench, EngineOptions(SHAPE, runner=runner))
    run(engine, request("store", 120))
    engine.reset_prefix_cache()
    run(engine, request("reload", 120, 20))
    engine.audit()
    loaded = next(event for event in bench.of(Compared) if event.request == "reload")
    assert (loaded.local_tokens, loaded.external_tokens, loaded.layers) == (0, 112, 4)
    (alloc,) = [call for call in bench.history.calls("update_state_after_alloc") if call.args["num_external_tokens"]]
    assert alloc.args["block_ids"][1][:4] == [0, 0, 0, 0]
    clean(bench)


def test_the_wrong_groups_bytes_are_found_in_the_window(bench: Bench, runner: Any) -> None:
    engine = hybrid(bench, EngineOptions(SHAPE, runner=runner), wrong_group=True)
    run(engine, request("store", 120))
    engine.reset_prefix_cache()
    run(engine, request("reload", 120))
    wrong = bench.of(WrongBytes)
    assert {event.group for event in wrong} == {1}
    assert wrong[0].positions == tuple(range(112 - WINDOW + 1, 112))
    layers = list(engine.worker.memory.layers.values())  # type: ignore[union-attr]
    other = next(layer.name for layer in layers if layer.group == 0)
    assert wrong[0].observed == (f"tokens 73-111 hold store's tokens 73-111 (of layer {other})",)
    assert {finding.rule for finding in examine(bench.history).findings} == {"LOAD-01"}


def test_preemption_with_two_groups(bench: Bench, runner: Any) -> None:
    small = KVCacheShape(SHAPE.layers, num_blocks=15)
    engine = hybrid(bench, EngineOptions(small, runner=runner))
    for name, seed in (("a", 1), ("b", 2)):
        engine.add(request(name, 40, 30, seed))
    engine.drain()
    engine.audit()
    assert any(event.preempted for event in bench.of(Scheduled))
    assert sorted(event.request for event in bench.of(Tokens) if event.finish_reason) == ["a", "b"]
    assert not [call for call in bench.of(HookCall) if call.error]
    clean(bench)
