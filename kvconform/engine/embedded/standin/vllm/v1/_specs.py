"""The cache of one layer, by the kinds of attention that are simulated; all are names of vllm.v1.kv_cache_interface."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch

from kvconform.engine.protocol import NotSimulated
from vllm.utils.math_utils import cdiv
from vllm.utils.torch_utils import get_dtype_size
from vllm.v1._kinds import KVQuantMode, SparseCacheRole


@dataclass(frozen=True)
class KVCacheSpec:
    """The cache of one layer."""

    block_size: int
    dcp_sharded: bool = field(default=False, kw_only=True)
    block_stride_alignment: Any = field(default=None, kw_only=True)

    @property
    def prefix_cacheable(self) -> bool:
        """Whether its blocks can be found by a prefix."""
        return True

    @property
    def prefix_replay_tokens(self) -> int:
        """Tokens computed again after a hit."""
        return 0

    @property
    def page_size_bytes(self) -> int:
        """Bytes of a block."""
        raise NotImplementedError

    @property
    def has_layer_views(self) -> bool:
        """Whether there is a tensor per layer."""
        return True

    @property
    def uses_slot_mapping(self) -> bool:
        """Whether tokens have slots."""
        return True

    def copy_with_new_block_size(self, block_size: int) -> Self:
        """The same with other blocks."""
        return replace(self, block_size=block_size)

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """What the longest request takes."""
        raise NotImplementedError

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Whether all of them need as many slots as this one."""
        raise NotImplementedError

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """One spec for layers that share a block table; AssertionError if there is none."""
        assert all(spec == specs[0] for spec in specs), "layers of one KV cache group differ"
        return replace(specs[0])


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(KVCacheSpec):
    """A slot per token and head, with K and V side by side."""

    dcp_sharded: bool = True
    max_tp_shards: int | None = None
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    head_size_v: Any = None
    kv_quant_mode: KVQuantMode = KVQuantMode.NONE
    page_size_padded: int | None = None
    num_head_slots: int | None = None
    state_content_bytes: int | None = None
    tokens_per_state: Any = 1

    def __post_init__(self) -> None:
        if self.head_size_v is None:
            object.__setattr__(self, "head_size_v", self.head_size)

    @property
    def num_heads(self) -> int:
        """Heads of the tensor."""
        return self.num_kv_heads if self.num_head_slots is None else self.num_head_slots

    @property
    def num_states(self) -> int:
        """Slots of a block."""
        return self.get_num_kernel_states(self.block_size)

    def get_num_kernel_states(self, kernel_block_size: int) -> int:
        """Slots of a part of a block."""
        return int(kernel_block_size // self.tokens_per_state)

    @property
    def state_content_size_bytes(self) -> int:
        """Bytes of a slot of one head."""
        if self.state_content_bytes is not None:
            return self.state_content_bytes
        return (self.head_size + self.head_size_v) * get_dtype_size(self.dtype)

    @property
    def unpadded_page_size_bytes(self) -> int:
        """Bytes of a block that are used."""
        return self.num_heads * self.num_states * self.state_content_size_bytes

    @property
    def real_page_size_bytes(self) -> int:
        """Another name of that."""
        return self.unpadded_page_size_bytes

    @property
    def page_size_bytes(self) -> int:
        """Bytes of a block with what is left unused at its end."""
        used = self.unpadded_page_size_bytes
        if self.page_size_padded is None:
            return used
        assert self.page_size_padded >= used
        return self.page_size_padded


@dataclass(frozen=True, kw_only=True)
class FullAttentionSpec(AttentionSpec):
    """Every token keeps its slot. A window here is the layer's affair, not the cache's."""

    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    non_causal: bool = False

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Blocks for as many tokens as the model takes."""
        return cdiv(vllm_config.model_config.max_model_len, self.block_size) * self.page_size_bytes

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """All full attention, of whatever kind."""
        return all(isinstance(spec, FullAttentionSpec) for spec in kv_cache_specs.values())

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """The same slots; of windows and chunks there may be one."""
        assert all(type(spec) is type(specs[0]) for spec in specs), "layers of one KV cache group differ"
        windows = {spec.sliding_window for spec in specs} - {None}
        chunks = {spec.attention_chunk_size for spec in specs} - {None}
        if max(len(windows), len(chunks)) > 1:
            raise ValueError(f"layers of one KV cache group have the windows {windows} and the chunks {chunks}")
        merged = replace(
            specs[0],
            sliding_window=next(iter(windows), None),
            attention_chunk_size=next(iter(chunks), None),
            non_causal=any(spec.non_causal for spec in specs),
        )
        shared = [f.name for f in fields(cls) if f.name not in ("sliding_window", "attention_chunk_size", "non_causal")]
        assert all(getattr(spec, name) == getattr(merged, name) for spec in specs for name in shared), (
            "layers of one KV cache group differ"
        )
        return merged


@dataclass(frozen=True, kw_only=True)
class MLAAttentionSpec(FullAttentionSpec):
    """One latent per token instead of K and V."""

    cache_dtype_str: str | None = None
    alignment: int | None = None
    model_version: str | None = None
    cache_role: SparseCacheRole = SparseCacheRole.SPARSE
    is_index_group_leader: bool = False
    non_causal_multi_token_decode: bool = False
    head_size_v: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alignment is not None or self.cache_role is not SparseCacheRole.SPARSE:
            raise NotSimulated("sparse MLA caches are not simulated by the engine 'embedded'")


@dataclass(frozen=True, kw_only=True)
class SlidingWindowSpec(AttentionSpec):
    """Slots of tokens before the window are given back while the request runs."""

    sliding_window: int
    extra_retained_tokens: int = 0

    def max_admission_blocks_per_request(self, max_in_flight_tokens: int, max_model_len: int) -> int:
        """The window and what is computed at once, beginning anywhere in a block."""
        tokens = min(self.sliding_window - 1 + self.extra_retained_tokens + max_in_flight_tokens, max_model_len)
        return cdiv(tokens, self.block_size) + 1

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """That many blocks."""
        blocks = self.max_admission_blocks_per_request(
            vllm_config.max_in_flight_tokens, vllm_config.model_config.max_model_len
        )
        return blocks * self.page_size_bytes

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """All with the same window."""
        return all(
            isinstance(spec, SlidingWindowSpec) and spec.sliding_window == self.sliding_window
            for spec in kv_cache_specs.values()
        )
