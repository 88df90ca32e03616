"""Legal statistics: beside counters a level, of which the last one counts."""

from __future__ import annotations

from typing import Any

from kvconform.reference._host_stats import HostOffloadStats
from kvconform.reference.host_offload import HostOffloadConnector


class _Level(HostOffloadStats):
    """``level`` is replaced when it is merged, the counters are added; as OffloadingConnectorStats has it (0.32.0)."""

    def aggregate(self, other: Any) -> Any:
        level = other.data.get("level", self.data.get("level"))
        super().aggregate(other)
        if level is not None:
            self.data["level"] = level
        return self


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
