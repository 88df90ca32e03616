"""The requests of a scheduler, and what the engine asks of it besides steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.distributed.kv_events import EventPublisherFactory
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched._loads import LoadKeeper
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.metrics.stats import PrefixCacheStats
from vllm.v1.request import Request, RequestStatus


class SchedulerState:
    """Requests, queues, the block pool and the connector."""

    def __init__(
        self,
        vllm_config: Any,
        kv_cache_config: Any,
        structured_output_manager: Any,
        block_size: int,
        hash_block_size: int | None = None,
        mm_registry: Any = None,
        include_finished_set: bool = False,
        log_stats: bool = False,
    ) -> None:
        if kv_cache_config.needs_kv_cache_zeroing:
            raise NotSimulated("KV caches whose new blocks workers have to zero are not simulated")
        config = vllm_config.scheduler_config
        self.vllm_config = vllm_config
        self.scheduler_config = config
        self.cache_config = vllm_config.cache_config
        self.kv_cache_config = kv_cache_config
        self.log_stats = log_stats
        self.block_size = block_size
        self.max_num_running_reqs: int = config.max_num_seqs
        self.max_num_scheduled_tokens: int = config.max_num_batched_tokens
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.use_v2_model_runner: bool = vllm_config.use_v2_model_runner

        self.connector: Any = None
        self.connector_prefix_cache_stats: PrefixCacheStats | None = None
        self.recompute_kv_load_failures = True
        self.requires_kv_delivery = False
        # Blocks of a step under way may still be written by it, and a load into them is not ordered after that.
        self.defer_block_free = False
        transfer = vllm_config.kv_transfer_config
        if transfer is not None:
            self.connector = KVConnectorFactory.create_connector(
                config=vllm_config, role=KVConnectorRole.SCHEDULER, kv_cache_config=kv_cache_config
            )
            self.connector_prefix_cache_stats = PrefixCacheStats() if log_stats else None
            self.recompute_kv_load_failures = transfer.kv_load_failure_policy == "recompute"
            self.defer_block_free = vllm_config.max_concurrent_batches > 1 and transfer.is_kv_consumer
            self.requires_kv_delivery = self.connector.requires_kv_delivery
        self.kv_event_publisher = EventPublisherFactory.create(vllm_config.kv_events_config, 0)

        self.requests: dict[str, Request] = {}
        self.waiting = create_request_queue(SchedulingPolicy(config.policy))
        self.kv_holding_waiting = create_request_queue(SchedulingPolicy(config.policy))
        self.deferred_waiting: set[Request] = set()
        self.running: list[Request] = []
        # Told to the workers with the next step.
        self.finished_req_ids: set[str] = set()
        self.reset_preempted_req_ids: set[str] = set()
        self.prev_step_scheduled_req_ids: set[str] = set()
        # Prompts under way: loads, and chunks of which more will follow. They need their blocks before new loads do.
        self._inflight_prefills: set[Request] = set()
        self._pause_state = PauseState.UNPAUSED
        # Steps with tokens that were scheduled and whose results have been taken, and blocks that wait for the latter.
        self.sched_step_seq = self.processed_step_seq = 0
        self.deferred_frees: deque[tuple[int, list[KVCacheBlock]]] = deque()

        self.encoder_cache_manager = EncoderCacheManager(0)
        self.max_num_encoder_input_tokens = 0
        self.kv_cache_manager = KVCacheManager(
            kv_cache_config=kv_cache_config,
            max_model_len=self.max_model_len,
            scheduler_block_size=block_size,
            hash_block_size=block_size if hash_block_size is None else hash_block_size,
            max_in_flight_tokens=vllm_config.max_in_flight_tokens,
            enable_caching=self.cache_config.enable_prefix_caching,
            log_stats=log_stats,
            enable_kv_cache_events=bool(
                vllm_config.kv_events_config and vllm_config.kv_events_config.enable_kv_cache_events
            ),
            watermark=config.watermark,
        )
        self._loads = LoadKeeper(self)
        self.finished_recving_kv_req_ids = self._loads.arrived
        self.failed_recving_kv_req_ids = self._loads.failed
        if self.connector is not None:
            self.connector.bind_kv_cache_manager(self.kv_cache_manager)

    # -- requests come and go --------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        assert request.request_id not in self.requests, "duplicate request id"
        self.waiting.add_request(request)
        self.requests[request.request_id] = request
        if self.connector is not None:
            self.connector.on_new_request(request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests from outside; unknown ones and those that have ended are passed over."""
        assert RequestStatus.is_finished(finished_status)
        if request_ids is None:
            ids: Iterable[str] = list(self.requests)
        else:
            ids = (request_ids,) if isinstance(request_ids, str) else set(request_ids)
        known = (self.requests.get(request_id) for request_id in ids)
        ending = [request for request in known if request is not None and not request.is_finished()]
        self._leave_queues(ending)
        for request in ending:
            loading = False
            if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
                loading = not self._loads.forget(request.request_id)
            request.status = finished_status
            self._free_request(request, delay_free_blocks=loading)
        return ending

    def _leave_queues(self, requests: Iterable[Request]) -> None:
        gone = set(requests)
        if gone:
            self.running = [request for request in self.running if request not in gone]
            self.waiting.remove_requests(gone)
            self.kv_holding_waiting.remove_requests(gone)
            self.deferred_waiting -= gone

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> dict[str, Any] | None:
        """The request has ended; its blocks are freed unless somebody still needs them."""
        assert request.is_finished()
        self._inflight_prefills.discard(request)
        held, params = self._loads.tell_finished(request)
        self.finished_req_ids.add(request.request_id)
        if not delay_free_blocks and not held:
            self._free_blocks(request)
        return params

    def _free_blocks(self, request: Request) -> None:
        assert request.is_finished()
        self._free_request_blocks(request)
        del self.requests[request.request_id]

    def _blocks_are_idle(self, request: Request) -> bool:
        """Whether no step under way writes a request's blocks, as far as that matters."""
        return not self.defer_block_free or request.last_sched_seq <= self.processed_step_seq

    def _free_request_blocks(self, request: Request) -> None:
        if self._blocks_are_idle(request):
            self.kv_cache_manager.free(request)
            return
        blocks = self.kv_cache_manager.pop_blocks_for_free(request)
        if blocks:
            self.deferred_frees.append((self.sched_step_seq, blocks))

    def _free_what_waited(self) -> None:
        while self.deferred_frees and self.deferred_frees[0][0] <= self.processed_step_seq:
            _, blocks = self.deferred_frees.popleft()
            self.kv_cache_manager.block_pool.free_blocks(reversed(blocks))

    def _preempt(self, request: Request, drop_output: bool) -> None:
        """Take a running request's blocks; it begins anew when there is room. It has left ``running`` already."""
        assert request.status is RequestStatus.RUNNING
        self._free_request_blocks(request)
        self._inflight_prefills.discard(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.drop_stale_output = drop_output or (request.drop_stale_output and request.num_stale_output_tokens > 0)
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        request.num_preemptions += 1
        self.waiting.prepend_request(request)
        self.reset_preempted_req_ids.add(request.request_id)

    # -- the engine asks -------------------------------------------------------------------------------------------

    def get_request_counts(self) -> tuple[int, int]:
        """How many run, and how many wait."""
        return len(self.running), len(self.waiting) + len(self.kv_holding_waiting)

    def get_num_unfinished_requests(self) -> int:
        """Requests that can go on."""
        if self._pause_state is PauseState.PAUSED_ALL:
            return 0
        running, waiting = self.get_request_counts()
        return running + (len(self.kv_holding_waiting) if self._pause_state is PauseState.PAUSED_NEW else waiting)

    def has_unfinished_requests(self) -> bool:
        """Whether there are any."""
        return self.get_num_unfinished_requests() > 0

    def has_finished_requests(self) -> bool:
        """Whether the workers have not been told of an end, or blocks of an ended request are held."""
        held = self.connector is not None and len(self.requests) > sum(self.get_request_counts())
        return bool(self.finished_req_ids) or held

    def has_requests(self) -> bool:
        """Whether there is a reason for another step."""
        return (
            self.has_unfinished_requests()
            or self.has_finished_requests()
            or (self.connector is not None and self.connector.has_pending_push_work())
        )

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget all prefixes; on demand after preempting what runs, and in the connector too."""
        if reset_running_requests:
            while self.running:
                self._preempt(self.running.pop(), drop_output=True)
            self.prev_step_scheduled_req_ids.clear()
        done = self.kv_cache_manager.reset_prefix_cache()
        if reset_running_requests and not done:
            raise RuntimeError("Failed to reset KV cache even when all the running requests are preempted.")
        if reset_connector:
            done = self.reset_connector_cache() and done
        return done

    def reset_connector_cache(self) -> bool:
        """Ask the connector to forget what it has; False only if it says so."""
        if self.connector is None:
            return True
        if self.connector.reset_cache() is False:
            return False
        if self.connector_prefix_cache_stats is not None:
            self.connector_prefix_cache_stats.reset = True
        return True

    @property
    def pause_state(self) -> PauseState:
        """What may be scheduled."""
        return self._pause_state

    def set_pause_state(self, pause_state: PauseState) -> None:
        """Set it."""
        self._pause_state = pause_state

    def get_kv_connector(self) -> Any:
        """The connector's scheduler role."""
        return self.connector

    def shutdown(self) -> None:
        """The publisher first, then the connector."""
        self.kv_event_publisher.shutdown()
        if self.connector is not None:
            self.connector.shutdown()
