"""Blocks, the queue of free ones, and block hashes."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NewType, TypeAlias

import torch

import vllm.envs as envs
from vllm.utils.hashing import xxhash, xxhash_cbor
from vllm.v1.core._planning import (
    generate_scheduler_kv_cache_config,
    get_kv_cache_config_from_groups,
    get_kv_cache_configs,
    get_kv_cache_groups,
)

__all__ = [
    "generate_scheduler_kv_cache_config",
    "get_kv_cache_config_from_groups",
    "get_kv_cache_configs",
    "get_kv_cache_groups",
]

BlockHash = NewType("BlockHash", bytes)
# The hash of a block followed by its KV cache group in four bytes.
BlockHashWithGroupId = NewType("BlockHashWithGroupId", bytes)
ExternalBlockHash: TypeAlias = bytes | int

DEFAULT_NONE_HASH_SEED = "vllm-none-hash"
NONE_HASH: BlockHash
_WEAK_HASHES = frozenset({xxhash, xxhash_cbor})
_seed_in_use: str | None = None


def make_block_hash_with_group_id(block_hash: BlockHash, group_id: int) -> BlockHashWithGroupId:
    """One key for the prefix cache of all groups."""
    return BlockHashWithGroupId(block_hash + group_id.to_bytes(4, "big"))


def get_block_hash(key: BlockHashWithGroupId) -> BlockHash:
    """The first part of such a key."""
    return BlockHash(key[:-4])


def get_group_id(key: BlockHashWithGroupId) -> int:
    """The second part of such a key."""
    return int.from_bytes(key[-4:], "big")


def maybe_convert_block_hash(hash_bytes: BlockHash) -> ExternalBlockHash:
    """Bytes, or their low 64 bits as a number where VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES is set."""
    if envs.VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES:
        return int.from_bytes(hash_bytes[-8:], "big")
    return hash_bytes


def resolve_none_hash_seed(hash_fn: Callable[[Any], bytes]) -> str:
    """PYTHONHASHSEED, else a constant for cryptographic hashes and something random for others."""
    given = os.environ.get("PYTHONHASHSEED")
    if given is None:
        return os.urandom(32).hex() if hash_fn in _WEAK_HASHES else DEFAULT_NONE_HASH_SEED
    return given


def get_none_hash_seed() -> str:
    """What the chain of block hashes begins with in this process."""
    return DEFAULT_NONE_HASH_SEED if _seed_in_use is None else _seed_in_use


def init_none_hash(hash_fn: Callable[[Any], bytes]) -> None:
    """Fix the beginning of the chain for this process."""
    global NONE_HASH, _seed_in_use
    _seed_in_use = resolve_none_hash_seed(hash_fn)
    NONE_HASH = BlockHash(hash_fn(_seed_in_use))


@dataclass(slots=True)
class KVCacheBlock:
    """One block: how many tables it is in, and under which key it is cached."""

    block_id: int
    ref_cnt: int = 0
    pool: Any = field(default=None, repr=False, compare=False, kw_only=True)
    _block_hash: BlockHashWithGroupId | None = None
    _block_hash_num_tokens: int | None = None
    prev_free_block: KVCacheBlock | None = None
    next_free_block: KVCacheBlock | None = None
    is_null: bool = False

    @property
    def block_hash(self) -> BlockHashWithGroupId | None:
        """The key, once the block is cached."""
        return self._block_hash

    @property
    def block_hash_num_tokens(self) -> int | None:
        """Tokens of the prefix that the key stands for."""
        return self._block_hash_num_tokens

    def set_block_hash(self, block_hash: BlockHashWithGroupId, num_tokens: int | None = None) -> None:
        """Give the block its key."""
        assert self._block_hash is None, f"block {self.block_id} is cached already"
        self._block_hash, self._block_hash_num_tokens = block_hash, num_tokens

    def reset_hash(self) -> None:
        """Take it away."""
        self._block_hash = self._block_hash_num_tokens = None


class KVCacheBlockCopy(NamedTuple):
    """A block whose content goes into another one before a step."""

    src_block_id: int
    dst_block_id: int


class FreeKVCacheBlockQueue:
    """Blocks that nobody holds, the one to be used next first."""

    def __init__(self, blocks: list[KVCacheBlock]) -> None:
        self._queue = OrderedDict((block.block_id, block) for block in blocks)

    @property
    def num_free_blocks(self) -> int:
        """How many there are."""
        return len(self._queue)

    def popleft(self) -> KVCacheBlock:
        """The next one."""
        if not self._queue:
            raise ValueError("No free blocks available")
        return self._queue.popitem(last=False)[1]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """The next ones."""
        if n in (0, 1):
            # These may be floats, as a connector's count of tokens may make them: vLLM takes no range of so few.
            return [self.popleft()] if n else []
        assert n <= len(self._queue)
        return [self.popleft() for _ in range(n)]

    def remove(self, block: KVCacheBlock) -> None:
        """Somebody has found this one in the prefix cache."""
        if block.block_id not in self._queue:
            raise RuntimeError(f"block {block.block_id} is not free")
        del self._queue[block.block_id]

    def append(self, block: KVCacheBlock) -> None:
        """To be used last."""
        self._queue[block.block_id] = block

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """To be used last, in this order."""
        for block in blocks:
            self.append(block)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        """To be used first, in this order."""
        for block in reversed(blocks):
            self._queue[block.block_id] = block
            self._queue.move_to_end(block.block_id, last=False)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """All of them in order."""
        return list(self._queue.values())


def generate_block_hash_extra_keys(
    request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
) -> tuple[tuple[Any, ...] | None, int]:
    """What goes into a block's hash besides its tokens. All items are looked at, so that no index has to be kept."""
    keys: list[Any] = []
    lora = request.lora_request
    if lora is not None:
        keys.append(("lora", lora.lora_name, lora.lora_path))
    for item in request.mm_features:
        place = item.mm_position
        if start_token_idx < place.offset + place.length and place.offset < end_token_idx:
            # Where the item begins, counted from the block's first token.
            keys.append(("mm", item.identifier, place.offset - start_token_idx))
    if start_token_idx == 0 and request.cache_salt:
        keys.append(("cache_salt", request.cache_salt))
    if request.prompt_embeds is not None:
        rows = request.prompt_embeds[start_token_idx:end_token_idx].contiguous()
        keys.append(("prompt_embeds", hashlib.sha256(rows.view(torch.uint8).numpy().tobytes()).digest()))
    return (tuple(keys) if keys else None), start_mm_idx


def to_event_extra_keys(extra_keys: Iterable[tuple[Any, ...] | None] | None) -> list[tuple[Any, ...] | None] | None:
    """The same without the tags, as events have it."""
    untagged = [
        None if keys is None else tuple(key[1:] if key[0] == "mm" else key[1] for key in keys)
        for keys in extra_keys or ()
    ]
    return untagged or None


def hash_block_tokens(
    hash_function: Callable[[Any], bytes],
    parent_block_hash: BlockHash | None,
    curr_block_token_ids: Sequence[int],
    extra_keys: tuple[Any, ...] | None = None,
) -> BlockHash:
    """The hash of a block, which stands for everything before it as well."""
    return BlockHash(hash_function((parent_block_hash or NONE_HASH, tuple(curr_block_token_ids), extra_keys)))


def get_request_block_hasher(
    hash_block_size: int, caching_hash_fn: Callable[[Any], bytes]
) -> Callable[[Any], list[BlockHash]]:
    """A function that hashes the blocks that a request has filled since it was last asked."""

    def request_block_hasher(request: Any) -> list[BlockHash]:
        known = request.block_hashes
        parent = known[-1] if known else None
        new: list[BlockHash] = []
        for end in range((len(known) + 1) * hash_block_size, request.num_tokens + 1, hash_block_size):
            start = end - hash_block_size
            extra, _ = generate_block_hash_extra_keys(request, start, end, 0)
            parent = hash_block_tokens(caching_hash_fn, parent, request.all_token_ids[start:end], extra)
            new.append(parent)
        return new

    return request_block_hasher


def resolve_kv_cache_block_sizes(kv_cache_config: Any, vllm_config: Any) -> tuple[int, int]:
    """Tokens per step of the scheduler, and tokens per block hash."""
    cache_config = vllm_config.cache_config
    sizes = [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
    wanted = cache_config.prefix_match_unit
    if len(sizes) <= 1:
        size = cache_config.block_size
        if sizes and wanted not in (None, size):
            raise ValueError(f"prefix_match_unit={wanted} with one KV cache group whose blocks have {size} tokens")
        return size, size
    together = math.lcm(*sizes)
    if not cache_config.enable_prefix_caching and vllm_config.kv_transfer_config is None:
        return together, together
    unit = math.gcd(*sizes) if wanted is None else wanted
    if any(size % unit for size in sizes):
        raise ValueError(f"prefix_match_unit={unit} does not divide the block sizes {sizes}")
    return together, unit


def resolve_dcp_kv_block_size(spec: Any, dcp_world_size: int) -> int:
    """Tokens of a block where ranks share the tokens."""
    size: int = spec.block_size * (dcp_world_size if spec.dcp_sharded else 1)
    return size


def resolve_dcp_kv_cache_spec(spec: Any, dcp_world_size: int) -> Any:
    """The spec with such blocks, and its layers' with theirs."""
    size = resolve_dcp_kv_block_size(spec, dcp_world_size)
    if size == spec.block_size:
        return spec
    layers = getattr(spec, "kv_cache_specs", None)
    if layers is None:
        return replace(spec, block_size=size)
    return replace(
        spec,
        block_size=size,
        kv_cache_specs={name: resolve_dcp_kv_cache_spec(layer, dcp_world_size) for name, layer in layers.items()},
    )


def resolve_cache_hit_alignment_tokens(
    kv_cache_config: Any, vllm_config: Any, scheduler_block_size: int, hash_block_size: int
) -> int:
    """Where hits can end; finer ones need recurrent layers, which are not simulated."""
    return scheduler_block_size


class BlockHashListWithBlockSize:
    """The hashes of larger blocks: each is the last hash inside of the block."""

    def __init__(self, block_hashes: list[BlockHash], hash_block_size: int, target_block_size: int) -> None:
        assert target_block_size % hash_block_size == 0
        self.block_hashes = block_hashes
        self.scale_factor = target_block_size // hash_block_size

    def __len__(self) -> int:
        return len(self.block_hashes) // self.scale_factor

    def __getitem__(self, idx: Any) -> Any:
        if isinstance(idx, slice):
            return [self[index] for index in range(*idx.indices(len(self)))]
        if not isinstance(idx, int):
            raise TypeError(f"an index is no {type(idx).__name__}")
        return self.block_hashes[(idx + 1) * self.scale_factor - 1]

    def __iter__(self) -> Iterator[BlockHash]:
        return (self[index] for index in range(len(self)))


BlockHashList: TypeAlias = list[BlockHash] | BlockHashListWithBlockSize


def resolve_block_hashes(
    block_hashes: Any,
    hash_block_size: int,
    block_size: int,
    *,
    supports_fine_grained_hash_lookup: bool = False,
    alignment_tokens: int | None = None,
) -> Any:
    """The hashes of blocks of ``block_size`` tokens."""
    if block_size == hash_block_size or isinstance(block_hashes, BlockHashListWithBlockSize):
        return block_hashes
    return BlockHashListWithBlockSize(block_hashes, hash_block_size, block_size)
