"""What the scheduler has promised, handed out and had computed, as far as it decides what a connector may touch.

Fed by what the engine sees of scheduler and connector; knows nothing of memory or of the history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvconform.engine.vllm_engine.ownership import Load, Ownership
from kvconform.engine.vllm_engine.rows import ScheduledRequest

# Blocks of one KV cache group: (group, block ids).
GroupBlocks = tuple[int, list[int]]


class BlockLedger:
    """Loads, computed tokens, freshly handed out and failed blocks of one engine.

    ``external`` maps a request to the [first, last) positions that the connector loads for it in this residency;
    ``failed`` are blocks whose load was reported as failed and which no forward has filled since.
    """

    def __init__(self, ownership: Ownership) -> None:
        self.ownership = ownership
        self.external: dict[str, tuple[int, int]] = {}
        self.failed: set[int] = set()
        self._last_match: dict[str, tuple[int, bool]] = {}
        self._allocated: set[str] = set()
        self._fresh: list[GroupBlocks] = []
        self._fresh_loads: list[GroupBlocks] = []

    def begin_step(self) -> None:
        """Before schedule()."""
        self._allocated.clear()

    def matched(self, request_id: str, num_computed_tokens: int, asynchronous: bool) -> None:
        """The connector answered a match query; the last answer before an allocation counts (contract: ALLOC-03)."""
        self._last_match[request_id] = (num_computed_tokens, asynchronous)

    def allocated(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """update_state_after_alloc was called."""
        self._allocated.add(request.request_id)
        if num_external_tokens > 0:
            local, asynchronous = self._last_match[request.request_id]
            load = Load(local, local + num_external_tokens, asynchronous)
            self.ownership.loads[request.request_id] = load
            self.external[request.request_id] = (load.first, load.last)
            if asynchronous and request.kv_transfer_params is None:
                # A peer may start to write into the blocks of a producer/consumer transfer at once; a load of the
                # connector's own starts in start_load_kv of this step at the earliest.
                self._fresh_loads.extend(
                    (group, [block for block in ids[local // self.ownership.block_sizes[group] :] if block])
                    for group, ids in enumerate(blocks.get_block_ids())
                )
        elif request.num_computed_tokens == 0:
            self.external.pop(request.request_id, None)

    def scheduled(self, output: Any) -> dict[str, int]:
        """schedule() returned ``output``; the computed tokens before the step, per request in it."""
        ownership = self.ownership
        # First of all: a client may have used a finished request's id again in this very step.
        for request_id in output.finished_req_ids:
            ownership.computed.pop(request_id, None)
        cached = output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        # A request that reset_prefix_cache preempted may be admitted again in the same schedule().
        for request_id in set(output.preempted_req_ids or ()) - self._allocated:
            self.external.pop(request_id, None)
            ownership.loads.pop(request_id, None)
            ownership.computed.pop(request_id, None)
        for request_id, count in computed.items():
            load = ownership.loads.get(request_id)
            ownership.computed[request_id] = count if load is None else load.first
        for request_id in self._allocated - set(computed):
            # Admitted for an asynchronous load: nothing behind the local hit is computed.
            ownership.computed[request_id] = ownership.loads[request_id].first
        self._fresh = [*self._handed_out(output), *self._fresh_loads]
        self._fresh_loads = []
        return computed

    def take_fresh(self) -> list[GroupBlocks]:
        """The blocks that this step handed out anew, once; failures reported for their former life are forgotten."""
        fresh, self._fresh = self._fresh, []
        for _, blocks in fresh:
            self.failed.difference_update(blocks)
        return fresh

    def executed(self, requests: list[ScheduledRequest], failed: set[int], *, keep: bool = False) -> None:
        """The forward of ``requests`` ran, and ``failed`` blocks were reported; ``keep`` those of other workers."""
        if self.failed and not keep:
            self.failed -= self._filled(requests)
        self.failed |= failed

    def finished(self, requests: list[ScheduledRequest], received: set[str]) -> None:
        """The step is over: its synchronous loads are done, and so are the asynchronous ones of ``received``."""
        for request in requests:
            load = self.ownership.loads.get(request.request_id)
            if load is not None and not load.asynchronous:
                del self.ownership.loads[request.request_id]
            self.ownership.computed[request.request_id] = request.computed + request.scheduled
        for request_id in received:
            self.ownership.loads.pop(request_id, None)

    def _handed_out(self, output: Any) -> Iterator[GroupBlocks]:
        """Blocks handed out anew in this step, per group: everything behind the local hit."""
        sizes = self.ownership.block_sizes
        tables = [(new.req_id, new.num_computed_tokens, new.block_ids) for new in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        for request_id, computed, new_ids in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            if request_id in cached.resumed_req_ids:
                tables.append((request_id, computed, new_ids))
                continue
            for group, ids in enumerate(new_ids or ()):
                yield group, [block for block in ids if block]
        for request_id, computed, whole_table in tables:
            local = self.external.get(request_id, (computed, 0))[0]
            async_loaded = request_id in self._last_match and self._last_match[request_id][1]
            start = computed if async_loaded else local
            for group, ids in enumerate(whole_table):
                yield group, [block for block in ids[-(-start // sizes[group]) :] if block]

    def _filled(self, requests: list[ScheduledRequest]) -> set[int]:
        """Blocks whose last slot this step's forward wrote: whatever failed to load into them is computed anew."""
        filled: set[int] = set()
        for request in requests:
            for group, table in enumerate(request.block_ids):
                size = self.ownership.block_sizes[group]
                first, stop = request.computed // size, (request.computed + request.scheduled) // size
                filled.update(table[first:stop])
        return filled
