"""Legal: the failure of an asynchronous load is told at once, its end two steps later."""

from __future__ import annotations

from typing import Any

import stepwise


class FailsEarly(stepwise.Immediate):
    """Other parts of the same load are still under way when the first one has failed."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.failed: set[str] = set()
        self._later: list[set[str]] = [set(), set()]

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        loads = {load.job.request_id: load for load, _ in self._worker_side()._loads.values()}
        sent, received = super().get_finished(finished_req_ids)
        self.failed |= {request_id for request_id in received or () if loads[request_id].errors}
        self._later.append(received or set())
        return sent, self._later.pop(0)
