"""Statistics of HostOffloadConnector: plain counters, one kind of object on both roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.config import VllmConfig

#: Counted by workers, after the copy has succeeded or failed.
LOADED, LOAD_FAILURES, SAVED = "loaded_blocks", "failed_load_blocks", "saved_blocks"
#: Counted by the scheduler role.
EVICTED, REFUSED = "evicted_blocks", "refused_save_blocks"


class HostOffloadStats(KVConnectorStats):
    """Counters by name, in ``data``. Every counter can be missing, which means 0.

    vLLM merges the objects of all workers, then adds the scheduler role's (KVOutputAggregator.aggregate and
    Scheduler.update_from_output), sends ``data`` to the front-end, and rebuilds an object there. So nothing but sums
    is kept, and an object of either role can be added to one of the other.
    """

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter; nothing at all is recorded for 0."""
        if number:
            self.data[name] = self.data.get(name, 0) + number

    def is_empty(self) -> bool:
        return not self.data

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> HostOffloadStats:
        counters: Mapping[str, Any] = other.data
        for name, number in counters.items():
            self.count(name, number)
        return self

    def reduce(self) -> dict[str, int | float]:
        return dict(self.data)


class HostOffloadMetrics(KVConnectorPromMetrics):
    """A Prometheus counter for each of ours, in the front-end."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[Any], type[Any]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        # Always by the class that vLLM gives: with several front-ends the numbers are gathered elsewhere.
        self._counters = {
            name: self._counter_cls(
                name=f"vllm:host_offload_{name}", documentation=f"Host offload: {name}.", labelnames=labelnames
            )
            for name in (LOADED, LOAD_FAILURES, SAVED, EVICTED, REFUSED)
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, number in transfer_stats_data.items():
            self._counters[name].labels(*labels).inc(number)


class StatsCollector:
    """Collects for one role until vLLM asks."""

    def __init__(self) -> None:
        self._current = HostOffloadStats()

    def count(self, name: str, number: int = 1) -> None:
        self._current.count(name, number)

    def take(self) -> HostOffloadStats | None:
        """What was counted since the last call, or None if that is nothing."""
        if self._current.is_empty():
            return None
        taken, self._current = self._current, HostOffloadStats()
        return taken
