"""Scheduler role of PinnedOffloadConnector: transfers that outlive their step, over a pool that is bounded.

What is under way and who owns a block meanwhile is ``_async_scheduler``'s; what lies where, and what may be evicted,
is ``_host_pool``'s. New is only where they meet: a promise pins its blocks until the load is done on every rank, and a
save has to find a slot first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._async_messages import LoadJob, SaveVotes
from ._async_scheduler import AsyncSchedulerSide
from ._file_store_scheduler import Granularity
from ._host_pool import BlockStory, HostPool
from ._host_scheduler import Generations, PinsPromises, PoolAsStore
from ._pinned_messages import PinnedLoad, PinnedMetadata, PinnedReport, PinnedSave

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class PinnedSchedulerSide(PinsPromises, AsyncSchedulerSide):
    """Plans copies between blocks and slots. ``now``: loads are for the forward of their own step."""

    def __init__(
        self, pool: HostPool, granularity: Granularity, world_size: int, *, may_load: bool, may_save: bool, now: bool
    ) -> None:
        super().__init__(
            PoolAsStore(pool), Generations(pool), granularity, world_size, may_load=may_load, may_save=may_save
        )
        self._pool = pool
        self._now = now
        self._promised = {}
        # Pinned by a load that is on its way, by load, with the ranks that are done.
        self._loading: dict[int, list[bytes]] = {}
        self._load_votes: dict[int, int] = {}

    # ---- Loading ----

    def allocated(self, request: Request, block_ids: list[int], external_tokens: int) -> None:
        super().allocated(request, block_ids, external_tokens)
        job = self._planned.get(request.request_id)
        if job is not None and job.load_id not in self._loading:
            keys = [load.block_hash for load in job.loads]
            self._pool.pin(keys)
            self._loading[job.load_id] = keys

    def finished(self, request: Request, block_ids: list[int] | tuple[int, ...] = ()) -> bool:
        held = super().finished(request, block_ids)
        self._release_promise(request.request_id)
        return held

    # ---- Each step ----

    def build_pinned_metadata(self, output: SchedulerOutput) -> PinnedMetadata:
        """The copies of this step. Promises that no load followed end here: vLLM asks again before it admits."""
        self._release_promises()
        plan = self.build_async_metadata(output)
        loads = tuple(self._load(job) for job in plan.loads)
        if self._now:
            for job in plan.loads:
                # Nobody waits for it beyond this step, so nobody reports it as received.
                self._loads.pop(job.request_id, None)
        saves = []
        for save in plan.saves:
            slot = self._pool.reserve(save.save_id, self._story(save.save_id))
            if slot is None:
                # The pool is full of what others need. The block is simply not stored.
                del self._saves[save.save_id]
                self._being_saved.pop(save.block_hash, None)
                continue
            saves.append(PinnedSave(save.save_id, save.block_id, slot))
        return PinnedMetadata(loads, tuple(saves), plan.fences, plan.holds)

    def _load(self, job: LoadJob) -> PinnedLoad:
        places = tuple((load.block_id, self._pool.slot(load.block_hash)) for load in job.loads)
        return PinnedLoad(job.load_id, job.request_id, places, self._now)

    def _story(self, save_id: int) -> BlockStory:
        """What is known of a block now and may be gone when the save has ended."""
        save = self._saves[save_id]
        request = self._requests[save.request_id].request
        return self._story_of(request, save.table.index(save.block_id), save.block_hash)

    # ---- Results ----

    def step_reported(self, output: KVConnectorOutput) -> None:
        super().step_reported(output)
        report = output.kv_connector_worker_meta
        if not isinstance(report, PinnedReport):
            return
        for save_id, votes in report.saves.items():
            self._on_votes(save_id, SaveVotes(votes, int(save_id in report.lost)))
        for load_id, votes in report.loads.items():
            self._load_votes[load_id] = self._load_votes.get(load_id, 0) + votes
            if self._load_votes[load_id] >= self._world_size:
                del self._load_votes[load_id]
                self._pool.unpin(self._loading.pop(load_id, []))
