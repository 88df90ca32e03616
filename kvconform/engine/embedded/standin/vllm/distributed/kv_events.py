"""Events about blocks that appear in a cache and leave it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import msgspec

from kvconform.engine.protocol import NotSimulated

MEDIUM_GPU = "GPU"
MEDIUM_CPU = "CPU"
MEDIUM_STORAGE = "STORAGE"


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):  # type: ignore[call-arg]
    """Events of one moment."""

    ts: float
    events: list[Any]
    data_parallel_rank: int | None = None


class KVCacheEvent(msgspec.Struct, omit_defaults=True, gc=False, tag=True):  # type: ignore[call-arg]
    """Of any kind."""


class BlockStored(KVCacheEvent):
    """Blocks can be found now."""

    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None

    def __hash__(self) -> int:
        lists = tuple(self.block_hashes), tuple(self.token_ids), tuple(self.extra_keys or ())
        return hash((*lists, self.parent_block_hash, self.block_size, self.lora_id, self.medium, self.group_idx))


class BlockRemoved(KVCacheEvent):
    """Blocks cannot be found any more."""

    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.block_hashes), self.medium, self.group_idx, self.locality, self.ownership))


class AllBlocksCleared(KVCacheEvent):
    """No block can be found any more."""


class KVEventBatch(EventBatch):
    """Events about blocks."""

    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


class KVEventAggregator:
    """Counts how many workers have told of an event."""

    def __init__(self, num_workers: int) -> None:
        if num_workers <= 0:
            raise ValueError("num_workers must be greater than zero.")
        self._counted: Counter[KVCacheEvent] = Counter()
        self._num_workers = num_workers

    def add_events(self, events: list[KVCacheEvent]) -> None:
        """Of one worker."""
        if not isinstance(events, list):
            raise TypeError("events must be a list of KVCacheEvent.")
        self._counted.update(events)

    def get_common_events(self) -> list[KVCacheEvent]:
        """What all workers have told of."""
        return [event for event, times in self._counted.items() if times == self._num_workers]

    def get_all_events(self) -> list[KVCacheEvent]:
        """What any of them has told of, as often as it was told."""
        return list(self._counted.elements())

    def clear_events(self) -> None:
        """Begin anew."""
        self._counted.clear()

    def increment_workers(self, count: int = 1) -> None:
        """There are more."""
        if count <= 0:
            raise ValueError("count must be positive.")
        self._num_workers += count

    def reset_workers(self) -> None:
        """There is one."""
        self._num_workers = 1

    def get_number_of_workers(self) -> int:
        """How many there are."""
        return self._num_workers


class KVConnectorKVEvents(ABC):
    """Events of workers on their way to the scheduler."""

    @abstractmethod
    def add_events(self, events: list[KVCacheEvent]) -> None:
        """Of another worker."""

    @abstractmethod
    def aggregate(self) -> KVConnectorKVEvents:
        """Make one of many."""

    @abstractmethod
    def increment_workers(self, count: int = 1) -> None:
        """There are more workers."""

    @abstractmethod
    def get_all_events(self) -> list[KVCacheEvent]:
        """All events."""

    @abstractmethod
    def get_number_of_workers(self) -> int:
        """How many workers there are."""

    @abstractmethod
    def clear_events(self) -> None:
        """Begin anew."""

    def merge(self, other: KVConnectorKVEvents) -> KVConnectorKVEvents:
        """Take another object's events."""
        self.add_events(other.get_all_events())
        return self


class EventPublisher(ABC):
    """Where batches go."""

    def __init__(self, data_parallel_rank: int = 0) -> None:
        self._data_parallel_rank = data_parallel_rank

    @abstractmethod
    def publish(self, events: EventBatch) -> None:
        """Take a batch."""

    @abstractmethod
    def shutdown(self) -> None:
        """The end."""

    def get_publisher_config(self) -> Any:
        """How it is set up."""
        return None


class NullEventPublisher(EventPublisher):
    """Nowhere."""

    def publish(self, events: EventBatch) -> None:
        """Dropped."""

    def shutdown(self) -> None:
        """Nothing to end."""


class EventPublisherFactory:
    """Makes the publisher that the configuration asks for."""

    @classmethod
    def create(cls, config: Any, data_parallel_rank: int = 0) -> EventPublisher:
        """The null publisher; others are not simulated."""
        if config is not None and config.enable_kv_cache_events and config.publisher != "null":
            raise NotSimulated(f"the event publisher {config.publisher!r} is not simulated by the engine 'embedded'")
        return NullEventPublisher()
