"""Kinds of KV caches by name; all of them are names of vllm.v1.kv_cache_interface."""

from __future__ import annotations

from enum import Enum, IntEnum


class KVQuantMode(IntEnum):
    """How the content is quantised; only NONE is simulated."""

    __module__ = "vllm.v1.kv_cache_interface"

    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4
    NVFP4 = 5
    TURBOQUANT_K8V4 = 6
    TURBOQUANT_4BIT_NC = 7
    TURBOQUANT_K3V4_NC = 8
    TURBOQUANT_3BIT_NC = 9
    NVFP4_DS_MLA = 10
    ULTRAQUANT_4BIT = 11


class KVCacheSpecKind(str, Enum):
    """Names of specs in KV cache events."""

    __module__ = "vllm.v1.kv_cache_interface"

    FULL_ATTENTION = "full_attention"
    MLA_ATTENTION = "mla_attention"
    SLIDING_WINDOW = "sliding_window"
    SLIDING_WINDOW_MLA = "sliding_window_mla"
    MAMBA = "mamba"
    CHUNKED_LOCAL_ATTENTION = "chunked_local_attention"
    SINK_FULL_ATTENTION = "sink_full_attention"
    ENCODER_ONLY_ATTENTION = "encoder_only_attention"
    CROSS_ATTENTION = "cross_attention"
    UNKNOWN = "unknown"


class SparseCacheRole(str, Enum):
    """What a sparse MLA cache holds; only the default is simulated."""

    __module__ = "vllm.v1.kv_cache_interface"

    SPARSE = "sparse"
    INDEXER = "indexer"


class KVCacheGroupRole(str, Enum):
    """What a group is for; only the default is simulated."""

    __module__ = "vllm.v1.kv_cache_interface"

    DEFAULT = "default"
    HISPARSE_SOURCE = "hisparse_source"
    HISPARSE_INDEXER = "hisparse_indexer"
