"""Scheduling a step before the results of the one before are known."""

from __future__ import annotations

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus


class AsyncScheduler(Scheduler):
    """Counts on one token per request and step, and puts it in when it is there."""

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests[request_id]
            if not request.is_prefill_chunk:
                request.num_output_placeholders += 1

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        running = request.status is RequestStatus.RUNNING
        tokens, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if not is_stale:
            request.num_output_placeholders -= len(tokens)
            assert request.num_output_placeholders >= 0
        if running:
            self.kv_cache_manager.cache_blocks(request, request.num_computed_tokens - request.num_output_placeholders)
        return tokens, stopped
