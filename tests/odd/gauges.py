"""Legal statistics: beside counters a level, of which the last one counts."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvconform.reference._host_stats import HostOffloadMetrics, HostOffloadStats
from kvconform.reference.host_offload import HostOffloadConnector


class _Level(HostOffloadStats):
    """``level`` is replaced when it is merged, the counters are added; as OffloadingConnectorStats has it (0.32.0)."""

    def aggregate(self, other: Any) -> Any:
        level = other.data.get("level", self.data.get("level"))
        super().aggregate(other)
        if level is not None:
            self.data["level"] = level
        return self


class _LevelMetrics(HostOffloadMetrics):
    """A Prometheus gauge beside the counters."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._level = self._gauge_cls(
            name="vllm:states_a_level", documentation="How far it got.", labelnames=labelnames
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        counters = dict(transfer_stats_data)
        level = counters.pop("level", None)
        super().observe(counters, engine_idx)
        if level is not None:
            self._level.labels(*self.per_engine_labelvalues[engine_idx]).set(level)


class StatesALevel(HostOffloadConnector):
    """The scheduler role states how far it got, a level that goes up and down."""

    _steps = 0

    def get_kv_connector_stats(self) -> Any:
        stats = super().get_kv_connector_stats()
        own = {} if stats is None else dict(stats.data)
        if self._worker is None:
            self._steps += 1
            own["level"] = self._steps % 5 + 1
        return _Level(data=own) if own else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        return _Level(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> Any:
        return _LevelMetrics(*args)


if "StatesALevel" not in KVConnectorFactory._registry:
    KVConnectorFactory.register_connector("StatesALevel", __name__, "StatesALevel")
