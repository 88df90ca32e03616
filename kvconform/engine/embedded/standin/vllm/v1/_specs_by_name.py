"""Caches that are not simulated, so that connectors can ask whether a layer is one; all are names of
vllm.v1.kv_cache_interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.v1._specs import AttentionSpec, KVCacheSpec, SlidingWindowSpec


@dataclass(frozen=True, kw_only=True)
class ChunkedLocalAttentionSpec(AttentionSpec):
    """Tokens see those of their chunk only."""

    attention_chunk_size: int


@dataclass(frozen=True, kw_only=True)
class SlidingWindowMLASpec(SlidingWindowSpec):
    """A window of latents."""

    cache_dtype_str: str | None = None
    alignment: int | None = None
    model_version: str | None = None
    bounded_replay: bool = False
    head_size_v: Any = 0

    @property
    def prefix_cacheable(self) -> bool:
        """Not where the window is computed again."""
        return not self.bounded_replay

    @property
    def prefix_replay_tokens(self) -> int:
        """Tokens computed again after a hit."""
        return self.sliding_window if self.bounded_replay else 0


@dataclass(frozen=True, kw_only=True)
class CircularBufferSpec(AttentionSpec):
    """One block per request, written round and round."""

    @property
    def prefix_cacheable(self) -> bool:
        """Never."""
        return False

    @property
    def uses_slot_mapping(self) -> bool:
        """Tokens have no slots of their own."""
        return False


@dataclass(frozen=True, kw_only=True)
class EncoderOnlyAttentionSpec(AttentionSpec):
    """Nothing is kept."""


@dataclass(frozen=True)
class CrossAttentionSpec(AttentionSpec):
    """States of an encoder."""


class MambaSpec(KVCacheSpec):
    """Recurrent state."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotSimulated("recurrent layers are not simulated by the engine 'embedded'")
