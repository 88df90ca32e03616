"""Which layers share a block table, and where their bytes are."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.utils.math_utils import cdiv
from vllm.v1._placement import strides
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
    iter_layer_specs,
)

Specs = dict[str, KVCacheSpec]


def get_kv_cache_configs(vllm_config: Any, kv_cache_specs: list[Specs], available_memory: list[int]) -> list[Any]:
    """A plan per worker; the length of the model shrinks to what the cache can hold if nobody has fixed it."""
    (specs,), (memory,) = kv_cache_specs, available_memory
    groups = get_kv_cache_groups(vllm_config, dict(specs))
    per_block = _bytes_per_block(groups)
    override = vllm_config.cache_config.num_gpu_blocks_override
    if override is not None:
        memory = override * per_block
    # One block is the null block.
    usable = memory // per_block - 1
    model = vllm_config.model_config
    if model.original_max_model_len == -1:
        model.max_model_len = _longest(vllm_config, groups, usable)
    if _blocks_for_one(vllm_config, groups) > usable:
        raise ValueError(f"a request of {model.max_model_len} tokens does not fit into {usable} blocks")
    return [get_kv_cache_config_from_groups(vllm_config, groups, memory)]


def _longest(vllm_config: Any, groups: list[KVCacheGroupSpec], usable: int) -> int:
    model = vllm_config.model_config
    fits, too_long = 0, model.max_model_len + 1
    while too_long - fits > 1:
        model.max_model_len = (fits + too_long) // 2
        if _blocks_for_one(vllm_config, groups) <= usable:
            fits = model.max_model_len
        else:
            too_long = model.max_model_len
    if not fits:
        raise ValueError("Cannot auto-fit max_model_len: not enough memory for a single token.")
    return fits


def _blocks_for_one(vllm_config: Any, groups: list[KVCacheGroupSpec]) -> int:
    """Blocks of the longest request."""
    total = 0
    for group in groups:
        spec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            total += spec.max_memory_usage_pages(vllm_config)
        else:
            total += cdiv(spec.max_memory_usage_bytes(vllm_config), spec.page_size_bytes)
    return total


# -- groups ------------------------------------------------------------------------------------------------------------


def get_kv_cache_groups(vllm_config: Any, kv_cache_spec: Specs) -> list[KVCacheGroupSpec]:
    """Layers that share a block table."""
    specs = kv_cache_spec
    if vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        specs = _without_windows(specs)
    merged = _merged(list(specs.values()))
    if merged is not None:
        return [KVCacheGroupSpec(list(specs), merged)]
    uniform = UniformTypeKVCacheSpecs.from_specs(specs)
    if uniform is not None:
        return [KVCacheGroupSpec(list(specs), uniform)]
    layout = vllm_config.cache_config.get_resolved_kv_cache_layout()
    if layout.is_block_outermost and len({spec.page_size_bytes for spec in specs.values()}) > 1:
        raise NotSimulated(
            "groups of layers with pages of different sizes, packed block by block, are not simulated by the engine "
            "'embedded'"
        )
    return _equal_groups(_equal_pages(specs))


def _merged(specs: list[KVCacheSpec]) -> KVCacheSpec | None:
    try:
        return type(specs[0]).merge(specs)
    except AssertionError:
        return None


def _without_windows(specs: Specs) -> Specs:
    """Without the hybrid manager, layers with a window keep all slots, as those without do."""
    if _merged(list(specs.values())) is not None or UniformTypeKVCacheSpecs.is_uniform_type(specs):
        return specs
    full = [spec for spec in specs.values() if isinstance(spec, FullAttentionSpec)]
    sizes = {spec.block_size for spec in full}
    size = sizes.pop() if len(sizes) == 1 else None
    promoted = dict(specs)
    for name, spec in specs.items():
        if full and isinstance(spec, SlidingWindowSpec):
            promoted[name] = _promoted(spec, size or spec.block_size)
    if _merged(list(promoted.values())) is None and not UniformTypeKVCacheSpecs.is_uniform_type(promoted):
        raise ValueError("Failed to promote local KV cache specs to one unified type.")
    return promoted


def _promoted(spec: SlidingWindowSpec, block_size: int) -> FullAttentionSpec:
    padded = spec.page_size_padded
    if padded is not None:
        padded = max(padded, spec.unpadded_page_size_bytes * block_size // spec.block_size)
    return FullAttentionSpec(
        block_size=block_size,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        head_size_v=spec.head_size_v,
        dtype=spec.dtype,
        kv_quant_mode=spec.kv_quant_mode,
        page_size_padded=padded,
        sliding_window=spec.sliding_window,
    )


def _equal_pages(specs: Specs) -> Specs:
    """Pages of one size: smaller ones get more tokens, or are padded where that does not come out even."""
    largest = max(spec.page_size_bytes for spec in specs.values())
    equal: Specs = {}
    for name, spec in specs.items():
        page = spec.page_size_bytes
        if page == largest:
            equal[name] = spec
        elif largest % page == 0:
            equal[name] = replace(spec, block_size=spec.block_size * (largest // page))
        elif isinstance(spec, AttentionSpec) and not isinstance(spec, MLAAttentionSpec):
            equal[name] = replace(spec, page_size_padded=largest)
        else:
            raise NotSimulated(f"pages of {page} and {largest} bytes cannot be unified by the engine 'embedded'")
        assert equal[name].page_size_bytes == largest
    return equal


def _equal_groups(specs: Specs) -> list[KVCacheGroupSpec]:
    """Groups with the same number of layers, so that one block of any of them has the same bytes."""
    kinds: list[tuple[list[KVCacheSpec], list[str]]] = []
    by_spec: defaultdict[KVCacheSpec, list[str]] = defaultdict(list)
    for name, spec in specs.items():
        by_spec[spec].append(name)
    for spec, names in by_spec.items():
        for known, layers in kinds:
            try:
                type(known[0]).merge([*known, spec])
            except (AssertionError, ValueError):
                continue
            known.append(spec)
            layers.extend(names)
            break
        else:
            kinds.append(([spec], list(names)))
    counts = [len(layers) for _, layers in kinds]
    size = max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
    groups = []
    for _, layers in kinds:
        number = cdiv(len(layers), size)
        for first in range(number):
            names = layers[first::number]
            merged = _merged([specs[name] for name in names])
            assert merged is not None
            groups.append(KVCacheGroupSpec(names, merged))
    return groups


# -- bytes -------------------------------------------------------------------------------------------------------------


def _specs_of(group: KVCacheGroupSpec) -> dict[KVCacheSpec, list[str]]:
    """Spec -> layers."""
    spec = group.kv_cache_spec
    if not isinstance(spec, UniformTypeKVCacheSpecs):
        return {spec: list(group.layer_names)} if group.layer_names else {}
    layers: defaultdict[KVCacheSpec, list[str]] = defaultdict(list)
    for name, own in spec.kv_cache_specs.items():
        layers[own].append(name)
    return layers


def _bytes_per_block(groups: list[KVCacheGroupSpec]) -> int:
    """Groups share the blocks, so that the largest one counts."""
    return max(sum(spec.page_size_bytes * len(layers) for spec, layers in _specs_of(group).items()) for group in groups)


def get_kv_cache_config_from_groups(
    vllm_config: Any, kv_cache_groups: list[KVCacheGroupSpec], available_memory: int
) -> KVCacheConfig:
    """A plan for groups that are decided on: all of them begin at byte 0."""
    cache_config = vllm_config.cache_config
    layout = cache_config.get_resolved_kv_cache_layout()
    pages = {spec.page_size_bytes for group in kv_cache_groups for spec in iter_layer_specs(group.kv_cache_spec)}
    if len(pages) > 1 and (not layout.is_block_compact or (len(kv_cache_groups) > 1 and layout.is_layer_compact)):
        raise ValueError(f"KV cache layout {layout.name} cannot express this model's mixed page sizes {sorted(pages)}.")
    per_block = _bytes_per_block(kv_cache_groups)
    override = cache_config.num_gpu_blocks_override
    num_blocks = available_memory // per_block if override is None else override
    tensors = []
    for group in kv_cache_groups:
        offset = 0
        for spec, layers in _specs_of(group).items():
            assert isinstance(spec, AttentionSpec)
            layer_stride, block_stride, *_ = strides(
                spec, num_blocks, len(layers), layout, block_stride=per_block if layout.is_block_outermost else None
            )
            tensors.append(KVCacheTensor(per_block * num_blocks, layers, layer_stride, block_stride, offset))
            offset += len(layers) * (spec.page_size_bytes if layout.is_block_outermost else layer_stride)
    return KVCacheConfig(num_blocks, tensors, kv_cache_groups, cache_config.prefix_cache_retention_interval)


def generate_scheduler_kv_cache_config(kv_cache_configs: list[KVCacheConfig]) -> KVCacheConfig:
    """The scheduler's copy, in which a group has the spec of its first layer."""
    config = copy.deepcopy(kv_cache_configs[0])
    for group in config.kv_cache_groups:
        if isinstance(group.kv_cache_spec, UniformTypeKVCacheSpecs):
            group.kv_cache_spec = group.kv_cache_spec.first_spec
    return config
