"""The longest prefix that is cached in all KV cache groups."""

from __future__ import annotations

from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, SingleTypeKVCacheManager


def find_hit(
    managers: list[SingleTypeKVCacheManager], pool: BlockPool, hashes: Any, limit: int, alignment: int
) -> tuple[tuple[list[KVCacheBlock], ...], int, int]:
    """Blocks per group, tokens of the hit, and how many tokens more the luckiest group alone has."""
    kinds = _kinds(managers)
    blocks: list[list[KVCacheBlock]] = [[] for _ in managers]
    lengths: dict[int, int] = {}
    agreed, longest = limit, 0
    while True:
        length = agreed
        for number, (finder, groups) in enumerate(kinds):
            full = issubclass(finder, FullAttentionManager)
            if full and number in lengths:
                # What is cached from the beginning on stays a hit when it is cut.
                length = min(length, lengths[number])
                continue
            hit, length = finder.find_longest_cache_hit(
                hashes, length, groups, pool, managers[groups[0]].kv_cache_spec, False, alignment
            )
            lengths[number] = length
            for group, found in zip(groups, hit, strict=True):
                blocks[group] = found
            longest = max(longest, length)
        done = length >= agreed
        agreed = length
        # Of full attention and one other kind, the other one has had the last word.
        if done or (len(kinds) == 2 and issubclass(kinds[0][0], FullAttentionManager)):
            break
    for finder, groups in kinds:
        if issubclass(finder, FullAttentionManager):
            for group in groups:
                del blocks[group][cdiv(agreed, managers[group].block_size) :]
    more = longest - agreed if len(managers) > 1 else 0
    return tuple(blocks), agreed, more


def _kinds(managers: list[SingleTypeKVCacheManager]) -> list[tuple[Any, list[int]]]:
    """Groups that are looked up together, full attention first."""
    kinds: list[tuple[Any, list[int]]] = []
    for index, manager in enumerate(managers):
        for finder, groups in kinds:
            if finder is type(manager) and managers[groups[0]].kv_cache_spec == manager.kv_cache_spec:
                groups.append(index)
                break
        else:
            kinds.append((type(manager), [index]))
    return sorted(kinds, key=lambda kind: not issubclass(kind[0], FullAttentionManager))
