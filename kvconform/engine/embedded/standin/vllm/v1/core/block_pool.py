"""All blocks of the KV cache, and which of them are found by their hash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.distributed.kv_events import MEDIUM_GPU
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    BlockHashWithGroupId,
    FreeKVCacheBlockQueue,
    KVCacheBlock,
    make_block_hash_with_group_id,
    resolve_block_hashes,
)


class BlockPool:
    """Blocks with reference counts; one without references stays cached until it is used for something else.

    Block 0 is the null block, which stands for what nobody will read.
    """

    def __init__(
        self,
        num_gpu_blocks: int,
        enable_caching: bool,
        hash_block_size: int,
        enable_kv_cache_events: bool = False,
        metrics_collector: Any = None,
        medium: str = MEDIUM_GPU,
    ) -> None:
        if enable_kv_cache_events:
            raise NotSimulated("KV cache events of the engine's own cache are not simulated by the engine 'embedded'")
        self.num_gpu_blocks = num_gpu_blocks
        self.medium = medium
        self.enable_caching = enable_caching
        self.hash_block_size = hash_block_size
        self.enable_kv_cache_events = enable_kv_cache_events
        self.metrics_collector = metrics_collector
        self.blocks = [KVCacheBlock(index, pool=self) for index in range(num_gpu_blocks)]
        self.free_block_queue = FreeKVCacheBlockQueue(self.blocks)
        self.null_block = self.free_block_queue.popleft()
        self.null_block.is_null = True
        # Key -> the blocks with that content, the one that was cached first in front. Duplicates stay what they are:
        # block tables only grow.
        self._cached: dict[BlockHashWithGroupId, dict[int, KVCacheBlock]] = {}
        # Keys of a block beyond its own: a prefix that ends inside of it.
        self._more_keys: dict[int, list[BlockHashWithGroupId]] = {}
        self._watchers: dict[int, Callable[[KVCacheBlock], None]] = {}

    # -- the prefix cache ------------------------------------------------------------------------------------------

    def get_cached_block(self, block_hash: BlockHash, kv_cache_group_ids: list[int]) -> list[KVCacheBlock] | None:
        """A block per group, or None if one of them is missing."""
        found = []
        for group in kv_cache_group_ids:
            same = self._cached.get(make_block_hash_with_group_id(block_hash, group))
            if not same:
                return None
            found.append(next(iter(same.values())))
        return found

    def cache_full_blocks(
        self,
        request: Any,
        blocks: list[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: list[bool] | None = None,
    ) -> None:
        """Make blocks of a request be found; those that the mask leaves out can never be part of a hit."""
        hashes = resolve_block_hashes(request.block_hashes, self.hash_block_size, block_size)
        for index in range(num_cached_blocks, num_full_blocks):
            block = blocks[index]
            if block.is_null or (block_mask is not None and not block_mask[index - num_cached_blocks]):
                continue
            tokens = (index + 1) * block_size
            if block.block_hash is not None:
                # So far it stood for a prefix that ends inside of it.
                assert (block.block_hash_num_tokens or tokens) < tokens, f"block {block.block_id} is cached already"
                self._forget(block)
            self._add(make_block_hash_with_group_id(hashes[index], kv_cache_group_id), block, tokens)

    def cache_partial_block(
        self,
        request: Any,
        block: KVCacheBlock,
        num_tokens: int,
        kv_cache_group_id: int,
        block_size: int,
        replace_existing_hashes: bool = False,
    ) -> BlockHashWithGroupId | None:
        """Make a block be found by a prefix that ends inside of it."""
        if block.is_null:
            return None
        key = make_block_hash_with_group_id(
            request.block_hashes[num_tokens // self.hash_block_size - 1], kv_cache_group_id
        )
        known = block.block_hash_num_tokens
        cached = block.block_id in self._cached.get(key, {})
        if replace_existing_hashes or (not cached and known is not None and known < num_tokens):
            self._forget(block)
        self._add(key, block, num_tokens)
        return key

    def _add(self, key: BlockHashWithGroupId, block: KVCacheBlock, tokens: int) -> None:
        same = self._cached.setdefault(key, {})
        if block.block_id in same:
            return
        if block.block_hash is None:
            block.set_block_hash(key, num_tokens=tokens)
        else:
            self._more_keys.setdefault(block.block_id, []).append(key)
        same[block.block_id] = block

    def _forget(self, block: KVCacheBlock) -> bool:
        keys = [] if block.block_hash is None else [block.block_hash]
        keys += self._more_keys.pop(block.block_id, [])
        for key in keys:
            same = self._cached.get(key, {})
            same.pop(block.block_id, None)
            if not same:
                self._cached.pop(key, None)
        block.reset_hash()
        return bool(keys)

    def evict_blocks(self, block_ids: set[int]) -> None:
        """Let blocks not be found any more; who holds them keeps them."""
        for block_id in block_ids:
            assert block_id < len(self.blocks), f"there is no block {block_id}, there are {len(self.blocks)}"
            self._forget(self.blocks[block_id])

    def reset_prefix_cache(self) -> bool:
        """Forget everything, unless somebody holds a block."""
        if self.get_num_free_blocks() != self.num_gpu_blocks - 1:
            return False
        self._cached.clear()
        self._more_keys.clear()
        self._reused([self.blocks[block_id] for block_id in list(self._watchers)])
        for block in self.blocks:
            block.reset_hash()
        return True

    # -- references ------------------------------------------------------------------------------------------------

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        """Blocks for new content; what was cached in them is gone."""
        if num_blocks > self.get_num_free_blocks():
            raise ValueError(f"Cannot get {num_blocks} free blocks from the pool")
        new = self.free_block_queue.popleft_n(num_blocks)
        self._reused(new)
        for block in new:
            if self.enable_caching:
                self._forget(block)
            assert block.ref_cnt == 0
            block.ref_cnt = 1
        return new

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        """One more holder for each."""
        for block in blocks:
            if block.ref_cnt == 0 and not block.is_null:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """One holder less for each. Of those that are free then, the cached ones are used again last, in this order."""
        useless: list[KVCacheBlock] = []
        cached: list[KVCacheBlock] = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0 and not block.is_null:
                (cached if self.enable_caching and block.block_hash is not None else useless).append(block)
        self.free_block_queue.prepend_n(useless)
        self.free_block_queue.append_n(cached)

    def unpin_blocks(self, blocks: Iterable[KVCacheBlock], on_reuse: Callable[[KVCacheBlock], None]) -> None:
        """One holder less for each, who still reads them until they are used again and who is told of that."""
        released = []
        for block in blocks:
            assert block.ref_cnt > 0
            block.ref_cnt -= 1
            self._watchers[block.block_id] = on_reuse
            if block.ref_cnt == 0:
                released.append(block)
        self.free_block_queue.append_n(released)

    def _reused(self, blocks: Iterable[KVCacheBlock]) -> None:
        for block in blocks:
            watcher = self._watchers.pop(block.block_id, None)
            if watcher is not None:
                watcher(block)

    def is_block_writable(self, block: KVCacheBlock) -> bool:
        """Whether nobody else can see it."""
        return not block.is_null and block.ref_cnt == 1 and block.block_hash is None

    def get_num_free_blocks(self) -> int:
        """Blocks without references."""
        return self.free_block_queue.num_free_blocks

    def get_usage(self) -> float:
        """The share of blocks with references."""
        usable = self.num_gpu_blocks - 1
        return 1.0 - self.get_num_free_blocks() / usable if usable else 0

    def take_events(self) -> list[Any]:
        """None: see the constructor."""
        return []
