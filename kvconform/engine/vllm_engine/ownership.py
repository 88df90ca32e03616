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
    the null block, blocks that nobody holds, shared prefixes, computed slots, blocks of a request that has ended.
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
            held = self.scheduler.requests[request_id].is_finished()
            protected = EVERYTHING if held else self.computed.get(request_id, 0)
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

    def owners(self, block: int) -> tuple[str, ...]:
        """The live requests whose table contains ``block``."""
        return tuple(
            request_id for request_id, groups in self.tables().items() if any(block in table for table in groups)
        )
