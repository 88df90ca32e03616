"""The tensors of a worker."""

from __future__ import annotations

import torch

from vllm.v1._placement import views
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig, UniformTypeKVCacheSpecs
from vllm.v1.kv_cache_layout import KVCacheLayout


def allocate_kv_cache(
    kv_cache_config: KVCacheConfig,
    device: torch.device,
    layout: KVCacheLayout,
    kernel_block_sizes: list[int] | None = None,
) -> dict[str, torch.Tensor]:
    """One allocation of zeros, and a view of blocks, heads, slots and content per layer."""
    tensors = kv_cache_config.kv_cache_tensors
    if not tensors:
        return {}
    (size,) = {tensor.size for tensor in tensors}
    raw = torch.zeros(size, dtype=torch.int8, device=device)
    caches: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        index, group = next(
            (index, group)
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
            if tensor.layers[0] in group.layer_names
        )
        spec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = spec.kv_cache_specs[tensor.layers[0]]
        assert isinstance(spec, AttentionSpec)
        kernel = kernel_block_sizes[index] if kernel_block_sizes and index < len(kernel_block_sizes) else None
        made = views(raw, spec, kv_cache_config.num_blocks, layout, tensor, kernel)
        caches.update(zip(tensor.layers, made, strict=True))
    return caches
