"""Turning a :class:`~kvconform.kvcache.shape.KVCacheShape` into vLLM's own specs, configs and tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kvconform.engine import compat
from kvconform.kvcache.shape import KVCacheShape, LayerShape

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheSpec

# Extra bytes behind the last view of the backing allocation. vLLM itself pads there on ROCm
# (vllm/v1/worker/utils.py, allocate_kv_cache, 0.32.0), so a connector has to tolerate a tail.
GUARD_BYTES = 4096


@dataclass(frozen=True)
class KVCacheConfigs:
    """The worker's and the scheduler's view of one KV cache; the scheduler's is vLLM's own deep copy."""

    worker: KVCacheConfig
    scheduler: KVCacheConfig


def torch_dtype(name: str) -> torch.dtype:
    """``"float16"`` -> ``torch.float16``."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def layer_spec(layer: LayerShape) -> KVCacheSpec:
    """vLLM's spec of one layer shape (vllm/v1/kv_cache_interface.py; keyword construction works on every release)."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec

    padded = layer.page_bytes + layer.page_padding if layer.page_padding else None
    if layer.kind == "recurrent":
        from vllm.v1.kv_cache_interface import MambaSpec

        # As of models with prefix caching (MambaModelConfig, vllm/model_executor/models/config.py, 0.32.0).
        return MambaSpec(
            block_size=layer.block_size,
            shapes=tuple(shape for shape, _ in layer.states),
            dtypes=tuple(torch_dtype(dtype) for _, dtype in layer.states),
            page_size_padded=padded,
            mamba_cache_mode="align",
        )
    if layer.kind == "mla":
        return MLAAttentionSpec(
            block_size=layer.block_size,
            num_kv_heads=1,
            head_size=layer.head_size,
            dtype=torch_dtype(layer.dtype),
            page_size_padded=padded,
        )
    if layer.kind == "sliding_window":
        assert layer.sliding_window is not None
        return SlidingWindowSpec(
            block_size=layer.block_size,
            num_kv_heads=layer.num_kv_heads,
            head_size=layer.head_size,
            head_size_v=layer.head_size_v,
            dtype=torch_dtype(layer.dtype),
            page_size_padded=padded,
            sliding_window=layer.sliding_window,
        )
    return FullAttentionSpec(
        block_size=layer.block_size,
        num_kv_heads=layer.num_kv_heads,
        head_size=layer.head_size,
        head_size_v=layer.head_size_v,
        dtype=torch_dtype(layer.dtype),
        page_size_padded=padded,
    )


def layer_specs(shape: KVCacheShape) -> dict[str, KVCacheSpec]:
    """Layer name -> spec, in model order; layer kinds alternate as hybrid models have them."""
    remaining = [layer.count for layer in shape.layers]
    specs: dict[str, KVCacheSpec] = {}
    while any(remaining):
        for kind, layer in enumerate(shape.layers):
            if remaining[kind]:
                remaining[kind] -= 1
                own = "mixer" if layer.kind == "recurrent" else "self_attn.attn"
                specs[f"model.layers.{len(specs)}.{own}"] = layer_spec(layer)
    return specs


def resolve_layout(vllm_config: VllmConfig, layout: str, specs: Iterable[KVCacheSpec]) -> str:
    """Resolve the layout as the engine core does, with ``layout`` as the only one the backends support.

    vLLM drops a connector's preference that no backend supports with a warning
    (vllm/v1/attention/backends/utils.py, resolve_kv_cache_layout, 0.29.0 on).
    """
    from vllm.v1.attention.backends.utils import resolve_kv_cache_layout

    return resolve_kv_cache_layout(vllm_config, [[layout]], list(specs)).name


def plan_kv_cache(vllm_config: VllmConfig, shape: KVCacheShape) -> KVCacheConfigs:
    """vLLM's own plan of groups, tensors and granularity for ``shape``; see :func:`plan_specs`."""
    return plan_specs(vllm_config, layer_specs(shape), shape.layout, shape.num_blocks)


def plan_specs(vllm_config: VllmConfig, specs: dict[str, KVCacheSpec], layout: str, num_blocks: int) -> KVCacheConfigs:
    """vLLM's own plan for layer name -> spec (EngineCore._initialize_kv_caches).

    Side effects on ``vllm_config`` are those of the engine core: layout, block counts, block size, and a model length
    that one request can have in this cache.
    """
    resolve_layout(vllm_config, layout, specs.values())
    vllm_config.cache_config.num_gpu_blocks_override = num_blocks
    # As with --max-model-len -1: several groups share the blocks, so that a request may only be a part as long.
    vllm_config.model_config.original_max_model_len = -1
    (worker,) = compat.get_kv_cache_configs(vllm_config, [specs], [1 << 40])
    vllm_config.scheduler_config.max_model_len = vllm_config.model_config.max_model_len
    return _complete(vllm_config, worker)


def plan_groups(
    vllm_config: VllmConfig, groups: list[KVCacheGroupSpec], layout: str, num_blocks: int
) -> KVCacheConfigs:
    """vLLM's own placement of tensors for groups that the caller chose; otherwise as :func:`plan_specs`.

    The length of the model is left as it is.
    """
    resolve_layout(vllm_config, layout, [spec for group in groups for spec in specs_of(group).values()])
    vllm_config.cache_config.num_gpu_blocks_override = num_blocks
    return _complete(vllm_config, compat.get_kv_cache_config_from_groups(vllm_config, groups, 1 << 40))


def specs_of(group: KVCacheGroupSpec) -> dict[str, KVCacheSpec]:
    """Layer name -> spec of the layer itself: layers of a UniformTypeKVCacheSpecs group have specs of their own."""
    own: dict[str, KVCacheSpec] | None = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return {name: group.kv_cache_spec if own is None else own[name] for name in group.layer_names}


def latent_layers(config: KVCacheConfig) -> frozenset[str]:
    """Names of the layers that keep one latent for each token (MLA)."""
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    return frozenset(
        name
        for group in config.kv_cache_groups
        for name, spec in specs_of(group).items()
        if isinstance(spec, MLAAttentionSpec)
    )


def _complete(vllm_config: VllmConfig, worker: KVCacheConfig) -> KVCacheConfigs:
    """What the engine core adds to a plan: the layout, the scheduler's copy, block size and granularity."""
    from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config

    cache_config = vllm_config.cache_config
    worker.kv_cache_layout = cache_config.kv_cache_layout
    scheduler = generate_scheduler_kv_cache_config([worker])
    if scheduler is worker:
        scheduler = copy.deepcopy(worker)
    cache_config.num_gpu_blocks = scheduler.num_blocks
    cache_config.block_size = min(group.kv_cache_spec.block_size for group in scheduler.kv_cache_groups)
    compat.fill_resolved_granularity(vllm_config, [worker], scheduler)
    return KVCacheConfigs(worker=worker, scheduler=scheduler)


def allocate(
    vllm_config: VllmConfig, config: KVCacheConfig, shape: KVCacheShape, device: torch.device
) -> dict[str, torch.Tensor]:
    """vLLM's own tensors, layer name -> [B, H, N, C] view, all in one int8 allocation with a guarded tail."""
    from vllm.v1.worker.utils import allocate_kv_cache

    guarded = copy.deepcopy(config)
    for tensor in guarded.kv_cache_tensors:
        tensor.size += GUARD_BYTES
    kernel = None if shape.kernel_block_size is None else [shape.kernel_block_size] * len(config.kv_cache_groups)
    return allocate_kv_cache(guarded, device, vllm_config.cache_config.get_resolved_kv_cache_layout(), kernel)
