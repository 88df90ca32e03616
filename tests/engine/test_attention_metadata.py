"""What the hooks of a layer are told of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench import Bench, request

from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.attention_metadata import Batch, metadata_class
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.kvcache.shape import KVCacheShape, LayerShape

pytestmark = pytest.mark.usefixtures("vllm_cpu")

LATENT = LayerShape(kind="mla", num_kv_heads=1, head_size=24)


def told(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What save_kv_layer is told of each layer in the next step."""
    found: dict[str, Any] = {}
    assert engine.worker is not None

    def save_kv_layer(name: str, cache: torch.Tensor, batch: Any) -> None:
        found[name] = batch

    monkeypatch.setattr(engine.worker.connector, "save_kv_layer", save_kv_layer)
    engine.step()
    return found


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_fields_of_the_kernels_are_those_of_the_batch(
    bench: Bench, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine(options=EngineOptions(runner=runner, max_num_batched_tokens=40))
    engine.add(request("first", 20, 3))
    engine.step()
    engine.add(request("second", 60, 1, seed=2))
    metadata = told(engine, monkeypatch)
    first, second = (engine.worker.requests[name].block_ids[0] for name in ("first", "second"))  # type: ignore[union-attr]
    batch = metadata["model.layers.0.self_attn.attn"]
    assert batch is metadata["model.layers.1.self_attn.attn"], "the layers of a group share one object"
    assert (batch.num_reqs, batch.num_actual_tokens, batch.max_query_len, batch.max_seq_len) == (2, 40, 39, 39)
    assert (batch.num_decodes, batch.num_decode_tokens, batch.num_prefills) == (1, 1, 1)
    assert batch.query_start_loc.tolist() == [0, 1, 40]
    assert batch.seq_lens.tolist() == [21, 39]
    assert batch.block_table.dtype == torch.int32
    assert batch.block_table.tolist() == [[*first, *[0] * (len(second) - len(first))], second]
    positions = [(first, 20), *((second, position) for position in range(39))]
    assert batch.slot_mapping.tolist() == [blocks[p // 16] * 16 + p % 16 for blocks, p in positions]


def test_block_tables_name_the_blocks_of_the_kernels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bench.engine(options=EngineOptions(shape=KVCacheShape(kernel_block_size=8)))
    engine.add(request("first", 20))
    metadata = told(engine, monkeypatch)
    blocks = engine.worker.requests["first"].block_ids[0]  # type: ignore[union-attr]
    table = metadata["model.layers.0.self_attn.attn"].block_table
    assert table.tolist() == [[half for block in blocks for half in (2 * block, 2 * block + 1)]]


def test_the_class_tells_latents_from_heads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.attention.mla_attention import MLACommonMetadata
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

    heads = bench.engine()
    heads.add(request("first", 20))
    metadata = told(heads, monkeypatch)
    assert all(isinstance(batch, CPUAttentionMetadata) for batch in metadata.values())
    heads.drain()

    latents = bench.engine(options=EngineOptions(shape=KVCacheShape((LATENT,))))
    latents.add(request("first", 20))
    metadata = told(latents, monkeypatch)
    assert len(metadata) == 2
    assert all(isinstance(batch, MLACommonMetadata) for batch in metadata.values())
    assert not any(isinstance(batch, CPUAttentionMetadata) for batch in metadata.values())

    for engine, is_latent in ((heads, False), (latents, True)):
        layers = engine.vllm_config.compilation_config.static_forward_context.values()
        assert [layer.get_attn_backend().is_mla() for layer in layers] == [is_latent, is_latent]


def test_it_can_be_printed_compared_and_put_into_a_set() -> None:
    for latent in (True, False):
        made = metadata_class(latent=latent)([], None, torch.zeros(0))  # type: ignore[arg-type]
        assert isinstance(made, Batch)
        assert "SimulatedAttentionMetadata" in repr(made)
        assert made == made
        assert len({made, made}) == 1
