"""What becomes of the results of a step."""

from __future__ import annotations

import time
from typing import Any

from vllm.distributed.kv_events import KVEventBatch
from vllm.v1.core.sched._state import SchedulerState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus


class ResultTaker(SchedulerState):
    """Takes the results of steps."""

    connector_prefix_cache_stats: PrefixCacheStats | None

    # -- results ---------------------------------------------------------------------------------------------------

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take the results of a step: failed loads first, then tokens, then completed transfers."""
        reported = model_runner_output.kv_connector_output
        if self.defer_block_free and scheduler_output.total_num_scheduled_tokens > 0:
            self.processed_step_seq += 1
            self._free_what_waited()
        failed: set[str] = set()
        if reported:
            failed |= self._loads.failed_requests(reported.failed_recving or set())
            if reported.invalid_block_ids:
                failed |= self._loads.failed_blocks(reported.invalid_block_ids, scheduler_output.num_scheduled_tokens)
        outputs: dict[int, list[EngineCoreOutput]] = {}
        stopped: list[Request] = []
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            request = self._still_wanted(request_id, count, failed)
            if request is None:
                continue
            stale = request in self._stale_now
            index = model_runner_output.req_id_to_index[request_id]
            made = self._tokens_of(request, model_runner_output.sampled_token_ids[index], stale)
            if made is not None:
                outputs.setdefault(request.client_index, []).append(made)
                if made.finished:
                    stopped.append(request)
        self._leave_queues(stopped)
        if failed and not self.recompute_kv_load_failures:
            for request in self.finish_requests(failed, RequestStatus.FINISHED_ERROR):
                lost = EngineCoreOutput(request.request_id, [], finish_reason=request.get_finished_reason())
                outputs.setdefault(request.client_index, []).append(lost)
        if reported:
            self._loads.completed(reported)
        stats = self._connector_stats(reported)
        self._publish_events()
        return self._delivered(outputs, stats)

    def _still_wanted(self, request_id: str, count: int, failed: set[str]) -> Request | None:
        """The request whose results these are, if they are of any use."""
        self._stale_now: set[Request] = set()
        request = self.requests.get(request_id)
        if request is not None:
            request.num_in_flight_tokens -= count
            if request.num_stale_output_tokens > 0:
                request.num_stale_output_tokens -= count
                self._stale_now = {request}
        if request is None or request_id in failed or request.is_finished():
            return None
        return None if self._stale_now and request.drop_stale_output else request

    def _tokens_of(self, request: Request, sampled: list[int], stale: bool) -> EngineCoreOutput | None:
        tokens, stopped = self._update_request_with_output(request, sampled, is_stale=stale) if sampled else ([], False)
        if not tokens:
            return None
        stats = request.take_prefill_stats()
        if stats is not None:
            stats.finalize(self.kv_cache_manager.estimate_cached_tokens(request))
        made = EngineCoreOutput(request.request_id, tokens, stop_reason=request.stop_reason, prefill_stats=stats)
        if stopped:
            made.finish_reason = request.get_finished_reason()
            params = self._free_request(request)
            if stats is not None and params is not None and params.get("do_remote_prefill"):
                params["remote_prefill_cached_tokens"] = stats.num_cached_tokens
            made.kv_transfer_params = params
        return made

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        for number, token in enumerate(new_token_ids, 1):
            request.append_output_token_ids(token)
            if self._is_over(request, token):
                return new_token_ids[:number], True
        return new_token_ids, False

    def _is_over(self, request: Request, token: int) -> bool:
        wanted = request.sampling_params
        if token == wanted.eos_token_id or token in (wanted.stop_token_ids or ()):
            request.status = RequestStatus.FINISHED_STOPPED
            request.stop_reason = None if token == wanted.eos_token_id else token
        elif request.num_tokens >= self.max_model_len or request.num_output_tokens >= request.max_tokens:
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        return request.is_finished()

    def _connector_stats(self, reported: KVConnectorOutput | None) -> Any:
        stats = reported.kv_connector_stats if reported else None
        if self.connector is not None:
            own = self.connector.get_kv_connector_stats()
            if own is not None and not own.is_empty():
                stats = own if stats is None else stats.aggregate(own)
        return stats

    def _publish_events(self) -> None:
        events = self.kv_cache_manager.take_events()
        if self.connector is not None:
            events = [*events, *(self.connector.take_events() or ())]
        if events:
            self.kv_event_publisher.publish(KVEventBatch(ts=time.time(), events=events))

    def _delivered(self, outputs: dict[int, list[EngineCoreOutput]], stats: Any) -> dict[int, EngineCoreOutputs]:
        delivered = {client: EngineCoreOutputs(outputs=made) for client, made in outputs.items()}
        if self.log_stats:
            first = next(iter(delivered.values()), None) or delivered.setdefault(0, EngineCoreOutputs())
            first.scheduler_stats = self._stats(stats)
        return delivered

    def _stats(self, stats: Any) -> SchedulerStats:
        local, external = self.kv_cache_manager.make_prefix_cache_stats(), self.connector_prefix_cache_stats
        if external is not None:
            self.connector_prefix_cache_stats = PrefixCacheStats()
        waiting, deferred = self.get_request_counts()[1], len(self.deferred_waiting)
        return SchedulerStats(
            num_running_reqs=len(self.running),
            num_waiting_reqs=waiting - deferred,
            num_skipped_waiting_reqs=deferred,
            kv_cache_usage=self.kv_cache_manager.usage,
            prefix_cache_stats=local or PrefixCacheStats(),
            connector_prefix_cache_stats=external,
            kv_connector_stats=stats.to_dict() if stats else None,
        )
