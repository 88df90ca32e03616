"""Statistics of a connector on their way to the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.logger import init_logger

logger = init_logger(__name__)

PromMetric: TypeAlias = Any
PromMetricT = TypeVar("PromMetricT")


@dataclass
class KVConnectorStats:
    """What was counted since the last time; ``data`` has to survive serialisation."""

    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What is sent to the front-end."""
        return self.data

    def reset(self) -> None:
        """Begin anew."""
        raise NotImplementedError

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Take in another object."""
        raise NotImplementedError

    def reduce(self) -> dict[str, int | float]:
        """A few numbers for the log."""
        raise NotImplementedError

    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        raise NotImplementedError


class KVConnectorLogging:
    """The front-end's side: rebuilds statistics, sums them up, logs them now and then."""

    def __init__(self, kv_transfer_config: Any) -> None:
        if kv_transfer_config and kv_transfer_config.kv_connector:
            self.connector_cls = KVConnectorFactory.get_connector_class(kv_transfer_config)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.transfer_stats_accumulator: KVConnectorStats | None = None

    def observe(self, transfer_stats_data: dict[str, Any]) -> None:
        """Of one step."""
        stats = self.connector_cls.build_kv_connector_stats(transfer_stats_data)
        known = self.transfer_stats_accumulator
        if stats is not None:
            self.transfer_stats_accumulator = stats if known is None else known.aggregate(stats)

    def log(self, log_fn: Callable[..., Any] = logger.info) -> None:
        """Say what there is, and begin anew."""
        stats = self.transfer_stats_accumulator
        if stats and not stats.is_empty():
            log_fn("KV Transfer metrics: %s", ", ".join(f"{name}={value}" for name, value in stats.reduce().items()))
            self.reset()


class KVConnectorPromMetrics:
    """Metrics of a connector for Prometheus."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._gauge_cls = metric_types[Gauge]
        self._counter_cls = metric_types[Counter]
        self._histogram_cls = metric_types[Histogram]
        self._labelnames = labelnames
        self.per_engine_labelvalues = per_engine_labelvalues

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Of one step."""
        raise NotImplementedError


class KVConnectorProm:
    """The front-end's side of them: has the class build them, and passes statistics on."""

    _gauge_cls: Any = None
    _counter_cls: Any = None
    _histogram_cls: Any = None

    def __init__(
        self, vllm_config: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.prom_metrics: KVConnectorPromMetrics | None = None
        kv_transfer_config = vllm_config.kv_transfer_config
        if kv_transfer_config and kv_transfer_config.kv_connector:
            connector_cls = KVConnectorFactory.get_connector_class(kv_transfer_config)
            metric_types = {
                Gauge: self._gauge_cls or Gauge,
                Counter: self._counter_cls or Counter,
                Histogram: self._histogram_cls or Histogram,
            }
            self.prom_metrics = connector_cls.build_prom_metrics(
                vllm_config, metric_types, labelnames, per_engine_labelvalues
            )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Of one step."""
        if self.prom_metrics is not None:
            self.prom_metrics.observe(transfer_stats_data, engine_idx)
