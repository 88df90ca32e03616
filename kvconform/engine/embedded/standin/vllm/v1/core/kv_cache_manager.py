"""Block tables of all requests in all KV cache groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core._hits import find_hit
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager, get_manager_for_kv_cache_spec
from vllm.v1.metrics.stats import PrefixCacheStats
from vllm.v1.request import Request, RequestStatus


@dataclass
class KVCacheBlocks:
    """Blocks per KV cache group."""

    blocks: tuple[Sequence[KVCacheBlock], ...]

    def __add__(self, other: KVCacheBlocks) -> KVCacheBlocks:
        """The blocks of both, group by group."""
        return KVCacheBlocks(tuple([*a, *b] for a, b in zip(self.blocks, other.blocks, strict=False)))

    def get_block_ids(
        self, allow_none: bool = False, *, group_ids: Sequence[int] | None = None
    ) -> tuple[list[int], ...] | None:
        """Their ids; None instead of empty lists only, if that is allowed."""
        groups = self.blocks if group_ids is None else tuple(self.blocks[group] for group in group_ids)
        if allow_none and not any(groups):
            return None
        return tuple([block.block_id for block in group] for group in groups)

    def get_unhashed_block_ids(self) -> list[int]:
        """The ids of those that are not in the prefix cache, of the only group."""
        (group,) = self.blocks
        return [block.block_id for block in group if block.block_hash is None]

    def get_unhashed_block_ids_all_groups(self) -> list[list[int]]:
        """The same for several groups, without null blocks."""
        return [[b.block_id for b in group if b.block_hash is None and not b.is_null] for group in self.blocks]

    def new_empty(self) -> KVCacheBlocks:
        """No blocks in as many groups."""
        return KVCacheBlocks(tuple(() for _ in self.blocks))


class KVCacheManager:
    """Gives blocks to requests and finds prefixes again.

    Without prefix caching no prefix is found. With several groups, hits end where all groups agree.
    """

    def __init__(
        self,
        kv_cache_config: Any,
        max_model_len: int,
        scheduler_block_size: int,
        hash_block_size: int,
        max_in_flight_tokens: int | None = None,
        enable_caching: bool = True,
        use_eagle: bool = False,
        num_prefill_lookahead: int = 0,
        log_stats: bool = False,
        enable_kv_cache_events: bool = False,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
        metrics_collector: Any = None,
        watermark: float = 0.0,
        enable_mamba_shared_prefix_checkpoint: bool = False,
    ) -> None:
        self.kv_cache_config = kv_cache_config
        self.max_model_len = max_model_len
        self.enable_caching = enable_caching
        self.log_stats = log_stats
        self.prefix_cache_stats = PrefixCacheStats() if log_stats else None
        self.block_pool = BlockPool(
            kv_cache_config.num_blocks, enable_caching, hash_block_size, enable_kv_cache_events, metrics_collector
        )
        self.num_kv_cache_groups = len(kv_cache_config.kv_cache_groups)
        self.watermark_blocks = int(watermark * kv_cache_config.num_blocks)
        self.empty_kv_cache_blocks = KVCacheBlocks(tuple(() for _ in range(self.num_kv_cache_groups)))
        self._alignment = scheduler_block_size
        self._retention: int | None = kv_cache_config.prefix_cache_retention_interval
        self._managers: list[SingleTypeKVCacheManager] = [
            get_manager_for_kv_cache_spec(
                group.kv_cache_spec,
                max_model_len if max_in_flight_tokens is None else max_in_flight_tokens,
                max_model_len,
                block_pool=self.block_pool,
                enable_caching=enable_caching,
                kv_cache_group_id=index,
                scheduler_block_size=scheduler_block_size,
            )
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
        ]

    # -- prefixes --------------------------------------------------------------------------------------------------

    def prefix_cache_lookup_enabled(self, request: Request) -> bool:
        """Whether a prefix of this request may be looked up."""
        return self.enable_caching and not request.skip_reading_prefix_cache

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """The longest cached prefix: its blocks, its tokens, and up to where a single group has more (0 for none).

        At least one token is left to be computed.
        """
        if not self.prefix_cache_lookup_enabled(request):
            return self.empty_kv_cache_blocks, 0, 0
        blocks, tokens, more = find_hit(
            self._managers, self.block_pool, request.block_hashes, request.num_tokens - 1, self._alignment
        )
        return self.create_kv_cache_blocks(blocks), tokens, tokens + more if more else 0

    def record_prefix_cache_stats(self, request: Request, num_hits: int) -> None:
        """Count a look-up that led to an admission."""
        if self.prefix_cache_stats is not None and self.prefix_cache_lookup_enabled(request):
            self.prefix_cache_stats.record(
                num_tokens=request.num_tokens, num_hits=num_hits, preempted=request.num_preemptions > 0
            )

    def make_prefix_cache_stats(self) -> PrefixCacheStats | None:
        """The counts since the last call."""
        stats = self.prefix_cache_stats
        if stats is not None:
            self.prefix_cache_stats = PrefixCacheStats()
        return stats

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Make the full blocks among the first tokens be found."""
        if not self.enable_caching:
            return
        if self.num_kv_cache_groups > 1:
            num_computed_tokens -= num_computed_tokens % self._alignment
        for manager in self._managers:
            manager.cache_blocks(
                request, num_computed_tokens, self._retention, replay_boundaries=(request.num_prompt_tokens - 1,)
            )

    def evict_blocks(self, block_ids: set[int]) -> None:
        """Let blocks not be found any more."""
        self.block_pool.evict_blocks(block_ids)

    def reset_prefix_cache(self) -> bool:
        """Forget all prefixes, unless blocks are in use."""
        if not self.block_pool.reset_prefix_cache():
            return False
        if self.prefix_cache_stats is not None:
            self.prefix_cache_stats.reset = True
        return True

    # -- tables ----------------------------------------------------------------------------------------------------

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        new_computed_blocks: KVCacheBlocks | None = None,
        num_lookahead_tokens: int = 0,
        num_external_computed_tokens: int = 0,
        delay_cache_blocks: bool = False,
        num_encoder_tokens: int = 0,
        full_sequence_must_fit: bool = False,
        reserved_blocks: int = 0,
        has_scheduled_reqs: bool = True,
        skip_zeroing_group_ids: tuple[int, ...] = (),
    ) -> KVCacheBlocks | None:
        """Blocks for a hit, for what the connector loads, and for tokens to be computed; None if there are too few.

        ``full_sequence_must_fit`` asks for the whole request, ``reserved_blocks`` are promised to others.
        """
        if not (num_new_tokens or num_external_computed_tokens or num_new_computed_tokens):
            raise ValueError("num_new_tokens must be greater than 0 when there are no computed tokens to adopt")
        hits = (self.empty_kv_cache_blocks if new_computed_blocks is None else new_computed_blocks).blocks
        local = request.num_computed_tokens + num_new_computed_tokens
        computed = min(local + num_external_computed_tokens, self.max_model_len)
        admitted = request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        spare = self.watermark_blocks if has_scheduled_reqs and admitted else 0
        free = self.block_pool.get_num_free_blocks
        if full_sequence_must_fit:
            everything = min(request.num_tokens, self.max_model_len)
            if self._missing(request, everything, hits, computed, local, capped=True) + spare > free():
                return None
        wanted = min(computed + num_new_tokens + num_lookahead_tokens, self.max_model_len)
        # What no step under way reads any more is given back first, even if that is not enough.
        self.remove_skipped_blocks(
            request.request_id, max(0, computed - request.num_in_flight_tokens), request.num_prompt_tokens
        )
        if self._missing(request, wanted, hits, computed, local) + spare > free() - reserved_blocks:
            return None
        if hits is not self.empty_kv_cache_blocks.blocks or num_external_computed_tokens > 0:
            self._adopt(request.request_id, hits, local, num_external_computed_tokens)
        new = tuple(
            manager.allocate_new_blocks(request.request_id, wanted, computed + num_new_tokens)
            for manager in self._managers
        )
        if not delay_cache_blocks:
            self.cache_blocks(request, min(computed + num_new_tokens, request.num_tokens))
        return self.create_kv_cache_blocks(new)

    def _missing(
        self, request: Request, tokens: int, hits: Any, computed: int, local: int, *, capped: bool = False
    ) -> int:
        return sum(
            manager.get_num_blocks_to_allocate(
                request.request_id, tokens, hits[index], computed, local, tokens, apply_admission_cap=capped
            )
            for index, manager in enumerate(self._managers)
        )

    def _adopt(self, request_id: str, hits: Any, local: int, external: int) -> None:
        if any(request_id in manager.num_cached_block for manager in self._managers):
            assert not any(hits), "a running request has no new hits"
            return
        # All groups hold their hits before any of them takes free blocks, which might be the hits of another one.
        for manager, blocks in zip(self._managers, hits, strict=True):
            manager.add_local_computed_blocks(request_id, blocks, local, external)
        if external > 0:
            for manager in self._managers:
                manager.allocate_external_computed_blocks(request_id, local, external)

    def _blocks_until_done(self, request: Request) -> int:
        """Blocks that a request still needs for all its tokens."""
        everything = min(request.num_tokens, self.max_model_len)
        done = request.num_computed_tokens
        return self._missing(request, everything, self.empty_kv_cache_blocks.blocks, done, done, capped=True)

    def free(self, request: Request) -> None:
        """Free a request's blocks, the last one first."""
        for manager in self._managers:
            manager.free(request.request_id)

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        """Forget a request; its blocks are the caller's to free, the last one first."""
        return [block for manager in self._managers for block in manager.pop_blocks_for_free(request.request_id)]

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Free what no later token will read."""
        for manager in self._managers:
            manager.remove_skipped_blocks(request_id, processed_computed_tokens, num_prompt_tokens)

    def get_blocks(self, request_id: str) -> KVCacheBlocks:
        """A request's blocks."""
        return self.create_kv_cache_blocks(
            tuple(manager.req_to_blocks.get(request_id) or [] for manager in self._managers)
        )

    def get_block_ids(self, request_id: str) -> tuple[list[int], ...]:
        """Their ids."""
        ids = self.get_blocks(request_id).get_block_ids()
        assert ids is not None
        return ids

    def get_block_ids_for_computed_tokens(self, request_id: str, num_computed_tokens: int) -> tuple[list[int], ...]:
        """The ids of those that hold computed tokens."""
        ids = self.get_block_ids(request_id)
        return tuple(
            table[: cdiv(num_computed_tokens, manager.block_size)]
            for manager, table in zip(self._managers, ids, strict=True)
        )

    def create_kv_cache_blocks(self, blocks: tuple[list[KVCacheBlock], ...]) -> KVCacheBlocks:
        """An object that holds them."""
        return KVCacheBlocks(blocks) if any(blocks) else self.empty_kv_cache_blocks

    def estimate_cached_tokens(self, request: Request) -> int:
        """Tokens of a request up to which all groups have cached blocks."""
        tables = self.get_blocks(request.request_id).blocks
        return min((max((b.block_hash_num_tokens or 0 for b in table), default=0) for table in tables), default=0)

    @property
    def usage(self) -> float:
        """The share of blocks in use."""
        return self.block_pool.get_usage()

    def take_events(self) -> list[Any]:
        """Events of the engine's own cache, of which there are none."""
        return self.block_pool.take_events()

    def new_step_starts(self) -> None:
        """A step begins."""
