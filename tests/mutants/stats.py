"""Connectors that get one thing wrong in their statistics."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvconform.reference._host_stats import HostOffloadStats
from kvconform.reference.host_offload import HostOffloadConnector


class _Own(HostOffloadConnector):
    """Hands out statistics of a class of its own."""

    kind: type[HostOffloadStats] = HostOffloadStats

    def get_kv_connector_stats(self) -> Any:
        stats = super().get_kv_connector_stats()
        return None if stats is None else self.kind(data=stats.data)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        return cls.kind(data=dict(data or {}))


class NeverResetsItsCounters(HostOffloadConnector):
    """R28: what was handed out once is handed out again with every step."""

    def get_kv_connector_stats(self) -> Any:
        if self._worker is None:
            return super().get_kv_connector_stats()
        new = self._worker.stats.take()
        total = self.__dict__.setdefault("_total", HostOffloadStats())
        if new is not None:
            total.aggregate(new)
        return HostOffloadStats(data=dict(total.data))


class HandsOutADict(HostOffloadConnector):
    """R28: plain data instead of a KVConnectorStats."""

    def get_kv_connector_stats(self) -> Any:
        stats = super().get_kv_connector_stats()
        return None if stats is None or self._worker is None else stats.data


class KnowsOnlyItsOwnCounters(_Own):
    """R28: aggregate of the worker's object expects the worker's counters in the other one, too."""

    class kind(HostOffloadStats):  # noqa: N801
        def aggregate(self, other: Any) -> Any:
            if "saved_blocks" in self.data or "loaded_blocks" in self.data:
                assert set(other.data) & {"saved_blocks", "loaded_blocks", "failed_load_blocks"}, sorted(other.data)
            return super().aggregate(other)


class MergesInPlaceOnly(_Own):
    """R28: aggregate changes itself and returns nothing."""

    class kind(HostOffloadStats):  # noqa: N801
        def aggregate(self, other: Any) -> Any:
            super().aggregate(other)


class KeepsTheLastNumber(_Own):
    """R28: aggregate overwrites where it should add, so the totals depend on the order."""

    class kind(HostOffloadStats):  # noqa: N801
        def aggregate(self, other: Any) -> Any:
            self.data = {**self.data, **other.data}
            return self


class HoldsAnObjectThatMsgpackCannotCarry(_Own):
    """R28: the payload leaves the engine core with an object in it."""

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> None:
        return None

    class kind(HostOffloadStats):  # noqa: N801
        def to_dict(self) -> dict[str, Any]:
            return {**self.data, "since": complex(0, 1)}


class IsDroppedInTheFrontEnd(HostOffloadConnector):
    """R28: statistics are collected, but nobody can rebuild them."""

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        return None


class ReducesToNestedTables(_Own):
    """R28: the log line shows a table in a table."""

    class kind(HostOffloadStats):  # noqa: N801
        def reduce(self) -> Any:
            return {"blocks": dict(self.data)}


class CountsBelowZero(HostOffloadConnector):
    """LMCache#2912, bugs 154 (R2, R28): what was computed before is taken off, although more may be offered later."""

    def get_kv_connector_stats(self) -> Any:
        stats = super().get_kv_connector_stats()
        if stats is not None and "loaded_blocks" in stats.data:
            stats.data["waited_blocks"] = stats.data.get("saved_blocks", 0) - stats.data["loaded_blocks"] - 1
        return stats

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> None:
        return None


class MeasuresEverything(HostOffloadConnector):
    """R28: observe looks up every counter, and not every step has counted all of them."""

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> Any:
        metrics = super().build_prom_metrics(*args)
        observe = metrics.observe

        def complete(data: dict[str, Any], engine_idx: int = 0) -> None:
            observe({name: data[name] for name in ("saved_blocks", "loaded_blocks")}, engine_idx)

        metrics.observe = complete  # type: ignore[method-assign]
        return metrics


class MakesItsOwnMetrics(HostOffloadConnector):
    """R28: counters of prometheus_client itself, which vLLM can't replace where front-ends are several processes."""

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Any, *args: Any) -> Any:
        from prometheus_client import Counter

        return super().build_prom_metrics(vllm_config, {**metric_types, Counter: Counter}, *args)


class NobodyKnowsItsName(HostOffloadConnector):
    """R28, R33: has statistics, and the factory has never heard of the class."""


class HasNoMetrics(HostOffloadConnector):
    """vllm#43828, bugs 151 (R28, R33): has statistics and no Prometheus metrics, on which MultiConnector insists."""

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> None:
        return None


if "HasNoMetrics" not in KVConnectorFactory._registry:
    KVConnectorFactory.register_connector("HasNoMetrics", __name__, "HasNoMetrics")
