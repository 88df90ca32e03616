"""Scheduler role of HostOffloadConnector: the file store's bookkeeping over a pool that is bounded.

What a block is, when a step completes it, and when its KV is known to be good is the same for every store
(``_file_store_scheduler``). New is that room is limited: a promise has to be kept, so what was promised is pinned, and
a save has to find a slot first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._block_store import BlockStore
from ._file_store_scheduler import Granularity, SchedulerSide
from ._host_pool import BlockStory, HostPool
from ._host_stats import EVICTED, REFUSED, HostOffloadStats, StatsCollector
from ._host_worker import HostMetadata
from ._store_namespace import StoreNamespace

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class PoolAsStore(BlockStore):
    """The pool in the words of a block store; directories and ranks mean nothing to it."""

    def __init__(self, pool: HostPool) -> None:
        super().__init__(Path())
        self._pool = pool

    def contains(self, directory: str, block_hash: bytes, world_size: int) -> bool:
        return block_hash in self._pool

    def publish(self, staging: str, save_id: int, directory: str, block_hash: bytes, world_size: int) -> None:
        self._pool.publish(save_id)

    def discard(self, staging: str, save_id: int, world_size: int) -> None:
        self._pool.discard(save_id)


class Generations(StoreNamespace):
    """Names the time between two resets, so that a save which was planned before a reset is known by its name."""

    def __init__(self, pool: HostPool) -> None:
        self._pool = pool
        self._number = 0
        self.staging = ""
        self.blocks = "0"

    def reset(self) -> bool:
        self._pool.clear()
        self._number += 1
        self.blocks = str(self._number)
        return True

    def purge(self) -> None:
        """Nothing is left behind by a reset."""

    def touch(self) -> None:
        """Nobody else looks at this pool."""

    def close(self) -> None:
        self._pool.clear()


class PinsPromises:
    """Goes before a scheduler side in a class's bases: what that promises is pinned in a pool until it is released."""

    _pool: HostPool
    _granularity: Granularity
    #: Pinned by a query, by request.
    _promised: dict[str, list[bytes]]

    def match(self, request: Request, local_tokens: int) -> int:
        """As for every store; what is promised is pinned until the load has ended, or nobody came back for it."""
        self._release_promise(request.request_id)
        tokens = super().match(request, local_tokens)
        size = self._granularity.block_tokens
        first = local_tokens // size
        keys = [self._granularity.block_hash(request, index) for index in range(first, first + tokens // size)]
        self._pool.pin(keys)
        self._promised[request.request_id] = keys
        return tokens

    def _release_promises(self) -> None:
        for request_id in list(self._promised):
            self._release_promise(request_id)

    def _release_promise(self, request_id: str) -> None:
        self._pool.unpin(self._promised.pop(request_id, []))

    def _story_of(self, request: Request, index: int, block_hash: bytes) -> BlockStory:
        """What is known of a request's block now and may be gone when its save has ended."""
        size, lora = self._granularity.block_tokens, request.lora_request
        return BlockStory(
            block_hash,
            # The block before it in the sequence, whether that is stored or not.
            self._granularity.block_hash(request, index - 1) if index else None,
            tuple(request.all_token_ids[index * size : (index + 1) * size]),
            None if lora is None else lora.lora_name,
            None if lora is None else lora.lora_int_id,
        )


class HostSchedulerSide(PinsPromises, SchedulerSide):
    """Plans loads and saves against a pool, and keeps its promises by pinning."""

    def __init__(
        self, pool: HostPool, granularity: Granularity, world_size: int, *, may_load: bool, may_save: bool
    ) -> None:
        super().__init__(
            PoolAsStore(pool), Generations(pool), granularity, world_size, may_load=may_load, may_save=may_save
        )
        self._pool = pool
        self._promised = {}
        # Pinned by a load that is on its way, by step.
        self._loading: dict[int, list[bytes]] = {}
        self._counted = (0, 0)

    def finished(self, request: Request) -> None:
        super().finished(request)
        self._release_promise(request.request_id)

    def build_host_metadata(self, output: SchedulerOutput) -> HostMetadata:
        """The work of this step.

        Promises that no load followed end here: vLLM asks again before it admits such a request. So a query that
        nobody ever comes back to pins nothing.
        """
        loading = [load.block_hash for loads in self._planned_loads.values() for load in loads]
        self._pool.pin(loading)
        self._release_promises()
        metadata = super().build_metadata(output)
        # Before any save takes a slot: what is loaded in this step is pinned by now.
        loads = tuple((load.block_id, self._pool.slot(load.block_hash)) for load in metadata.loads)
        saves = []
        for save in metadata.saves:
            slot = self._pool.reserve(save.save_id, self._story(metadata.step, save.save_id, save.block_id))
            if slot is None:
                # The pool is full of what others need. The block is simply not stored.
                del self._steps[metadata.step].saves[save.save_id]
                self._being_saved.pop(save.block_hash, None)
                continue
            saves.append((save.save_id, save.block_id, slot))
        if loads:
            self._loading[metadata.step] = loading
        if not loads and not saves:
            self._steps.pop(metadata.step, None)
        return HostMetadata(metadata.step, loads, tuple(saves))

    def step_reported(self, output: KVConnectorOutput) -> None:
        unreadable = set(self._unreadable)
        super().step_reported(output)
        # What failed to load once is not offered again.
        for key in self._unreadable - unreadable:
            self._pool.remove(key)
        self._unreadable.clear()
        for step in [step for step in self._loading if step not in self._steps]:
            self._pool.unpin(self._loading.pop(step))

    def take_stats(self) -> HostOffloadStats | None:
        """What the pool did since the last call."""
        now = (self._pool.evicted, self._pool.refused)
        collector = StatsCollector()
        for name, new, old in zip((EVICTED, REFUSED), now, self._counted, strict=True):
            collector.count(name, new - old)
        self._counted = now
        return collector.take()

    def _story(self, step: int, save_id: int, block_id: int) -> BlockStory:
        """What is known of a block now and may be gone when the save has ended."""
        save = self._steps[step].saves[save_id]
        tracked = next(each for each in self._requests.values() if each.table is save.table)
        return self._story_of(tracked.request, tracked.table.index(block_id), save.block_hash)
