"""Attention layers without a kernel: what connectors and vLLM look up in the static forward context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.attention.kv_transfer_utils import maybe_transfer_kv_layer
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from kvconform.kvcache.build import specs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


class SimulatedAttention(AttentionLayerBase):
    """A layer that owns a KV cache view and a spec, as connectors expect to find it."""

    def __init__(self, layer_name: str, spec: KVCacheSpec) -> None:
        self.layer_name = layer_name
        self.spec = spec
        self.kv_cache: torch.Tensor = torch.empty(0)
        self.num_kv_heads: int = getattr(spec, "num_kv_heads", 1)
        self.head_size: int = getattr(spec, "head_size", 0)

    def get_attn_backend(self) -> type[Any]:
        """vLLM's CPU backend, so that connectors that ask for a backend's name or block sizes get a real answer."""
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return CPUAttentionBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """The spec from the KV cache configuration."""
        return self.spec


def bind_layers(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, views: dict[str, torch.Tensor]) -> None:
    """Put one layer per view into the static forward context, where connectors and vLLM look layers up."""
    context = vllm_config.compilation_config.static_forward_context
    for group in kv_cache_config.kv_cache_groups:
        for name, spec in specs_of(group).items():
            context[name] = SimulatedAttention(name, spec)
            context[name].bind_kv_cache(views[name])


def with_layer_hooks(body: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap ``body(layer_name)`` in vLLM's own decorator, which calls wait_for_layer_load and save_kv_layer around it.

    The decorator finds the layer by a parameter that is literally called ``layer_name``
    (vllm/model_executor/layers/attention/kv_transfer_utils.py, maybe_transfer_kv_layer).
    """

    @maybe_transfer_kv_layer
    def attention(layer_name: str) -> None:
        body(layer_name)

    return attention
