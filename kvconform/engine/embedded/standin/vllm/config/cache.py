"""The KV cache's configuration."""

from __future__ import annotations

from vllm.config._tables import fields_of
from vllm.v1.kv_cache_layout import KVCacheLayout, _layout_from_name


class CacheConfig(fields_of("CacheConfig")):  # type: ignore[misc]
    """Block size, layout, hash algorithm and the like."""

    def get_resolved_kv_cache_layout(self) -> KVCacheLayout:
        """The layout, once it is decided on."""
        if self.kv_cache_layout is None:
            raise ValueError("KV cache layout has not been resolved yet; the engine core does that at start-up.")
        return _layout_from_name(self.kv_cache_layout)
