"""Scheduler role of HybridFileStoreConnector: one planner per KV cache group, and the boundary they agree on.

Each group has its own block table, block size and reach: full attention reads the whole prefix, a sliding window its
last tokens only. So each group has a :class:`SchedulerSide` of its own, as the file store has for its only one, which
stores and loads the group's blocks in directories of its own. What they have in common is how far a hit goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from ._block_store import BlockStore
from ._file_store_messages import FileStoreMetadata, FileStoreReport
from ._file_store_scheduler import Granularity, SchedulerSide, _TrackedRequest
from ._store_namespace import StoreNamespace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass(frozen=True)
class HybridMetadata(KVConnectorMetadata):
    """The work of one step, per transferred group."""

    groups: tuple[FileStoreMetadata, ...]


@dataclass(frozen=True)
class HybridReport(KVConnectorWorkerMetadata):
    """Results of the workers, per transferred group that has any."""

    groups: dict[int, FileStoreReport] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> HybridReport:
        assert isinstance(other, HybridReport)
        merged = dict(self.groups)
        for group, report in other.groups.items():
            merged[group] = merged[group].aggregate(report) if group in merged else report
        return HybridReport(merged)


@dataclass(frozen=True)
class TransferredGroup:
    """A group that is stored: its place in the KVCacheConfig, tokens per block, and its window if it has one.

    A ``recurrent`` group has one state per block, that after the last token computed in it. A forward reads the state
    before its own tokens only, as from a window of one token behind the token itself.
    """

    index: int
    layer_names: tuple[str, ...]
    block_tokens: int
    window: int | None
    recurrent: bool = False

    def first_needed(self, computed: int) -> int:
        """The first token position that a forward behind ``computed`` tokens still reads."""
        return 0 if self.window is None else max(0, computed - self.window + 1)


class _GroupNamespace:
    """One group's folders within the engine's; resets and deletions concern all groups and are left to the owner."""

    def __init__(self, namespace: StoreNamespace, group: int) -> None:
        self._namespace = namespace
        self._folder = f"group-{group}"

    @property
    def blocks(self) -> str:
        return f"{self._namespace.blocks}/{self._folder}"

    @property
    def staging(self) -> str:
        return f"{self._namespace.staging}/{self._folder}"

    def touch(self) -> None:
        self._namespace.touch()

    def reset(self) -> bool:
        return True

    def purge(self) -> None:
        """Left to the owner, who knows of all groups' loads."""


class _GroupSide(SchedulerSide):
    """Plans one group's loads and saves from its part of the block tables."""

    group: TransferredGroup
    # Of the step that is being planned: (request id, block index) -> the block that holds the state at its end.
    _offered: dict[tuple[str, int], int]

    def build_metadata(self, output: SchedulerOutput) -> FileStoreMetadata:
        """Recurrent states are offered for one step, block by block; the scheduler keeps few and moves the others."""
        state = getattr(output, "kv_connector_block_state", None)
        offers = state.boundary_state_offloads if state is not None and self.group.recurrent else {}
        self._offered = {
            (request_id, tokens // self.group.block_tokens - 1): block_id
            for request_id, boundaries in offers.items()
            for group, block_id, tokens in boundaries
            # States inside a block have hashes of their own, if prefix_match_unit is finer than the block.
            if group == self.group.index and tokens % self.group.block_tokens == 0
        }
        return super().build_metadata(output)

    def stored_blocks(self, request: Request, first: int, end: int) -> bool:
        """Whether blocks [first, end) are all stored."""
        return all(self._is_stored(self._granularity.block_hash(request, index)) for index in range(first, end))

    def stored_prefix(self, request: Request, first: int) -> int:
        """The first block from ``first`` on that is not stored, or that has no hash."""
        end = first
        hashed = self._granularity.hashed_blocks(request)
        while end < hashed and self._is_stored(self._granularity.block_hash(request, end)):
            end += 1
        return end

    def hashed_tokens(self, request: Request) -> int:
        return self._granularity.hashed_blocks(request) * self._granularity.block_tokens

    def asked(self, request: Request, local_tokens: int) -> None:
        """Remember the local hit of the last match query."""
        self._track(request).local_tokens = local_tokens

    def allocated(self, request: Request, block_ids: list[int], external_tokens: int) -> None:
        """Null blocks (id 0) stand for positions before the window: they keep their place, and nothing is loaded."""
        super().allocated(request, block_ids, external_tokens)
        if planned := self._planned_loads.get(request.request_id):
            self._planned_loads[request.request_id] = [load for load in planned if load.block_id]

    def _scheduled(self, output: SchedulerOutput) -> Iterable[tuple[_TrackedRequest, int, int]]:
        return super()._scheduled(_only_group(output, self.group.index))

    def _completed_blocks(self, tracked: _TrackedRequest, computed: int, scheduled: int) -> Sequence[int]:
        completed = super()._completed_blocks(tracked, computed, scheduled)
        if self.group.recurrent:
            return [index for index in completed if (tracked.request.request_id, index) in self._offered]
        return [index for index in completed if tracked.table[index]]

    def _source(self, tracked: _TrackedRequest, index: int) -> int:
        if self.group.recurrent:
            return self._offered[tracked.request.request_id, index]
        return super()._source(tracked, index)

    @property
    def loading(self) -> bool:
        """Whether a load is on its way to the workers."""
        return any(step.loads for step in self._steps.values())


def _only_group(output: SchedulerOutput, group: int) -> SchedulerOutput:
    """The output as a connector for a single group would see it."""
    cached = output.scheduled_cached_reqs
    new_ids = [None if ids is None else (ids[group],) for ids in cached.new_block_ids]
    return replace(
        output,
        scheduled_new_reqs=[replace(new, block_ids=(new.block_ids[group],)) for new in output.scheduled_new_reqs],
        scheduled_cached_reqs=replace(cached, new_block_ids=new_ids),
    )


class HybridSchedulerSide:
    """All groups together."""

    def __init__(
        self,
        store: BlockStore,
        namespace: StoreNamespace,
        groups: Sequence[TransferredGroup],
        hash_tokens: int,
        world_size: int,
        *,
        may_load: bool,
        may_save: bool,
    ) -> None:
        self._namespace = namespace
        self._sides: list[_GroupSide] = []
        for group in groups:
            side = _GroupSide(
                store,
                _GroupNamespace(namespace, group.index),  # type: ignore[arg-type]
                Granularity(group.block_tokens, hash_tokens),
                world_size,
                may_load=may_load,
                may_save=may_save,
            )
            side.group = group
            self._sides.append(side)
        self._may_load = may_load
        # A hit ends where every group has whole blocks.
        self._step = math.lcm(*(group.block_tokens for group in groups))

    def match(self, request: Request, local_tokens: int) -> int:
        """Tokens beyond the local hit up to the largest boundary at which every group has what it reads there."""
        for side in self._sides:
            side.asked(request, local_tokens)
        skipped = getattr(request, "skip_reading_prefix_cache", False)
        if not self._may_load or local_tokens % self._step or skipped:
            return 0
        limit = request.num_tokens - 1
        for side in self._sides:
            if side.group.window is None:
                size = side.group.block_tokens
                limit = min(limit, side.stored_prefix(request, local_tokens // size) * size)
            else:
                limit = min(limit, side.hashed_tokens(request))
        for end in range(limit // self._step * self._step, local_tokens, -self._step):
            if all(self._reachable(side, request, local_tokens, end) for side in self._sides):
                return end - local_tokens
        return 0

    @staticmethod
    def _reachable(side: _GroupSide, request: Request, local_tokens: int, end: int) -> bool:
        group = side.group
        first = max(local_tokens, group.first_needed(end)) // group.block_tokens
        return group.window is None or side.stored_blocks(request, first, end // group.block_tokens)

    def allocated(self, request: Request, block_ids: tuple[list[int], ...], external_tokens: int) -> None:
        for side in self._sides:
            side.allocated(request, block_ids[side.group.index], external_tokens)

    def build_metadata(self, output: SchedulerOutput) -> HybridMetadata:
        return HybridMetadata(tuple(side.build_metadata(output) for side in self._sides))

    def step_reported(self, output: KVConnectorOutput) -> None:
        report = output.kv_connector_worker_meta
        reports = report.groups if isinstance(report, HybridReport) else {}
        for side in self._sides:
            side.step_reported(replace(output, kv_connector_worker_meta=reports.get(side.group.index)))
        self._purge_when_unused()

    def finished(self, request: Request) -> None:
        for side in self._sides:
            side.finished(request)

    def reset(self) -> bool:
        succeeded = self._namespace.reset()
        for side in self._sides:
            side.reset()
        self._purge_when_unused()
        return succeeded

    def close(self) -> None:
        self._namespace.close()

    def _purge_when_unused(self) -> None:
        if not any(side.loading for side in self._sides):
            self._namespace.purge()
