"""Which tokens are computed in the next step.

Requests that run come first, in order; when blocks run out, the last one is preempted. Then requests that wait are
admitted, those that hold blocks before others, until one does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched._state import SchedulerState
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, KVConnectorBlockState, NewRequestData, SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request, RequestStatus


@dataclass
class _Step:
    """What has been decided so far."""

    budget: int
    running: list[Request] = field(default_factory=list)
    new: list[Request] = field(default_factory=list)
    resumed: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, KVCacheBlocks] = field(default_factory=dict)
    sync_loads: bool = False
    skipped: list[tuple[FCFSRequestQueue, Request]] = field(default_factory=list)

    def take(self, request: Request, count: int, blocks: KVCacheBlocks) -> None:
        self.tokens[request.request_id] = count
        self.blocks[request.request_id] = blocks
        self.budget -= count


@dataclass
class _Admission:
    """How a request that waits begins: its local hit, and what the connector adds to it."""

    hits: KVCacheBlocks
    local: int
    computed: int
    external: int = 0
    asynchronous: bool = False
    looked_up: bool = False


class StepPlanner(SchedulerState):
    """Decides on steps."""

    finished_req_ids: set[str]
    reset_preempted_req_ids: set[str]

    # -- one step: who gets tokens ---------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Decide on the next step."""
        paused = self._pause_state is PauseState.PAUSED_ALL
        step = _Step(0 if paused else self.max_num_scheduled_tokens)
        self.kv_cache_manager.new_step_starts()
        self._schedule_running(step)
        if not step.preempted and not paused:
            self._admit(step)
        return self._told(step)

    def _schedule_running(self, step: _Step) -> None:
        index = 0
        while index < len(self.running) and step.budget > 0:
            request = self.running[index]
            count = 0 if self._ends_with_what_is_under_way(request) else self._open_tokens(request, step.budget)
            if count == 0:
                index += 1
                continue
            blocks = self._blocks_by_force(request, count, step)
            if blocks is None:
                break
            step.running.append(request)
            step.take(request, count, blocks)
            index += 1

    @staticmethod
    def _ends_with_what_is_under_way(request: Request) -> bool:
        promised = request.num_output_placeholders
        known = request.num_computed_tokens + 2 - promised
        return promised > 0 and known >= request.num_prompt_tokens + request.max_tokens

    def _open_tokens(self, request: Request, budget: int) -> int:
        open_tokens = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        return max(0, min(open_tokens, budget, self.max_model_len - request.num_computed_tokens - 1))

    def _blocks_by_force(self, request: Request, count: int, step: _Step) -> KVCacheBlocks | None:
        """Blocks for a running request, at the expense of those behind it."""
        while True:
            blocks = self.kv_cache_manager.allocate_slots(request, count)
            if blocks is not None:
                return blocks
            if self.connector is not None and self.connector.has_pending_block_frees():
                return None
            victim = self.running[-1]
            if not self._blocks_are_idle(victim):
                return None
            self.running.pop()
            self._preempt(victim, drop_output=self.requires_kv_delivery)
            step.preempted.append(victim)
            if victim is request:
                return None

    # -- one step: who is admitted ---------------------------------------------------------------------------------

    def _admit(self, step: _Step) -> None:
        while step.budget > 0:
            queue = self.kv_holding_waiting
            if not queue and self._pause_state is PauseState.UNPAUSED:
                queue = self.waiting
            if not queue or len(self.running) >= self.max_num_running_reqs:
                break
            request = queue.peek_request()
            if not self._may_proceed(request):
                self._skip(queue, step)
                continue
            begin = self._where_to_begin(request)
            if begin is None:
                self._skip(queue, step)
                continue
            count = 0 if begin.asynchronous else min(request.num_tokens - begin.computed, step.budget)
            assert begin.asynchronous or count > 0, f"{request.request_id} is admitted with nothing to compute"
            if not self._allocate(request, begin, count):
                break
            if begin.asynchronous:
                request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
                request.num_computed_tokens = begin.computed
                self._inflight_prefills.add(request)
                self._skip(queue, step)
                continue
            self._start(queue.pop_request(), begin, count, step)
        # Skipped ones go to the front of their queue again, in order.
        for queue in (self.kv_holding_waiting, self.waiting):
            back = [request for place, request in reversed(step.skipped) if place is queue]
            queue.prepend_requests(back)

    def _may_proceed(self, request: Request) -> bool:
        if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
            if not self._loads.promote(request):
                return False
            request.status = RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING
        # Output under way that somebody wants could be sampled a second time.
        return not (request.num_stale_output_tokens and not request.drop_stale_output)

    def _skip(self, queue: FCFSRequestQueue, step: _Step) -> None:
        request = queue.pop_request()
        self.deferred_waiting.add(request)
        holds = request.num_computed_tokens > 0 or request.status is RequestStatus.WAITING_FOR_REMOTE_KVS
        step.skipped.append((self.kv_holding_waiting if holds else self.waiting, request))

    def _where_to_begin(self, request: Request) -> _Admission | None:
        """Local and external hit; None if the connector does not know yet."""
        manager = self.kv_cache_manager
        if request.num_computed_tokens:
            return _Admission(manager.empty_kv_cache_blocks, 0, request.num_computed_tokens)
        hits, local, request.shared_prefix_boundary = manager.get_computed_blocks(request)
        begin = _Admission(hits, local, local, looked_up=True)
        if self.connector is not None:
            external, asynchronous = self.connector.get_num_new_matched_tokens(request, local)
            if request.skip_reading_prefix_cache:
                external, asynchronous = 0, False
            if external is None:
                return None
            begin.external, begin.asynchronous = external, asynchronous
        begin.computed = local + begin.external
        assert begin.computed <= request.num_tokens, (
            f"the connector offers {begin.external} tokens beyond {local} for a request of {request.num_tokens}"
        )
        if request.prefill_stats and request.num_preemptions <= 0:
            assert begin.computed <= request.num_prompt_tokens
            request.prefill_stats.set(request.num_prompt_tokens, local, begin.external)
        if begin.asynchronous:
            assert begin.external > 0, "the connector wants to load nothing asynchronously"
        return begin

    def _allocate(self, request: Request, begin: _Admission, count: int) -> bool:
        manager = self.kv_cache_manager
        reserved, groups = 0, ()
        if begin.asynchronous:
            # A load keeps its blocks until it is done, so that prompts under way must be able to do without them.
            reserved = sum(manager._blocks_until_done(each) for each in self._inflight_prefills)
            groups = self.connector.get_loaded_kv_cache_group_ids(request)
        blocks = manager.allocate_slots(
            request,
            count,
            num_new_computed_tokens=begin.local,
            new_computed_blocks=begin.hits,
            num_external_computed_tokens=begin.external,
            delay_cache_blocks=begin.asynchronous,
            full_sequence_must_fit=self.scheduler_config.scheduler_reserve_full_isl,
            reserved_blocks=reserved,
            has_scheduled_reqs=bool(self.running),
            skip_zeroing_group_ids=groups,
        )
        if blocks is None:
            return False
        if self.connector is not None:
            self.connector.update_state_after_alloc(request, manager.get_blocks(request.request_id), begin.external)
            self._count_hit(request, begin)
        if begin.looked_up:
            manager.record_prefix_cache_stats(request, begin.local)
        return True

    def _count_hit(self, request: Request, begin: _Admission) -> None:
        stats, queried = self.connector_prefix_cache_stats, request.num_tokens - begin.local
        if stats is None or not begin.looked_up or queried == 0:
            return
        preempted = request.num_preemptions > 0
        ask = begin.external and not preempted
        sources = self.connector.get_external_cache_hit_sources(request, begin.external) if ask else None
        stats.record(num_tokens=queried, num_hits=begin.external, preempted=preempted, hits_by_source=sources)

    def _start(self, request: Request, begin: _Admission, count: int, step: _Step) -> None:
        self.deferred_waiting.discard(request)
        self.running.append(request)
        step.sync_loads |= begin.external > 0
        (step.new if request.status is RequestStatus.WAITING else step.resumed).append(request)
        step.take(request, count, self.kv_cache_manager.get_blocks(request.request_id))
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = begin.computed
        if begin.computed + count < request.num_tokens:
            self._inflight_prefills.add(request)

    # -- one step: telling -----------------------------------------------------------------------------------------

    def _told(self, step: _Step) -> SchedulerOutput:
        total = sum(step.tokens.values())
        fresh, resumed = step.new, step.resumed
        if self.use_v2_model_runner:
            fresh, resumed = [*fresh, *resumed], []
        news = [
            NewRequestData.from_request(
                request,
                step.blocks[request.request_id].get_block_ids() or (),
                request._all_token_ids if self.use_v2_model_runner else None,
            )
            for request in fresh
        ]
        output = SchedulerOutput(
            scheduled_new_reqs=news,
            scheduled_cached_reqs=self._known_requests(step, resumed),
            num_scheduled_tokens=step.tokens,
            total_num_scheduled_tokens=total,
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs=self._items(step),
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
            preempted_req_ids=self.reset_preempted_req_ids,
            has_sync_kv_loads=step.sync_loads,
        )
        if not self.use_v2_model_runner:
            self.prev_step_scheduled_req_ids = set(step.tokens)
        if self.connector is not None:
            output.kv_connector_block_state = KVConnectorBlockState(
                set(step.tokens), self.kv_cache_manager.get_block_ids, {}
            )
            output.kv_connector_metadata = self.connector.build_connector_meta(output)
            output.kv_connector_block_state = None
        if self.defer_block_free and total > 0:
            self.sched_step_seq += 1
        self._update_after_schedule(output)
        return output

    def _items(self, step: _Step) -> dict[str, list[int]]:
        """Multimodal items that the workers have to encode in this step."""
        items: dict[str, list[int]] = {}
        for request_id, count in step.tokens.items():
            request = self.requests[request_id]
            found = self.encoder_cache_manager._to_encode(request, request.num_computed_tokens, count)
            if found:
                items[request_id] = found
        return items

    def _known_requests(self, step: _Step, resumed: list[Request]) -> CachedRequestData:
        known = CachedRequestData.make_empty()
        known.resumed_req_ids.update(request.request_id for request in resumed)
        for request in (*step.running, *resumed):
            request_id = request.request_id
            known.req_ids.append(request_id)
            known.new_block_ids.append(step.blocks[request_id].get_block_ids(allow_none=True))
            known.num_computed_tokens.append(request.num_computed_tokens)
            known.num_output_tokens.append(request.num_output_tokens + request.num_output_placeholders)
            if not self.use_v2_model_runner and request_id not in self.prev_step_scheduled_req_ids:
                known.all_token_ids[request_id] = request.all_token_ids.copy()
        return known

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """From here on the tokens of the step count as computed."""
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            request.num_computed_tokens += count
            request.num_in_flight_tokens += count
            if self.defer_block_free:
                request.last_sched_seq = self.sched_step_seq
            request.is_prefill_chunk = (
                request.num_computed_tokens < request.num_tokens + request.num_output_placeholders
            )
            if not request.is_prefill_chunk:
                self._inflight_prefills.discard(request)
        self.finished_req_ids = set()
        self.reset_preempted_req_ids = set()
