"""What a KV cache looks like: a spec per layer, groups of layers with one block table, and where their bytes are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch

from vllm.utils.math_utils import cdiv
from vllm.v1._kinds import KVCacheGroupRole, KVCacheSpecKind, KVQuantMode, SparseCacheRole
from vllm.v1._specs import AttentionSpec, FullAttentionSpec, KVCacheSpec, MLAAttentionSpec, SlidingWindowSpec
from vllm.v1._specs_by_name import (
    ChunkedLocalAttentionSpec,
    CircularBufferSpec,
    CrossAttentionSpec,
    EncoderOnlyAttentionSpec,
    MambaSpec,
    SlidingWindowMLASpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

__all__ = ["KVCacheLayout", "KVQuantMode", "SparseCacheRole"]

_NAMES = {
    SlidingWindowMLASpec: KVCacheSpecKind.SLIDING_WINDOW_MLA,
    MLAAttentionSpec: KVCacheSpecKind.MLA_ATTENTION,
    FullAttentionSpec: KVCacheSpecKind.FULL_ATTENTION,
    ChunkedLocalAttentionSpec: KVCacheSpecKind.CHUNKED_LOCAL_ATTENTION,
    SlidingWindowSpec: KVCacheSpecKind.SLIDING_WINDOW,
    MambaSpec: KVCacheSpecKind.MAMBA,
    EncoderOnlyAttentionSpec: KVCacheSpecKind.ENCODER_ONLY_ATTENTION,
    CrossAttentionSpec: KVCacheSpecKind.CROSS_ATTENTION,
}
# Connectors pickle specs and show their names: these have their home here.
for _spec in (KVCacheSpec, AttentionSpec, CircularBufferSpec, *_NAMES):
    _spec.__module__ = __name__


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
    return next((kind for cls, kind in _NAMES.items() if isinstance(spec, cls)), KVCacheSpecKind.UNKNOWN)


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
