"""What differs between the vLLM releases this connector runs on (0.29.0 to 0.33.0), in one place.

Most drift needs no code: hooks that the connector leaves to the base class are the base class's to keep right, such as
``get_finished`` and ``get_transfer_results`` (0.30.0), ``bind_kv_cache_manager`` (0.30.0), and the sleep hooks (0.33.0,
fine by default for a connector that holds tensors and no addresses).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes, resolve_none_hash_seed

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def disk_hit_source() -> Any:
    """The label under which vLLM counts hits of this store, or None before 0.32.0, where hits have no label.

    Source: vllm/v1/metrics/cache_hit_source.py, CacheHitSource, 0.32.0.
    """
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ImportError:
        return None
    return CacheHitSource.DISK


def host_hit_source() -> Any:
    """The same for a store in host memory."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ImportError:
        return None
    return CacheHitSource.HOST


def peer_hit_source() -> Any:
    """The same for the KV cache of another engine."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ImportError:
        return None
    return CacheHitSource.P2P


def block_granularity(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> tuple[int, int]:
    """Tokens per scheduler block and tokens per entry of ``Request.block_hashes``.

    vLLM is asked rather than imitated: with context parallelism one scheduler block spans a page on every rank, and
    which sizes count has changed between releases (vllm/v1/core/kv_cache_utils.py, resolve_kv_cache_block_sizes).
    ``KVCacheConfig.hash_block_size`` exists since 0.32.0 and is what the engine core hashes with.
    """
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    return block_size, getattr(kv_cache_config, "hash_block_size", None) or hash_block_size


def shared_hash_seed(algorithm: str) -> str | None:
    """The seed of the block hash chain, or None where every process draws its own.

    A seed that differs between two calls is drawn at random: vLLM does that for hashes that are not collision
    resistant unless PYTHONHASHSEED is set (vllm/v1/core/kv_cache_utils.py, resolve_none_hash_seed, 0.29.0).
    """
    hash_fn = get_hash_fn_by_name(algorithm)
    first, second = (resolve_none_hash_seed(hash_fn) for _ in range(2))
    return first if first == second else None
