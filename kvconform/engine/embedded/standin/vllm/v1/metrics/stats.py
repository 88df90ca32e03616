"""Numbers that leave the scheduler, as far as connectors have to do with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.v1.metrics.cache_hit_source import CacheHitSource


@dataclass
class BaseCacheStats:
    """Look-ups in a cache."""

    reset: bool = False
    requests: int = 0
    queries: int = 0
    hits: int = 0


@dataclass
class PrefixCacheStats(BaseCacheStats):
    """Look-ups of prefixes; those of requests that had been preempted count apart."""

    preempted_requests: int = 0
    preempted_queries: int = 0
    preempted_hits: int = 0
    hits_by_source: dict[CacheHitSource, int] = field(default_factory=dict)

    def record(
        self,
        num_tokens: int,
        num_hits: int,
        preempted: bool,
        hits_by_source: dict[CacheHitSource, int] | None = None,
    ) -> None:
        """Count one."""
        if preempted:
            self.preempted_requests += 1
            self.preempted_queries += num_tokens
            self.preempted_hits += num_hits
            return
        self.requests += 1
        self.queries += num_tokens
        self.hits += num_hits
        if hits_by_source is not None:
            if sum(hits_by_source.values()) != num_hits:
                hits_by_source = {CacheHitSource.EXTERNAL_UNSPECIFIED: num_hits}
            for source, hits in hits_by_source.items():
                if hits:
                    self.hits_by_source[source] = self.hits_by_source.get(source, 0) + hits


@dataclass
class PrefillStats:
    """What a prompt took."""

    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_local_cached_tokens: int = 0
    num_external_cached_tokens: int = 0
    num_cache_creation_tokens: int = 0

    def set(self, num_prompt_tokens: int, num_local_cached_tokens: int, num_external_cached_tokens: int) -> None:
        """At admission."""
        cached = num_local_cached_tokens + num_external_cached_tokens
        assert cached <= num_prompt_tokens, f"{cached} cached tokens of {num_prompt_tokens}"
        self.num_prompt_tokens = num_prompt_tokens
        self.num_computed_tokens = num_prompt_tokens - cached
        self.num_cached_tokens = cached
        self.num_local_cached_tokens = num_local_cached_tokens
        self.num_external_cached_tokens = num_external_cached_tokens

    def finalize(self, num_cached_tokens: int) -> None:
        """With the first token."""
        created = min(num_cached_tokens, self.num_prompt_tokens) - self.num_cached_tokens
        self.num_cache_creation_tokens = max(0, created)


@dataclass
class SchedulerStats:
    """What goes to the front-end with a step's results."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_skipped_waiting_reqs: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_stats: PrefixCacheStats = field(default_factory=PrefixCacheStats)
    connector_prefix_cache_stats: PrefixCacheStats | None = None
    kv_connector_stats: dict[str, Any] | None = None
