"""Statistics of ThresholdConnector: counters of its own, and beside them whatever the wrapped connector counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The wrapped connector's part of ``data``: the names by which its class is found again, and its own ``data``.
WRAPPED = "wrapped"


class ThresholdStats(KVConnectorStats):
    """Counters by name in ``data``, and the wrapped connector's statistics as plain data in ``data["wrapped"]``.

    The front-end rebuilds statistics from ``data`` by a class method (KVConnectorLogging.observe, 0.32.0), which knows
    no configuration. So ``data`` itself says which class can read the wrapped part. MultiConnector looks a child up by
    its class name alone, which works for classes that are registered in the factory only.
    """

    @classmethod
    def of(
        cls, counters: Mapping[str, int], wrapped: KVConnectorStats | None, config: KVTransferConfig
    ) -> ThresholdStats:
        """Own counters beside what the wrapped connector has handed out."""
        data: dict[str, Any] = dict(counters)
        if wrapped is not None:
            names = [config.kv_connector, config.kv_connector_module_path]
            data[WRAPPED] = {"class": names, "data": wrapped.to_dict()}
        return cls(data=data)

    @property
    def wrapped(self) -> KVConnectorStats | None:
        """The wrapped connector's statistics, rebuilt by its class; None if there are none, or it can't rebuild any."""
        part = self.data.get(WRAPPED)
        if part is None:
            return None
        name, module = part["class"]
        config = KVTransferConfig(kv_connector=name, kv_connector_module_path=module, kv_role="kv_both")
        return KVConnectorFactory.get_connector_class(config).build_kv_connector_stats(part["data"])

    @property
    def counters(self) -> dict[str, int]:
        return {name: number for name, number in self.data.items() if name != WRAPPED}

    def is_empty(self) -> bool:
        wrapped = self.wrapped
        return not self.counters and (wrapped is None or wrapped.is_empty())

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> ThresholdStats:
        for name, number in other.data.items():
            if name != WRAPPED:
                self.data[name] = self.data.get(name, 0) + number
        if WRAPPED in other.data:
            theirs = ThresholdStats(data={WRAPPED: other.data[WRAPPED]})
            mine, added = self.wrapped, theirs.wrapped
            if mine is not None and added is not None:
                part = {**self.data[WRAPPED], "data": mine.aggregate(added).to_dict()}
            else:
                part = other.data[WRAPPED]
            self.data[WRAPPED] = part
        return self

    def reduce(self) -> dict[str, int | float]:
        wrapped = self.wrapped
        return {**self.counters, **({} if wrapped is None else wrapped.reduce())}


class ThresholdPromMetrics(KVConnectorPromMetrics):
    """Gives the wrapped connector's metrics its part of the data, if it has any. The own counters are in the log only.

    It is there without any, too: up to 0.32.0 MultiConnector asserts that a child with statistics has metrics
    (MultiKVConnectorPromMetrics.observe).
    """

    def __init__(self, wrapped: KVConnectorPromMetrics | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wrapped = wrapped

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        part = transfer_stats_data.get(WRAPPED)
        if part is not None and self._wrapped is not None:
            self._wrapped.observe(part["data"], engine_idx)
