"""What the two roles of PinnedOffloadConnector tell each other; plain frozen dataclasses, as everywhere here."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from ._async_messages import Hold


@dataclass(frozen=True)
class PinnedLoad:
    """Fill blocks of one request from slots: (block, slot) each. ``now``: this step's forward reads them."""

    load_id: int
    request_id: str
    places: tuple[tuple[int, int], ...]
    now: bool = False


@dataclass(frozen=True)
class PinnedSave:
    """Copy a block to a slot."""

    save_id: int
    block: int
    slot: int


@dataclass(frozen=True)
class PinnedMetadata(KVConnectorMetadata):
    """What is new in one step; ``fences`` are saves that must be over when ``handle_preemptions`` returns."""

    loads: tuple[PinnedLoad, ...] = ()
    saves: tuple[PinnedSave, ...] = ()
    fences: frozenset[int] = frozenset()
    holds: tuple[Hold, ...] = ()


@dataclass(frozen=True)
class PinnedReport(KVConnectorWorkerMetadata):
    """How many ranks are done with which loads and saves since the last report, and which saves came to nothing."""

    loads: dict[int, int] = field(default_factory=dict)
    saves: dict[int, int] = field(default_factory=dict)
    lost: frozenset[int] = frozenset()

    def aggregate(self, other: KVConnectorWorkerMetadata) -> PinnedReport:
        assert isinstance(other, PinnedReport)
        return PinnedReport(_added(self.loads, other.loads), _added(self.saves, other.saves), self.lost | other.lost)


def _added(votes: dict[int, int], more: dict[int, int]) -> dict[int, int]:
    return {key: votes.get(key, 0) + more.get(key, 0) for key in votes | more}
