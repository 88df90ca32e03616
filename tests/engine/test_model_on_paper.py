"""What a connector reads of the model in the configuration fits the KV cache that it is given."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench

from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.configuration import build_vllm_config
from kvconform.kvcache.shape import KVCacheShape, LayerShape

pytestmark = pytest.mark.usefixtures("vllm_cpu")


def model(bench: Bench, *layers: LayerShape, workers: int = 1) -> tuple[Any, Any]:
    """The model's and the parallel configuration of an engine with such layers."""
    engine = bench.engine(options=EngineOptions(shape=KVCacheShape(layers), workers=workers))
    return engine.vllm_config.model_config, engine.vllm_config.parallel_config


@pytest.mark.parametrize("workers", [1, 2])
def test_heads_and_layers_are_those_of_the_cache(bench: Bench, workers: int) -> None:
    config, parallel = model(bench, LayerShape(count=3, num_kv_heads=3, head_size=24), workers=workers)
    assert config.get_num_kv_heads(parallel) == 3
    assert config.get_total_num_kv_heads() == 3 * workers
    assert config.get_head_size() == 24
    assert config.get_num_layers(parallel) == 3
    assert config.get_num_attention_heads(parallel) == 6, "grouped queries"
    assert config.get_hidden_size() == 6 * 24 * workers
    assert not config.use_mla


@pytest.mark.parametrize("size", [4, 18, 24])
def test_a_cache_of_latents_is_that_of_a_model_with_latents(bench: Bench, size: int) -> None:
    config, parallel = model(bench, LayerShape(kind="mla", num_kv_heads=1, head_size=size))
    assert config.use_mla
    assert config.get_head_size() == size
    assert config.get_num_kv_heads(parallel) == 1
    assert config.get_num_layers(parallel) == 2


def test_of_layers_that_differ_the_first_that_is_not_recurrent_counts() -> None:
    state = LayerShape(kind="recurrent", states=(((4, 8), "float32"),))
    shape = KVCacheShape((state, LayerShape(count=1, num_kv_heads=4, head_size=16)))
    config = build_vllm_config(EngineOptions(shape=shape), None)
    parallel = config.parallel_config
    assert config.model_config.get_num_kv_heads(parallel) == 4
    assert config.model_config.get_head_size() == 16
    assert config.model_config.get_num_layers(parallel) == 3


@pytest.mark.parametrize(("dtype", "said"), [("uint8", "fp8"), ("bfloat16", "auto")])
def test_caches_of_raw_bytes_are_those_of_quantised_kv(dtype: str, said: str) -> None:
    config = build_vllm_config(EngineOptions(shape=KVCacheShape((LayerShape(dtype=dtype),))), None)
    assert config.cache_config.cache_dtype == said


def test_the_name_of_the_model_is_the_same_whatever_its_geometry(bench: Bench) -> None:
    names = {
        model(bench, layer)[0].model
        for layer in (LayerShape(), LayerShape(head_size=16), LayerShape(kind="mla", num_kv_heads=1))
    }
    assert len(names) == 1
