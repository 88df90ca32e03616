"""The index of a bounded pool of host memory: which key lies in which slot, what may be evicted, and what was.

Only the scheduler role has one. A slot is a number; the bytes are the workers' (``_host_worker``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.kv_cache_interface import KVCacheConfig

MEDIUM = "CPU"
_DEFAULT_CAPACITY = 1024


@dataclass(frozen=True)
class BlockStory:
    """What an event has to say of a block, kept from the plan to the moment at which the block can be found."""

    block_hash: bytes
    parent_hash: bytes | None
    token_ids: tuple[int, ...]
    lora_name: str | None
    lora_id: int | None


class HostPool:
    """Least recently used blocks go first; pinned ones and those being written stay.

    Args:
        capacity: slots of the pool.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.evicted = 0
        self.refused = 0
        # Oldest use first. Only what is in here can be found.
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(capacity))
        self._pins: Counter[bytes] = Counter()
        self._writing: dict[int, tuple[int, BlockStory]] = {}
        # Slots of removed blocks that a load still reads: key -> slot, given back with the last pin.
        self._orphans: dict[bytes, int] = {}
        self._events: list[KVCacheEvent] = []

    def __contains__(self, key: bytes) -> bool:
        return key in self._slots

    def slot(self, key: bytes) -> int:
        """Where a pinned block lies, even if it was removed since."""
        return self._slots[key] if key in self._slots else self._orphans[key]

    # ---- Use ----

    def pin(self, keys: list[bytes]) -> None:
        """Keep blocks from being evicted until :meth:`unpin`, and count this as their latest use."""
        for key in keys:
            self._pins[key] += 1
            self._slots.move_to_end(key)

    def unpin(self, keys: list[bytes]) -> None:
        """Take one :meth:`pin` of each key back."""
        for key in keys:
            self._pins[key] -= 1
            if self._pins[key] == 0:
                del self._pins[key]
                if key in self._orphans:
                    self._free.append(self._orphans.pop(key))

    # ---- Saves ----

    def reserve(self, save_id: int, story: BlockStory) -> int | None:
        """A slot to write to, or None if nobody can be evicted. The block can't be found before :meth:`publish`."""
        if not self._free:
            victim = next((key for key in self._slots if key not in self._pins), None)
            if victim is None:
                self.refused += 1
                return None
            self.remove(victim)
            self.evicted += 1
        slot = self._free.pop()
        self._writing[save_id] = (slot, story)
        return slot

    def publish(self, save_id: int) -> None:
        """All workers have written: from now on the block can be found."""
        slot, story = self._writing.pop(save_id)
        if story.block_hash in self._slots or story.block_hash in self._orphans:
            self._free.append(slot)
            return
        self._slots[story.block_hash] = slot
        self._events.append(_stored(story))

    def discard(self, save_id: int) -> None:
        """A save failed, or its KV turned out to be bad: nobody has seen the block, so nobody is told."""
        if save_id in self._writing:
            self._free.append(self._writing.pop(save_id)[0])

    # ---- Removal ----

    def remove(self, key: bytes) -> None:
        """The block is not found any more; its slot is free once no load reads it."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        self._release(key, slot)
        self._events.append(BlockRemoved(block_hashes=[maybe_convert_block_hash(key)], medium=MEDIUM))

    def clear(self) -> None:
        """Nothing is found any more, but for what is being written: its saves decide."""
        for key, slot in self._slots.items():
            self._release(key, slot)
        self._slots.clear()
        self._events.append(AllBlocksCleared())

    def take_events(self) -> list[KVCacheEvent]:
        """What has become visible and invisible since the last call."""
        events, self._events = self._events, []
        return events

    def _release(self, key: bytes, slot: int) -> None:
        if key in self._pins:
            self._orphans[key] = slot
        else:
            self._free.append(slot)


def _stored(story: BlockStory) -> BlockStored:
    parent = None if story.parent_hash is None else maybe_convert_block_hash(story.parent_hash)
    return BlockStored(
        block_hashes=[maybe_convert_block_hash(story.block_hash)],
        parent_block_hash=parent,
        token_ids=list(story.token_ids),
        block_size=len(story.token_ids),
        lora_id=story.lora_id,
        medium=MEDIUM,
        lora_name=story.lora_name,
    )


def pool_capacity(connector: str, options: dict[str, Any], kv_cache_config: KVCacheConfig) -> int:
    """Blocks that fit into ``connector``'s pool, the same number on both roles. Raises ValueError for one without room.

    ``options`` are ``capacity_blocks`` or ``capacity_bytes``, by default 1024 blocks.
    """
    blocks = options.get("capacity_blocks")
    if "capacity_bytes" in options:
        if blocks is not None:
            raise ValueError(f"{connector} takes capacity_blocks or capacity_bytes, not both.")
        per_block = sum(tensor.size for tensor in kv_cache_config.kv_cache_tensors) // kv_cache_config.num_blocks
        blocks = int(options["capacity_bytes"]) // per_block
    capacity = _DEFAULT_CAPACITY if blocks is None else int(blocks)
    if capacity < 1:
        raise ValueError(f"{connector} needs room for at least one block: raise its capacity.")
    return capacity
