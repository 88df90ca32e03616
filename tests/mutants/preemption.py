"""Connectors that get one thing wrong when a request loses its blocks."""

from __future__ import annotations

from typing import Any

import stepwise


class IgnoresPreemptions(stepwise.SlowSaves):
    """vllm#29870 and #52360, bugs 46 and 47 (R12): saves go on in blocks that a preemption has given away."""

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        pass


class HurriesOnlyThePreempted(stepwise.SlowSaves):
    """R12: looks for saves of preempted requests, one step after their blocks have got a new owner."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._late: Any = None

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        late, self._late = self._late, kv_connector_metadata
        if late is not None:
            super().handle_preemptions(late)


class AllowsOneJobAtATime(stepwise.SlowSaves):
    """vllm#46014, bugs 49 (R6, R16): who is loaded has nothing under way, it thinks; a preempted one may have saves."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        saves = [save for save in self._scheduler_side()._saves.values() if save.request_id == request.request_id]
        assert not (saves and num_external_tokens), f"{len(saves)} saves of a request that is to be loaded"
        super().update_state_after_alloc(request, blocks, num_external_tokens)
