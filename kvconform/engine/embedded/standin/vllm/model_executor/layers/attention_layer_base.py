"""A layer that owns a part of the KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class AttentionLayerBase(ABC):
    """What connectors find in the static forward context."""

    impl: Any
    supports_dcp: bool = True
    is_draft_layer: bool = False

    def bind_kv_cache(self, kv_cache: torch.Tensor) -> None:
        """Its tensor."""
        self.kv_cache = kv_cache

    @abstractmethod
    def get_attn_backend(self) -> type[Any]:
        """Its kernels."""

    @abstractmethod
    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        """Its cache."""
