"""Attention layers without a kernel: what connectors and vLLM look up in the static forward context."""

from __future__ import annotations

import contextlib
from functools import cache
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

    def __init__(self, layer_name: str, spec: KVCacheSpec, kernel_block_size: int | None = None) -> None:
        self.layer_name = layer_name
        self.spec = spec
        self.kv_cache: torch.Tensor = torch.empty(0)
        self.num_kv_heads: int = getattr(spec, "num_kv_heads", 1)
        self.head_size: int = getattr(spec, "head_size", 0)
        self._kernel_block_size = kernel_block_size

    def get_attn_backend(self) -> type[Any]:
        """A backend of vLLM's own by name; the kernels that it stands for take blocks as the scenario has them."""
        from vllm.v1.kv_cache_interface import MLAAttentionSpec

        return simulated_backend(self._kernel_block_size, isinstance(self.spec, MLAAttentionSpec))

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """The spec from the KV cache configuration."""
        return self.spec


@cache
def simulated_backend(kernel_block_size: int | None, latent: bool = False) -> type[Any]:
    """A backend of vLLM's whose kernels take blocks of this size only, or any; the real ones take multiples of 32.

    Of ``latent`` layers it is one for multi-head latent attention (AttentionBackend.is_mla).

    Connectors find out from it into which kernel blocks vLLM splits a block (vllm/v1/worker/utils.py,
    select_common_block_size, 0.32.0).
    """

    class SimulatedBackend(_backend_of_the_platform()):  # type: ignore[misc]
        @staticmethod
        def get_supported_kernel_block_sizes(*_: Any) -> list[Any]:
            from vllm.v1.attention.backend import MultipleOf

            return [MultipleOf(1) if kernel_block_size is None else kernel_block_size]

        @classmethod
        def is_mla(cls) -> bool:
            return latent

    return SimulatedBackend


def _backend_of_the_platform() -> type[Any]:
    from vllm.platforms import current_platform

    if current_platform.device_type == "cuda":
        # The kit's own engine 'embedded' has the other one only.
        with contextlib.suppress(ImportError):
            from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

            return TritonAttentionBackend
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return CPUAttentionBackend


def place_layers(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, kernel_block_size: int | None = None) -> None:
    """Put the layers into the static forward context, where connectors and vLLM look them up.

    As in vLLM they are there before a worker's connector is built, without a KV cache (load_model comes before
    initialize_from_config, vllm/v1/worker/gpu_worker.py, 0.32.0).
    """
    context = vllm_config.compilation_config.static_forward_context
    for group in kv_cache_config.kv_cache_groups:
        for name, spec in specs_of(group).items():
            context[name] = _layer(name, spec, kernel_block_size)


def _layer(name: str, spec: KVCacheSpec, kernel_block_size: int | None) -> AttentionLayerBase:
    from vllm.v1.kv_cache_interface import MambaSpec

    if isinstance(spec, MambaSpec):
        # Late: only models with such layers need what it imports.
        from kvconform.engine.vllm_engine.mixers import SimulatedMixer

        return SimulatedMixer(name, spec)
    return SimulatedAttention(name, spec, kernel_block_size)


def bind_layers(vllm_config: VllmConfig, views: dict[str, torch.Tensor]) -> None:
    """Give each of the layers its view."""
    context = vllm_config.compilation_config.static_forward_context
    for name, view in views.items():
        context[name].bind_kv_cache(view)


@maybe_transfer_kv_layer
def _attention(layer_name: str, body: Callable[[str], None]) -> None:
    """In vLLM's own decorator, which finds the layer by a parameter that is literally called ``layer_name``.

    vllm/model_executor/layers/attention/kv_transfer_utils.py, maybe_transfer_kv_layer.
    """
    body(layer_name)


def with_layer_hooks(body: Callable[[str], None]) -> Callable[[str], None]:
    """``body(layer_name)`` with vLLM's calls of wait_for_layer_load and save_kv_layer around it."""
    return lambda layer_name: _attention(layer_name, body)
