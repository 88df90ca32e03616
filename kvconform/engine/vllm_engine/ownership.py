"""Who owns which block, and which of its slots the connector may write right now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# More tokens than any request has.
EVERYTHING = 1 << 32


@dataclass(frozen=True)
class Load:
    """A load that the scheduler committed to: token positions [first, last) of a request."""

    first: int
    last: int
    asynchronous: bool


@dataclass
class Ownership:
    """Block ownership, read from vLLM's KVCacheManager.

    A connector may write the slots of a load that was committed to, and slots of the request's own blocks that are not
    computed yet (connectors that move whole blocks overwrite the tail; vLLM's own do). Everything else is protected:
    the null block, blocks that nobody holds, shared prefixes, computed slots, blocks of a request that has ended, and
    those of one that must not be served from any cache.
    """

    scheduler: Any
    num_blocks: int
    block_sizes: tuple[int, ...]
    loads: dict[str, Load] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)

    def tables(self) -> dict[str, tuple[list[int], ...]]:
        """Per live request its block ids per group."""
        manager = self.scheduler.kv_cache_manager
        return {request_id: manager.get_block_ids(request_id) for request_id in self.scheduler.requests}

    def writable(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(first writable token offset, owning group or -1) per block."""
        first_writable = np.full(self.num_blocks, np.iinfo(np.int64).max)
        group_of = np.full(self.num_blocks, -1)
        tables = self.tables()
        for request_id, groups in tables.items():
            request = self.scheduler.requests[request_id]
            nothing = request.is_finished() or request.skip_reading_prefix_cache
            protected = EVERYTHING if nothing else self.computed.get(request_id, 0)
            for group, table in enumerate(groups):
                size = self.block_sizes[group]
                for index, block in enumerate(table):
                    offset = min(max(protected - index * size, 0), size)
                    shared = group_of[block] >= 0
                    first_writable[block] = max(first_writable[block], offset) if shared else offset
                    group_of[block] = group
        # A block that is being loaded may already be shared: the scheduler caches it at admission (KVCacheManager.
        # allocate_slots), so the load wins over the other owners' claim that it is computed.
        for request_id, load in self.loads.items():
            for group, table in enumerate(tables.get(request_id, ())):
                size = self.block_sizes[group]
                for index in range(load.first // size, min(len(table), -(-load.last // size))):
                    first_writable[table[index]] = min(max(load.first - index * size, 0), size)
        first_writable[0] = np.iinfo(np.int64).max
        return first_writable, group_of

    def to_compute(self, block: int, slot: int) -> str | None:
        """The one request that has yet to compute this slot, and all behind it, and may not read any cache."""
        owners = self.owners(block)
        if len(owners) != 1:
            return None
        (owner,) = owners
        request = self.scheduler.requests[owner]
        if request.is_finished() or not request.skip_reading_prefix_cache:
            return None
        computed = self.computed.get(owner, 0)
        tables = zip(self.block_sizes, self.tables()[owner], strict=True)
        places = [table.index(block) * size + slot for size, table in tables if block in table]
        return owner if min(places) >= computed else None

    def owners(self, block: int) -> tuple[str, ...]:
        """The live requests whose table contains ``block``."""
        return tuple(
            request_id for request_id, groups in self.tables().items() if any(block in table for table in groups)
        )
