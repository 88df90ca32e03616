"""Recurrent layers without a kernel, as connectors and vLLM look them up in the static forward context."""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import KVCacheSpec, MambaSpec


class SimulatedMixer(MambaBase):
    """A layer that owns the states in its KV cache pages; vLLM's own base class cuts them out of the raw view."""

    def __init__(self, layer_name: str, spec: MambaSpec) -> None:
        self.layer_name = layer_name
        self.spec = spec
        self.kv_cache = ()

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Of each state, in elements."""
        return self.spec.shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Of each state."""
        return self.spec.dtypes

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """Whose kernels would run."""
        return self.spec.mamba_type

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """The spec from the KV cache configuration."""
        return self.spec
