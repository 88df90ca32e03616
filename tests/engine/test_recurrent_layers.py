"""Recurrent layers on vLLM's own scheduler: where states lie, when they are compared, and what connectors see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import Bench, request, run

from kvconform.checks import examine
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import DivergentHit, EngineStarted, HookCall, Scheduled
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.scenario.program import RequestSpec
from kvconform.scenario.recurrent import MAMBA, beside_attention

pytestmark = pytest.mark.usefixtures("vllm_cpu")
REFERENCE = "kvconform.reference.hybrid_file_store"


def engine_of(bench: Bench, path: Path, **options: Any) -> VllmEngine:
    connector = ConnectorSpec("HybridFileStoreConnector", REFERENCE, extra_config={"path": str(path)})
    set_up = EngineOptions(options.pop("shape", beside_attention()), **options)
    engine = VllmEngine(set_up, connector, bench.history, bench.provenance, len(bench.engines) + 1)
    bench.engines.append(engine)
    return engine


@pytest.mark.parametrize("runner", ["v1", "v2", "v2-full-graph"])
def test_states_are_stored_and_come_back(bench: Bench, tmp_path: Path, runner: Any) -> None:
    engine = engine_of(bench, tmp_path, runner=runner)
    run(engine, request("store", 60, 20))
    engine.reset_prefix_cache()
    run(engine, request("reload", 60, 20))
    examination = examine(bench.history)
    assert examination.clean
    assert dict(examination.witnesses["HMA-06"]) == {"loads with recurrent states": 1}
    assert [event.recurrent for event in bench.of(EngineStarted)] == [(1, 2)]


def test_steps_of_a_prompt_end_where_a_state_is_kept(bench: Bench, tmp_path: Path) -> None:
    engine = engine_of(bench, tmp_path)
    run(engine, request("a", 60, 2))
    assert [event.scheduled["a"] for event in bench.of(Scheduled) if event.scheduled] == [48, 12, 1]


def test_layer_hooks_are_those_of_attention_alone(bench: Bench, tmp_path: Path) -> None:
    engine = engine_of(bench, tmp_path, runner="v1")
    run(engine, request("a", 20, 1))
    hooked = {call.args["layer"] for call in bench.of(HookCall) if call.hook == "save_kv_layer"}
    assert hooked == {name for name in engine.vllm_config.compilation_config.static_forward_context if "attn" in name}


def test_layers_hand_out_their_states_as_views_of_the_page(bench: Bench, tmp_path: Path) -> None:
    engine = engine_of(bench, tmp_path)
    assert engine.worker is not None
    name, memory = next((name, layer) for name, layer in engine.worker.memory.layers.items() if layer.recurrent)
    convolution, space = engine.vllm_config.compilation_config.static_forward_context[name].kv_cache
    assert [tuple(state.shape[1:]) for state in (convolution, space)] == [shape for shape, _ in MAMBA]
    assert convolution.data_ptr() == memory.bytes.data_ptr()
    assert space.data_ptr() == memory.bytes.data_ptr() + 120


@pytest.mark.parametrize("tokens", [5, 16, 20])
def test_state_that_somebody_overwrites_is_found_in_the_next_step(bench: Bench, tmp_path: Path, tokens: int) -> None:
    engine = engine_of(bench, tmp_path)
    engine.add(request("a", tokens, 4))
    # The prompt may need two steps.
    while not engine.scheduler.requests["a"].num_output_tokens:
        engine.step()
    assert engine.worker is not None
    memory = engine.worker.memory
    name, layer = next((name, layer) for name, layer in memory.layers.items() if layer.recurrent)
    block = engine.worker.requests["a"].block_ids[layer.group][(tokens - 1) // 16]
    layer.bytes[block] ^= 0xFF
    memory.shadow.copy_(memory.raw)
    engine.step()
    assert {(event.layer, event.positions, event.blocks) for event in bench.of(WrongBytes)} == {
        (name, (tokens - 1,), (block,))
    }


def test_local_hit_that_is_deeper_in_attention_is_noted(bench: Bench, tmp_path: Path) -> None:
    engine = engine_of(bench, tmp_path)
    long = ((1, 64), (2, 40))
    run(engine, RequestSpec("store", long, 2))
    engine.reset_prefix_cache()
    run(engine, RequestSpec("prefix", ((1, 64), (3, 20)), 2))
    assert bench.of(DivergentHit) == []
    run(engine, RequestSpec("reload", long, 2))
    assert [(event.request, event.tokens) for event in bench.of(DivergentHit)] == [("reload", 64)]
    assert examine(bench.history).clean


@pytest.mark.parametrize("wrong", [{"drafts": 2}, {"enable_prefix_caching": False}], ids=str)
def test_what_is_not_simulated_with_recurrent_layers_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with prefix caching and without drafts"):
        EngineOptions(beside_attention(), **wrong)
