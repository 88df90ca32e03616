"""Block tables of one KV cache group, and how a prefix is found again in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock, resolve_block_hashes
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec

# Blocks of a hit per group, and its tokens.
Hit = tuple[tuple[list[KVCacheBlock], ...], int]


class SingleTypeKVCacheManager:
    """What all kinds of attention have in common: every token keeps its slot."""

    def __init__(
        self,
        kv_cache_spec: Any,
        block_pool: BlockPool,
        enable_caching: bool,
        kv_cache_group_id: int,
        scheduler_block_size: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
        needs_kv_cache_zeroing: bool = False,
        max_admission_blocks_per_request: int | None = None,
    ) -> None:
        self.kv_cache_spec = kv_cache_spec
        self.block_pool = block_pool
        self.block_size: int = kv_cache_spec.block_size
        self.enable_caching = enable_caching
        self.kv_cache_group_id = kv_cache_group_id
        self.scheduler_block_size = scheduler_block_size
        self.cache_hit_alignment_tokens = scheduler_block_size
        self.max_admission_blocks_per_request = max_admission_blocks_per_request
        self.req_to_blocks: defaultdict[str, list[KVCacheBlock]] = defaultdict(list)
        # Blocks at the beginning of the table that are in the prefix cache or never will be. A request is in here from
        # its admission on, so that it tells admissions from later steps.
        self.num_cached_block: dict[str, int] = {}

    # -- how many blocks, and getting them ------------------------------------------------------------------------

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Free blocks that it takes until ``num_tokens`` have slots, hits that nobody else holds included."""
        needed = cdiv(num_tokens, self.block_size)
        if apply_admission_cap and self.max_admission_blocks_per_request is not None:
            needed = min(needed, self.max_admission_blocks_per_request)
        own = len(self.req_to_blocks.get(request_id, ()))
        if request_id in self.num_cached_block:
            assert not new_computed_blocks
            return max(needed - own, 0)
        skipped = self.get_num_skipped_tokens(total_computed_tokens) // self.block_size
        new = max(needed - max(skipped, own + len(new_computed_blocks)), 0)
        hits = new_computed_blocks[max(0, skipped - own) :]
        return new + sum(block.ref_cnt == 0 and not block.is_null for block in hits)

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """Begin a table with a hit; what no token will read any more is the null block."""
        table = self.req_to_blocks[request_id]
        assert not table, f"{request_id} has blocks already"
        skipped = self.get_num_skipped_tokens(num_local_computed_tokens + num_external_computed_tokens)
        nulls = skipped // self.block_size
        hits = new_computed_blocks[nulls:]
        if self.enable_caching:
            self.block_pool.touch(hits)
        table.extend([self.block_pool.null_block] * nulls)
        table.extend(hits)
        self.num_cached_block[request_id] = len(table)

    def allocate_external_computed_blocks(
        self,
        request_id: str,
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
        record_for_zeroing: bool = True,
    ) -> None:
        """Blocks for what the connector loads, as far as a token will read it."""
        total = num_local_computed_tokens + num_external_computed_tokens
        skipped = self.get_num_skipped_tokens(total)
        if min(total - skipped, num_external_computed_tokens) <= 0:
            return
        table = self.req_to_blocks[request_id]
        table.extend(self.block_pool.get_new_blocks(max(0, cdiv(total, self.block_size) - len(table))))

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """Blocks until ``num_tokens`` have slots."""
        table = self.req_to_blocks[request_id]
        missing = cdiv(num_tokens, self.block_size) - len(table)
        if missing <= 0:
            return []
        new = self.block_pool.get_new_blocks(missing)
        table.extend(new)
        return new

    # -- the prefix cache ------------------------------------------------------------------------------------------

    def cache_blocks(
        self,
        request: Any,
        num_tokens: int,
        retention_interval: int | None = None,
        *,
        replay_boundaries: Sequence[int],
    ) -> None:
        """Make the full blocks among the first ``num_tokens`` be found."""
        first, last = self.num_cached_block.get(request.request_id, 0), num_tokens // self.block_size
        if first >= last:
            return
        ends = [*replay_boundaries]
        if request.shared_prefix_boundary:
            ends.append(request.shared_prefix_boundary)
        self.block_pool.cache_full_blocks(
            request=request,
            blocks=self.req_to_blocks[request.request_id],
            num_cached_blocks=first,
            num_full_blocks=last,
            block_size=self.block_size,
            kv_cache_group_id=self.kv_cache_group_id,
            block_mask=self._worth_caching(first, last, retention_interval, ends),
        )
        self.num_cached_block[request.request_id] = last

    def _worth_caching(
        self, first: int, last: int, retention_interval: int | None, ends: Sequence[int]
    ) -> list[bool] | None:
        """Which of the blocks [first, last) may be part of a hit; None for all."""
        return None

    # -- giving back -----------------------------------------------------------------------------------------------

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Forget a request; its blocks are the caller's to free, the last one first."""
        self.num_cached_block.pop(request_id, None)
        return self.req_to_blocks.pop(request_id, [])

    def free(self, request_id: str) -> None:
        """Forget a request and free its blocks."""
        self.block_pool.free_blocks(reversed(self.pop_blocks_for_free(request_id)))

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Free what no later token will read; the null block takes its place in the table."""
        skipped = self.get_num_skipped_tokens(processed_computed_tokens)
        if skipped <= 0:
            return
        table = self.req_to_blocks[request_id]
        null, freed = self.block_pool.null_block, []
        for index in reversed(range(min(skipped // self.block_size, len(table)))):
            if table[index] is null:
                break
            freed.append(table[index])
            table[index] = null
        if freed:
            self.block_pool.free_blocks(freed)

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """How many of the first tokens the next one will not read."""
        return 0


class FullAttentionManager(SingleTypeKVCacheManager):
    """Every token reads all before it."""

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> Hit:
        """As many blocks from the beginning as are cached in all these groups."""
        size = kv_cache_spec.block_size
        hashes = resolve_block_hashes(block_hashes, block_pool.hash_block_size, size)
        hits: tuple[list[KVCacheBlock], ...] = tuple([] for _ in kv_cache_group_ids)
        for index in range(min(max_length // size, len(hashes))):
            found = block_pool.get_cached_block(hashes[index], kv_cache_group_ids)
            if found is None:
                break
            for blocks, block in zip(hits, found, strict=True):
                blocks.append(block)
        length = len(hits[0]) * size
        length -= length % alignment_tokens
        for blocks in hits:
            del blocks[cdiv(length, size) :]
        return hits, length

    def cache_blocks(
        self,
        request: Any,
        num_tokens: int,
        retention_interval: int | None = None,
        *,
        replay_boundaries: Sequence[int],
    ) -> None:
        """Where hashes are finer than blocks, also the block in which the last hash of the prompt ends."""
        super().cache_blocks(request, num_tokens, retention_interval, replay_boundaries=replay_boundaries)
        unit = self.block_pool.hash_block_size
        end = (request.num_prompt_tokens - 1) // unit * unit
        if self.block_size == unit or not 0 < end <= num_tokens or end % self.block_size == 0:
            return
        table = self.req_to_blocks[request.request_id]
        if end // self.block_size < len(table):
            self.block_pool.cache_partial_block(
                request=request,
                block=table[end // self.block_size],
                num_tokens=end,
                kv_cache_group_id=self.kv_cache_group_id,
                block_size=self.block_size,
            )


class SlidingWindowManager(SingleTypeKVCacheManager):
    """A token reads the last ``sliding_window`` ones, itself included."""

    def __init__(self, kv_cache_spec: SlidingWindowSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.sliding_window = kv_cache_spec.sliding_window

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> Hit:
        """The last run of cached blocks that covers a window, or else the blocks at the very beginning."""
        assert isinstance(kv_cache_spec, SlidingWindowSpec)
        size = kv_cache_spec.block_size
        hashes = resolve_block_hashes(block_hashes, block_pool.hash_block_size, size)
        window = cdiv(kv_cache_spec.sliding_window - 1, size)
        found: dict[int, list[KVCacheBlock]] = {}
        first = end = max_length // size
        index = end
        while index > 0:
            index -= 1
            blocks = block_pool.get_cached_block(hashes[index], kv_cache_group_ids)
            if blocks is None:
                found.clear()
                first = end = index
                continue
            if not found:
                if size != alignment_tokens and (index + 1) * size % alignment_tokens:
                    first = end = index
                    continue
                end = index + 1
            found[index] = blocks
            first = index
            if len(found) >= window:
                break
        if len(found) < window or not found:
            # Only a run from the first block on will do.
            end = len(found) if first == 0 else 0
            while size != alignment_tokens and end * size % alignment_tokens:
                end -= 1
        null = block_pool.null_block
        groups = range(len(kv_cache_group_ids))
        hit = tuple([found[i][group] if i in found else null for i in range(end)] for group in groups)
        return hit, end * size

    def _worth_caching(
        self, first: int, last: int, retention_interval: int | None, ends: Sequence[int]
    ) -> list[bool] | None:
        size, alignment = self.block_size, self.cache_hit_alignment_tokens
        if alignment % size:
            return None
        window = cdiv(self.sliding_window - 1, size)
        mask = [False] * (last - first)
        every = alignment if retention_interval is None else retention_interval
        if every:
            per_segment = every // size
            if window >= per_segment:
                return None
            mask = [index % per_segment >= per_segment - window for index in range(first, last)]
        if retention_interval is not None:
            for tokens in ends:
                end = tokens // alignment * alignment // size
                for index in range(max(first, end - window), min(last, end)):
                    mask[index - first] = True
        return mask

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Everything before the window of the next token."""
        return max(0, num_computed_tokens - self.sliding_window + 1)


def get_manager_for_kv_cache_spec(
    kv_cache_spec: Any, max_in_flight_tokens: int, max_model_len: int, role: Any = None, **kwargs: Any
) -> SingleTypeKVCacheManager:
    """The manager of a kind of attention."""
    if isinstance(kv_cache_spec, SlidingWindowSpec):
        cap = kv_cache_spec.max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return SlidingWindowManager(kv_cache_spec, max_admission_blocks_per_request=cap, **kwargs)
    if isinstance(kv_cache_spec, FullAttentionSpec):
        return FullAttentionManager(kv_cache_spec, **kwargs)
    raise NotSimulated(f"a KV cache of {type(kv_cache_spec).__name__} is not simulated by the engine 'embedded'")
