"""The scheduler's dealings with asynchronous loads, failed loads and blocks that the connector keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import SupportsHMA
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus


class LoadKeeper:
    """Loads that have arrived and are not taken notice of yet, and those of them that have failed."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.arrived: set[str] = set()
        self.failed: set[str] = set()

    def promote(self, request: Request) -> bool:
        """Whether a request's load has arrived; if so, its blocks join the prefix cache."""
        request_id, manager = request.request_id, self._scheduler.kv_cache_manager
        if request_id not in self.arrived:
            return False
        if request_id in self.failed and not request.num_computed_tokens:
            # Nothing is left of it, and maybe there is a local hit by now.
            manager.free(request)
        else:
            manager.cache_blocks(request, request.num_computed_tokens)
        self.failed.discard(request_id)
        # The last token has to be computed, or else there is nothing to sample from.
        request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
        self.arrived.remove(request_id)
        return True

    def forget(self, request_id: str) -> bool:
        """A request ends while it loads; whether its load had arrived."""
        arrived = request_id in self.arrived
        self.arrived.discard(request_id)
        self.failed.discard(request_id)
        return arrived

    def completed(self, reported: KVConnectorOutput) -> None:
        """The workers have completed transfers."""
        scheduler = self._scheduler
        if scheduler.connector is not None:
            scheduler.connector.update_connector_output(reported)
        for request_id in reported.finished_recving or ():
            assert request_id in scheduler.requests, f"a load of the unknown request {request_id} has ended"
            request = scheduler.requests[request_id]
            if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
                self.arrived.add(request_id)
            else:
                assert request.is_finished(), f"a load of {request_id} has ended, which is {request.status}"
                scheduler._free_blocks(request)
        for request_id in reported.finished_sending or ():
            assert request_id in scheduler.requests, f"a save of the unknown request {request_id} has ended"
            scheduler._free_blocks(scheduler.requests[request_id])

    # -- failures --------------------------------------------------------------------------------------------------

    def failed_requests(self, request_ids: Iterable[str]) -> set[str]:
        """Loads failed as a whole. Returns the requests that have to end."""
        scheduler = self._scheduler
        known = (scheduler.requests.get(request_id) for request_id in request_ids)
        hit = [request for request in known if request and request.status is RequestStatus.WAITING_FOR_REMOTE_KVS]
        if not scheduler.recompute_kv_load_failures:
            return {request.request_id for request in hit}
        for request in hit:
            request.num_computed_tokens = 0
            self.failed.add(request.request_id)
        return set()

    def failed_blocks(self, blocks: set[int], scheduled: dict[str, int]) -> set[str]:
        """Blocks were not loaded. Returns the requests whose results of this step are worthless."""
        scheduler = self._scheduler
        if len(scheduler.kv_cache_config.kv_cache_groups) > 1:
            raise RuntimeError(
                "block ids mean nothing with several KV cache groups: failed loads have to be reported as "
                "KVConnectorTransferResults.failed_recving"
            )
        loading = [
            request
            for request in scheduler.kv_holding_waiting
            if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS
        ]
        waiting, _ = self._cut_back(loading, blocks, scheduled)
        running, lost = self._cut_back(scheduler.running, blocks, scheduled)
        if not scheduler.recompute_kv_load_failures:
            if lost:
                scheduler.kv_cache_manager.evict_blocks(lost)
            return waiting | running
        self.failed |= waiting
        return running

    def _cut_back(
        self, requests: Iterable[Request], blocks: set[int], scheduled: dict[str, int]
    ) -> tuple[set[str], set[int]]:
        """Let requests have computed only what is before their first failed block.

        Returns the requests, and their blocks from there on. Of requests that share a failed block the first one
        computes it for all.
        """
        size, manager = self._scheduler.block_size, self._scheduler.kv_cache_manager
        affected: set[str] = set()
        lost: set[int] = set()
        somebody_elses: set[int] = set()
        for request in requests:
            (table,) = manager.get_block_ids(request.request_id)
            computed = request.num_computed_tokens - scheduled.get(request.request_id, 0)
            failed = [index for index, block in enumerate(table[: -(computed // -size)]) if block in blocks]
            if not failed:
                continue
            affected.add(request.request_id)
            own = [index for index in failed if table[index] not in somebody_elses]
            somebody_elses.update(table[index] for index in own)
            if own:
                request.num_computed_tokens = own[0] * size
                lost.update(table[own[0] :])
            else:
                request.num_computed_tokens = computed
        return affected, lost

    # -- the end of a request --------------------------------------------------------------------------------------

    def tell_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        """Ask the connector whether it keeps the blocks of a request that has ended."""
        scheduler, manager = self._scheduler, self._scheduler.kv_cache_manager
        connector = scheduler.connector
        if connector is None:
            return False, None
        manager.remove_skipped_blocks(
            request.request_id,
            max(0, request.num_computed_tokens - request.num_in_flight_tokens),
            request.num_prompt_tokens,
        )
        ids = manager.get_block_ids_for_computed_tokens(request.request_id, request.num_computed_tokens)
        if isinstance(connector, SupportsHMA):
            held, params = connector.request_finished_all_groups(request, ids)
        else:
            (only,) = ids
            held, params = connector.request_finished(request, only)
        return held, params
