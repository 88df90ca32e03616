"""Scheduler role of AsyncFileStoreConnector: what FileStoreConnector decides, for transfers that outlive their step.

What to load and what to save is the same as for the synchronous connector, and so is when a block may be published.
New is that blocks can change hands while a transfer is under way:

- a request that finished keeps its blocks until its saves are done (:meth:`AsyncSchedulerSide.finished`);
- a preempted request loses them at once, so the workers are told which saves to hurry (``fences``);
- a request that is aborted while it loads keeps them until the load is reported; vLLM sees to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from ._async_messages import AsyncStoreMetadata, AsyncStoreReport, Hold, LoadJob, SaveVotes
from ._file_store_messages import BlockSave
from ._file_store_scheduler import SchedulerSide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from ._block_store import BlockStore
    from ._file_store_scheduler import Granularity
    from ._store_namespace import StoreNamespace


@dataclass
class _OpenSave:
    """A save that some rank has not voted for yet.

    ``table`` is the block table it was planned with, ``tainted`` that its KV rests on blocks that didn't load,
    ``fenced`` that its block has been given to somebody else and was taken out before.
    """

    request_id: str
    block_id: int
    block_hash: bytes
    blocks: str
    table: list[int]
    votes: SaveVotes = field(default_factory=partial(SaveVotes, 0))
    tainted: bool = False
    fenced: bool = False


class AsyncSchedulerSide(SchedulerSide):
    """Plans transfers, knows which are under way, and publishes blocks."""

    def __init__(
        self,
        store: BlockStore,
        namespace: StoreNamespace,
        granularity: Granularity,
        world_size: int,
        *,
        may_load: bool,
        may_save: bool,
    ) -> None:
        # By request: a request waits for one load at a time. Planned in this schedule(), and sent to the workers.
        self._planned: dict[str, LoadJob] = {}
        self._loads: dict[str, LoadJob] = {}
        self._load_count = 0
        self._saves: dict[int, _OpenSave] = {}
        self._cancels: set[int] = set()
        self._holds: list[Hold] = []
        super().__init__(store, namespace, granularity, world_size, may_load=may_load, may_save=may_save)

    # ---- Loading ----

    def allocated(self, request: Request, block_ids: list[int], external_tokens: int) -> None:
        """Plan the load. Called again, with 0 tokens, when the load has ended and the request is about to run."""
        super().allocated(request, block_ids, external_tokens)
        if loads := self._planned_loads.pop(request.request_id, None):
            self._load_count += 1
            self._planned[request.request_id] = LoadJob(
                self._load_count, request.request_id, self._namespace.blocks, tuple(loads)
            )

    def finished(self, request: Request, block_ids: Sequence[int] = ()) -> bool:
        """Forget the request; True if its blocks must stay until the workers have reported it as sent.

        A request that is aborted while it loads is reported as received, like any other, and never as sent: vLLM keeps
        its blocks on its own account until then, and would not survive a second report.
        """
        super().finished(request)
        request_id = request.request_id
        if request_id in self._planned:
            self._planned[request_id] = replace(self._planned[request_id], loads=())
            return False
        if request_id in self._loads:
            self._cancels.add(self._loads[request_id].load_id)
            return False
        # Saves from before a preemption don't count: their blocks are somebody else's by now.
        own = set(block_ids)
        save_ids = frozenset(
            save_id
            for save_id, save in self._saves.items()
            if save.request_id == request_id and not save.fenced and save.block_id in own
        )
        if save_ids:
            self._holds.append(Hold(request_id, save_ids))
        return bool(save_ids)

    # ---- Each step ----

    def build_async_metadata(self, output: SchedulerOutput) -> AsyncStoreMetadata:
        """What is new in this step; everything planned for it is consumed."""
        loads, self._planned = tuple(self._planned.values()), {}
        self._loads.update({job.request_id: job for job in loads})
        loaded = {load.block_id for job in loads for load in job.loads}
        self._bad_blocks -= loaded
        # Before the block tables are brought up to date, and before this step's own saves.
        fences = self._fence(loaded.union(self._handed_out(output)))
        scheduled = list(self._scheduled(output))
        self._check_foundations(scheduled)

        saves: list[BlockSave] = []
        for tracked, computed, count in scheduled:
            for index in self._completed_blocks(tracked, computed, count):
                block_hash = self._granularity.block_hash(tracked.request, index)
                if block_hash in self._being_saved or self._is_stored(block_hash):
                    continue
                self._save_count += 1
                self._being_saved[block_hash] = self._save_count
                block_id = tracked.table[index]
                self._saves[self._save_count] = _OpenSave(
                    tracked.request.request_id, block_id, block_hash, self._namespace.blocks, tracked.table
                )
                saves.append(BlockSave(self._save_count, block_id, block_hash))

        cancels, self._cancels = frozenset(self._cancels), set()
        holds, self._holds = tuple(self._holds), []
        return AsyncStoreMetadata(self._namespace.staging, loads, tuple(saves), fences, cancels, holds)

    def has_open_saves(self) -> bool:
        """Whether there is something that only a further step can publish."""
        return bool(self._saves)

    def _handed_out(self, output: SchedulerOutput) -> Iterator[int]:
        """Blocks that got a new owner in this step: all that a request did not find in the local prefix cache.

        Which requests have lost blocks is not the question. A block may also have come to be free because its request
        has finished, or to be freed and handed out again within one schedule().
        """
        block_tokens = self._granularity.block_tokens
        tables = [(new.req_id, new.block_ids[0]) for new in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        for request_id, new_block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if new_block_ids is None:
                continue
            if request_id in cached.resumed_req_ids:
                tables.append((request_id, new_block_ids[0]))
            else:
                yield from new_block_ids[0]
        for request_id, table in tables:
            tracked = self._requests.get(request_id)
            yield from table[0 if tracked is None else tracked.local_tokens // block_tokens :]

    def _fence(self, handed_out: set[int]) -> frozenset[int]:
        fences = frozenset(
            save_id for save_id, save in self._saves.items() if not save.fenced and save.block_id in handed_out
        )
        for save_id in fences:
            self._saves[save_id].fenced = True
        return fences

    # ---- Results ----

    def step_reported(self, output: KVConnectorOutput) -> None:
        """Publish what all ranks have staged. Ids of requests that somebody else has loaded are none of ours."""
        if output.invalid_block_ids:
            self._on_load_errors(output.invalid_block_ids)
        for request_id in output.finished_recving or ():
            self._loads.pop(request_id, None)
        report = output.kv_connector_worker_meta
        if isinstance(report, AsyncStoreReport):
            for save_id, votes in report.saves.items():
                self._on_votes(save_id, votes)
        self._purge_when_unused()

    def _on_load_errors(self, invalid_block_ids: set[int]) -> None:
        for job in self._loads.values():
            self._unreadable.update(load.block_hash for load in job.loads if load.block_id in invalid_block_ids)
        for save in self._saves.values():
            save.tainted = save.tainted or not invalid_block_ids.isdisjoint(save.table)
        self._bad_blocks |= invalid_block_ids

    def _on_votes(self, save_id: int, votes: SaveVotes) -> None:
        save = self._saves.get(save_id)
        if save is None:
            return
        save.votes = save.votes.merged(votes)
        if save.votes.votes < self._world_size:
            return
        del self._saves[save_id]
        if self._being_saved.get(save.block_hash) == save_id:
            del self._being_saved[save.block_hash]
        # A reset since then has moved the engine to another directory.
        outdated = save.blocks != self._namespace.blocks
        if save.tainted or outdated or save.votes.failures or not self._publish(save_id, save):
            self._store.discard(self._namespace.staging, save_id, self._world_size)
        self._namespace.touch()

    def _purge_when_unused(self) -> None:
        if not self._loads and not self._planned:
            self._namespace.purge()
