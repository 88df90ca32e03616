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
