"""Scheduler role of FileStoreConnector: decides which blocks are loaded and stored, and touches no KV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from ._block_store import BlockStore
from ._file_store_messages import BlockLoad, BlockSave, FileStoreMetadata, FileStoreReport, StepResult
from ._store_namespace import StoreNamespace

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)


@dataclass
class _TrackedRequest:
    """What the scheduler's messages have told about a request.

    ``request`` is vLLM's live object: its tokens and hashes grow, and shrink when a streaming session goes on.
    ``local_tokens`` is the local hit named by the last match query. ``table`` mirrors the block table: it is extended
    in place while the request runs and replaced by a new list otherwise, so that a pending save can keep the table it
    was planned with.
    ``next_block`` is the first block not yet considered for saving, None before the request was first scheduled.
    """

    request: Request
    local_tokens: int = 0
    table: list[int] = field(default_factory=list)
    next_block: int | None = None
    may_save: bool = True


@dataclass
class _PendingSave:
    """A save sent to the workers; ``tainted`` when its KV turns out to be computed from blocks that didn't load."""

    block_hash: bytes
    blocks: str
    table: list[int]
    tainted: bool = False


@dataclass
class _PendingStep:
    """A step whose work some rank has not reported yet. ``loads``: block id -> block hash; ``saves``: by save id."""

    loads: dict[int, bytes]
    saves: dict[int, _PendingSave]
    result: StepResult


@dataclass(frozen=True)
class Granularity:
    """``block_tokens`` tokens share a block id; each block spans ``block_tokens // hash_tokens`` block hashes."""

    block_tokens: int
    hash_tokens: int

    def __post_init__(self) -> None:
        if self.block_tokens % self.hash_tokens:
            raise ValueError(
                f"FileStoreConnector stores whole blocks of {self.block_tokens} tokens, which must be a multiple of "
                f"the {self.hash_tokens} tokens per block hash."
            )

    def hashed_blocks(self, request: Request) -> int:
        """Blocks of ``request`` that have a hash: full ones, without tokens that are still being sampled."""
        return len(request.block_hashes) * self.hash_tokens // self.block_tokens

    def block_hash(self, request: Request, index: int) -> bytes:
        """The key of block ``index``. Hashes are chained, so the last one of a block stands for the whole prefix."""
        return bytes(request.block_hashes[(index + 1) * (self.block_tokens // self.hash_tokens) - 1])


class SchedulerSide:
    """Plans loads and saves, and publishes blocks.

    ``may_load`` and ``may_save`` follow from ``kv_role``. ``world_size`` is the number of ranks that hold a part of
    each block.
    """

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
        self._store = store
        self._namespace = namespace
        self._granularity = granularity
        self._world_size = world_size
        self._may_load = may_load
        self._may_save = may_save
        self._requests: dict[str, _TrackedRequest] = {}
        self._planned_loads: dict[str, list[BlockLoad]] = {}
        self._steps: dict[int, _PendingStep] = {}
        self._step_count = 0
        self._save_count = 0
        self._being_saved: dict[bytes, int] = {}
        self._unreadable: set[bytes] = set()
        # GPU blocks that failed to load and have not been written since.
        self._bad_blocks: set[int] = set()

    # ---- Matching and loading ----

    def match(self, request: Request, local_tokens: int) -> int:
        """Tokens beyond ``local_tokens`` that the store can supply: whole blocks, contiguous, never the last token.

        vLLM may ask any number of times and never follow up, so the only trace is the local hit of the last question,
        which ``allocated`` needs: it is the one place that names it (Request.num_computed_tokens is still 0 then).
        """
        self._track(request).local_tokens = local_tokens
        block_tokens = self._granularity.block_tokens
        # An unaligned local hit ends inside a block that may be shared; only whole blocks can be loaded.
        if not self._may_load or local_tokens % block_tokens or getattr(request, "skip_reading_prefix_cache", False):
            return 0
        # At least one token must be left to compute, or there are no logits to sample from.
        limit = min((request.num_tokens - 1) // block_tokens, self._granularity.hashed_blocks(request))
        first = local_tokens // block_tokens
        end = first
        while end < limit and self._is_stored(self._granularity.block_hash(request, end)):
            end += 1
        return (end - first) * block_tokens

    def allocated(self, request: Request, block_ids: list[int], external_tokens: int) -> None:
        """Plan to load exactly the positions ``[local, local + external_tokens)``.

        ``external_tokens`` may be less than what was matched, and 0 where another child of a MultiConnector loads.
        ``block_ids`` is the whole table, local hits first; those may be shared and must not be written.
        """
        tracked = self._track(request)
        if request.num_computed_tokens == 0:
            # A fresh start, first admission or after a preemption, rather than a streaming session that goes on.
            tracked.may_save = True
        if external_tokens <= 0:
            return
        block_tokens = self._granularity.block_tokens
        first = tracked.local_tokens // block_tokens
        end = -(-(tracked.local_tokens + external_tokens) // block_tokens)
        self._planned_loads[request.request_id] = [
            BlockLoad(block_ids[index], self._granularity.block_hash(request, index)) for index in range(first, end)
        ]

    def finished(self, request: Request) -> None:
        """Forget the request. What was staged for it is published as usual: its KV was good when it was read."""
        self._requests.pop(request.request_id, None)
        self._planned_loads.pop(request.request_id, None)

    # ---- Saving ----

    def build_metadata(self, output: SchedulerOutput) -> FileStoreMetadata:
        """The work of this step; what was planned for it is consumed."""
        loads = tuple(load for planned in self._planned_loads.values() for load in planned)
        self._planned_loads.clear()
        self._bad_blocks.difference_update(load.block_id for load in loads)
        scheduled_requests = list(self._scheduled(output))
        self._check_foundations(scheduled_requests)

        saves: dict[int, _PendingSave] = {}
        orders: list[BlockSave] = []
        for tracked, computed, scheduled in scheduled_requests:
            for index in self._completed_blocks(tracked, computed, scheduled):
                block_hash = self._granularity.block_hash(tracked.request, index)
                if block_hash in self._being_saved or self._is_stored(block_hash):
                    continue
                self._save_count += 1
                self._being_saved[block_hash] = self._save_count
                saves[self._save_count] = _PendingSave(block_hash, self._namespace.blocks, tracked.table)
                orders.append(BlockSave(self._save_count, self._source(tracked, index), block_hash))

        self._step_count += 1
        if loads or saves:
            by_block = {load.block_id: load.block_hash for load in loads}
            self._steps[self._step_count] = _PendingStep(by_block, saves, StepResult(votes=0))
        return FileStoreMetadata(
            step=self._step_count,
            blocks=self._namespace.blocks,
            staging=self._namespace.staging,
            loads=loads,
            saves=tuple(orders),
        )

    def _scheduled(self, output: SchedulerOutput) -> Iterable[tuple[_TrackedRequest, int, int]]:
        """The requests of this step as (request, computed tokens before it, tokens computed by it).

        Updates the mirrored block tables on the way.
        """
        for new in output.scheduled_new_reqs:
            # Also resumed requests (model runner V2) and continued streaming sessions: the table is complete.
            if tracked := self._requests.get(new.req_id):
                tracked.table = list(new.block_ids[0])
                yield tracked, new.num_computed_tokens, output.num_scheduled_tokens[new.req_id]

        cached = output.scheduled_cached_reqs
        for request_id, new_block_ids, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if tracked := self._requests.get(request_id):
                added = [] if new_block_ids is None else new_block_ids[0]
                if request_id in cached.resumed_req_ids:
                    tracked.table = list(added)
                else:
                    tracked.table.extend(added)
                yield tracked, computed, output.num_scheduled_tokens[request_id]

    def _completed_blocks(self, tracked: _TrackedRequest, computed: int, scheduled: int) -> Sequence[int]:
        """Indices of the blocks that this step's forward completes and nobody has considered yet.

        A block counts when all its slots have been written, and for tokens that are settled. Only such tokens have a
        hash: drafts that may be rejected (speculative decoding) and tokens that are still being sampled (async
        scheduling) have none yet, and their block waits for a later step. The slot of the last sampled token has to
        wait for the forward that writes it. Blocks that the engine found in its local cache are not saved again.
        """
        block_tokens = self._granularity.block_tokens
        first = computed // block_tokens
        if tracked.next_block is not None:
            # After a preemption or a failed load the engine computes blocks anew.
            first = min(first, tracked.next_block)
        written = (computed + scheduled) // block_tokens
        end = min(written, self._granularity.hashed_blocks(tracked.request), len(tracked.table))
        tracked.next_block = max(first, end)
        return range(first, end if self._may_save and tracked.may_save else first)

    def _source(self, tracked: _TrackedRequest, index: int) -> int:
        """The block id from which block ``index`` of the request is saved."""
        return tracked.table[index]

    def _check_foundations(self, scheduled_requests: list[tuple[_TrackedRequest, int, int]]) -> None:
        """Never store what a request computes on top of a block that did not load.

        vLLM lets the first request that holds such a block compute it again. But it counts as computed for others that
        share it, and stays in the local prefix cache should the first one be aborted.
        """
        if not self._bad_blocks:
            return
        rewritten: set[int] = set()
        for tracked, computed, scheduled in scheduled_requests:
            before = computed // self._granularity.block_tokens
            after = (computed + scheduled) // self._granularity.block_tokens
            if not self._bad_blocks.isdisjoint(tracked.table[:before]):
                tracked.may_save = False
            rewritten.update(tracked.table[before:after])
        self._bad_blocks -= rewritten

    # ---- Publishing ----

    def step_reported(self, output: KVConnectorOutput) -> None:
        """Publish what all ranks have staged, unless it was computed from blocks that failed to load.

        Only here is the KV of a step known to be good. The worker that stages a block can't tell: the load that failed
        may be another rank's or another connector's, and attention has mixed its garbage into every later layer.
        """
        if output.invalid_block_ids:
            self._on_load_errors(output.invalid_block_ids)
        report = output.kv_connector_worker_meta
        if isinstance(report, FileStoreReport):
            for step_id, result in report.steps.items():
                self._on_step_result(step_id, result)
        self._purge_when_unused()

    def _on_load_errors(self, invalid_block_ids: set[int]) -> None:
        for step in self._steps.values():
            # Even if the worker can't remove the file, don't offer the block again.
            self._unreadable.update(step.loads[block_id] for block_id in invalid_block_ids & step.loads.keys())
            for save in step.saves.values():
                save.tainted = save.tainted or not invalid_block_ids.isdisjoint(save.table)
        self._bad_blocks |= invalid_block_ids

    def _on_step_result(self, step_id: int, result: StepResult) -> None:
        step = self._steps.get(step_id)
        if step is None:
            return
        step.result = step.result.merged(result)
        if step.result.votes < self._world_size:
            return
        del self._steps[step_id]
        for save_id, save in step.saves.items():
            if self._being_saved.get(save.block_hash) == save_id:
                del self._being_saved[save.block_hash]
            # A reset since then has moved the engine to another directory.
            outdated = save.blocks != self._namespace.blocks
            if save.tainted or outdated or save_id in step.result.failed or not self._publish(save_id, save):
                self._store.discard(self._namespace.staging, save_id, self._world_size)
        self._namespace.touch()

    def _publish(self, save_id: int, save: _PendingSave) -> bool:
        try:
            self._store.publish(self._namespace.staging, save_id, save.blocks, save.block_hash, self._world_size)
        except OSError as error:
            logger.warning("A KV block could not be published: %s", error)
            return False
        self._unreadable.discard(save.block_hash)
        return True

    # ---- Reset and shutdown ----

    def reset(self) -> bool:
        """Drop all stored KV, also what is on its way there. False if some of it could still be found later."""
        succeeded = self._namespace.reset()
        self._being_saved.clear()
        self._unreadable.clear()
        for tracked in self._requests.values():
            # Its KV is from before the reset, and whatever it computes from now on builds on that.
            tracked.may_save = False
        self._purge_when_unused()
        return succeeded

    def _purge_when_unused(self) -> None:
        """Delete what a reset has left, once no load is on its way to it: in the next steps at the latest."""
        if not any(step.loads for step in self._steps.values()):
            self._namespace.purge()

    def close(self) -> None:
        self._namespace.close()

    def _is_stored(self, block_hash: bytes) -> bool:
        return block_hash not in self._unreadable and self._store.contains(
            self._namespace.blocks, block_hash, self._world_size
        )

    def _track(self, request: Request) -> _TrackedRequest:
        return self._requests.setdefault(request.request_id, _TrackedRequest(request))
