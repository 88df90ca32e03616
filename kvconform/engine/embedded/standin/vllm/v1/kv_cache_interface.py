"""What a KV cache looks like: a spec per layer, groups of layers with one block table, and where their bytes are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import torch

from kvconform.engine.vllm_engine.guard import NotSimulated
from vllm.utils.math_utils import cdiv
from vllm.utils.torch_utils import get_dtype_size
from vllm.v1._kinds import KVCacheGroupRole, KVCacheSpecKind, KVQuantMode, SparseCacheRole


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


class MambaSpec(KVCacheSpec):
    """Recurrent state; known by name only, so that connectors can ask whether a layer is one."""


@dataclass(frozen=True)
class UniformTypeKVCacheSpecs(KVCacheSpec):
    """Layers that need the same slots and differ in their content: one block table, a spec per layer."""

    kv_cache_specs: dict[str, KVCacheSpec]

    def __post_init__(self) -> None:
        if self.kv_cache_specs:
            object.__setattr__(self, "dcp_sharded", self.first_spec.dcp_sharded)

    @property
    def first_spec(self) -> KVCacheSpec:
        """That of the first layer."""
        return next(iter(self.kv_cache_specs.values()))

    @property
    def page_size_bytes(self) -> int:
        """Bytes of a block of all layers."""
        return sum(spec.page_size_bytes for spec in self.kv_cache_specs.values())

    @property
    def prefix_cacheable(self) -> bool:
        """Whether those of all layers are."""
        return all(spec.prefix_cacheable for spec in self.kv_cache_specs.values())

    def max_memory_usage_pages(self, vllm_config: Any) -> int:
        """Blocks of the longest request."""
        return max(
            cdiv(spec.max_memory_usage_bytes(vllm_config), spec.page_size_bytes)
            for spec in self.kv_cache_specs.values()
        )

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Their bytes."""
        return self.max_memory_usage_pages(vllm_config) * self.page_size_bytes

    @classmethod
    def is_uniform_type(cls, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Whether the layers need the same slots."""
        specs = list(kv_cache_specs.values())
        if len({(spec.block_size, spec.dcp_sharded) for spec in specs}) > 1:
            return False
        return specs[0].is_uniform_with_collection(kv_cache_specs)

    @classmethod
    def from_specs(cls, kv_cache_specs: dict[str, KVCacheSpec]) -> Self | None:
        """One spec for them, if they do."""
        if not cls.is_uniform_type(kv_cache_specs):
            return None
        return cls(block_size=next(iter(kv_cache_specs.values())).block_size, kv_cache_specs=kv_cache_specs)

    def get_max_layers_per_page_size(self) -> int:
        """How many layers have pages of the most common size."""
        return max(Counter(spec.page_size_bytes for spec in self.kv_cache_specs.values()).values())


def iter_layer_specs(kv_cache_spec: KVCacheSpec) -> Collection[KVCacheSpec]:
    """The specs of a group's layers."""
    if isinstance(kv_cache_spec, UniformTypeKVCacheSpecs):
        return kv_cache_spec.kv_cache_specs.values()
    return (kv_cache_spec,)


def is_full_attention_spec(kv_cache_spec: KVCacheSpec) -> bool:
    """Whether all layers of a group have full attention."""
    specs = iter_layer_specs(kv_cache_spec)
    return bool(specs) and all(isinstance(spec, FullAttentionSpec) for spec in specs)


def get_kv_cache_spec_kind(kv_cache_spec: KVCacheSpec) -> KVCacheSpecKind:
    """The name of a spec in events."""
    kinds = {_kind(spec) for spec in iter_layer_specs(kv_cache_spec)}
    if len(kinds) == 1:
        return kinds.pop()
    return KVCacheSpecKind.FULL_ATTENTION if is_full_attention_spec(kv_cache_spec) else KVCacheSpecKind.UNKNOWN


def _kind(spec: KVCacheSpec) -> KVCacheSpecKind:
    if isinstance(spec, MLAAttentionSpec):
        return KVCacheSpecKind.MLA_ATTENTION
    if isinstance(spec, FullAttentionSpec):
        return KVCacheSpecKind.FULL_ATTENTION
    return KVCacheSpecKind.SLIDING_WINDOW if isinstance(spec, SlidingWindowSpec) else KVCacheSpecKind.UNKNOWN


def get_kv_cache_spec_sliding_window(kv_cache_spec: KVCacheSpec) -> int | None:
    """The window of a group."""
    windows = {spec.sliding_window for spec in iter_layer_specs(kv_cache_spec) if isinstance(spec, SlidingWindowSpec)}
    return windows.pop() if len(windows) == 1 else None


def group_kernel_blocks(cache: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A view whose first dimension counts blocks, not the parts that kernels see."""
    return cache if cache.shape[0] == num_blocks else cache.unflatten(0, (num_blocks, -1))


@dataclass
class KVCacheTensor:
    """Where layers of one shape are in the one allocation: l * layer_stride + b * block_stride behind offset."""

    size: int
    layers: list[str]
    layer_stride: int
    block_stride: int
    offset: int = 0
    host_resident: bool = False


@dataclass
class KVCacheGroupSpec:
    """Layers with one block table."""

    layer_names: list[str]
    kv_cache_spec: KVCacheSpec
    is_eagle_group: bool = False
    host_resident: bool = False
    enable_kv_transfer: bool = True
    role: KVCacheGroupRole = KVCacheGroupRole.DEFAULT


@dataclass
class KVCacheConfig:
    """The whole cache of a worker."""

    num_blocks: int
    kv_cache_tensors: list[KVCacheTensor]
    kv_cache_groups: list[KVCacheGroupSpec]
    prefix_cache_retention_interval: int | None = None
    kv_cache_layout: str | None = None
    hash_block_size: int | None = None
    cache_hit_alignment_tokens: int | None = None
    hisparse_host_num_blocks: int | None = None
    hisparse_host_block_stride: int | None = None
    hisparse_shared_host_pool: bool = False
    kv_tp_replicas: int = 1

    @cached_property
    def transfer_group_ids(self) -> tuple[int, ...]:
        """Groups that connectors move."""
        return tuple(index for index, group in enumerate(self.kv_cache_groups) if group.enable_kv_transfer)

    @cached_property
    def transfer_groups(self) -> tuple[KVCacheGroupSpec, ...]:
        """The same as objects."""
        return tuple(self.kv_cache_groups[index] for index in self.transfer_group_ids)

    @cached_property
    def prefix_cacheable_group_ids(self) -> tuple[int, ...]:
        """Those of them whose blocks can be found by a prefix."""
        groups = self.kv_cache_groups
        return tuple(index for index in self.transfer_group_ids if groups[index].kv_cache_spec.prefix_cacheable)

    @cached_property
    def prefix_cacheable_groups(self) -> tuple[KVCacheGroupSpec, ...]:
        """The same as objects."""
        return tuple(self.kv_cache_groups[index] for index in self.prefix_cacheable_group_ids)

    @cached_property
    def transfer_group_index_by_layer(self) -> dict[str, int]:
        """Which of the groups that connectors move a layer is in."""
        return {name: index for index, group in enumerate(self.transfer_groups) for name in group.layer_names}

    def select_transfer_block_ids(self, block_ids: Sequence[list[int]]) -> tuple[list[int], ...]:
        """Of block ids per group, those of groups that connectors move."""
        if len(block_ids) != len(self.kv_cache_groups):
            raise ValueError(f"Expected {len(self.kv_cache_groups)} KV cache groups, got {len(block_ids)}.")
        return tuple(block_ids[index] for index in self.transfer_group_ids)

    @property
    def host_group_ids(self) -> tuple[int, ...]:
        """Groups in host memory."""
        return tuple(index for index, group in enumerate(self.kv_cache_groups) if group.host_resident)

    def num_blocks_of(self, tensor: KVCacheTensor) -> int:
        """Blocks of a tensor."""
        return self.num_blocks

    @property
    def has_mamba_layers(self) -> bool:
        """Whether there is recurrent state."""
        return any(
            isinstance(s, MambaSpec) for group in self.kv_cache_groups for s in iter_layer_specs(group.kv_cache_spec)
        )

    @property
    def has_mixed_precision_kv_cache(self) -> bool:
        """Whether layers differ in how they store numbers."""
        specs = [spec for group in self.kv_cache_groups for spec in iter_layer_specs(group.kv_cache_spec)]
        return len({(spec.dtype, spec.kv_quant_mode) for spec in specs if isinstance(spec, AttentionSpec)}) > 1

    @property
    def needs_kv_cache_zeroing(self) -> bool:
        """Whether workers have to zero new blocks."""
        return self.has_mamba_layers or self.has_mixed_precision_kv_cache
