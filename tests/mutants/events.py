"""Connectors that get one thing wrong in their KV cache events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVConnectorKVEvents

from kvconform.reference._host_pool import BlockStory
from kvconform.reference.host_offload import HostOffloadConnector


class RepeatsEvents(HostOffloadConnector):
    """R29: events are handed out and kept."""

    def take_events(self) -> Any:
        kept = self.__dict__.setdefault("_kept", [])
        kept.extend(super().take_events())
        return list(kept)


class TakesNone(HostOffloadConnector):
    """R29: None where there is nothing: MultiConnector iterates over it."""

    def take_events(self) -> Any:
        return super().take_events() or None


class MakesEventsOfItsOwn(HostOffloadConnector):
    """R29: a class that no subscriber knows."""

    def take_events(self) -> Any:
        return [{"stored": list(map(str, e.block_hashes))} for e in super().take_events() if hasattr(e, "token_ids")]


class TellsNobodyOfEvictions(HostOffloadConnector):
    """R29: what is stored anew after an eviction was never said to be gone."""

    def take_events(self) -> Any:
        return [event for event in super().take_events() if not isinstance(event, BlockRemoved)]


class LabelsItsPoolAsGPU(HostOffloadConnector):
    """vllm#43468, bugs 155 (R29): a shared pool's events name the engine's own cache."""

    def take_events(self) -> Any:
        events = super().take_events()
        for event in events:
            if hasattr(event, "medium"):
                event.medium = "GPU"
        return events


class LosesTheTokens(HostOffloadConnector):
    """vllm#54325, bugs 155 (R29): what the request knew is gone when the event is made."""

    def take_events(self) -> Any:
        events = super().take_events()
        for event in events:
            if isinstance(event, BlockStored):
                event.token_ids = []
        return events


class NamesThePreviouslyStoredAsParent(HostOffloadConnector):
    """vllm-ascend#12002, bugs 158 (R29): the parent is the block stored before, not the block before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            tell, last = self._scheduler._story, [None]

            def told(step: int, save_id: int, block_id: int) -> BlockStory:
                story = replace(tell(step, save_id, block_id), parent_hash=last[0])
                last[0] = story.block_hash
                return story

            self._scheduler._story = told  # type: ignore[method-assign]


class ForgetsTheAdapter(HostOffloadConnector):
    """R29: events of a LoRA adapter's blocks look like those of the base model."""

    def take_events(self) -> Any:
        events = super().take_events()
        for event in events:
            if isinstance(event, BlockStored):
                event.lora_name = None
        return events


class SendsAListFromItsWorkers(HostOffloadConnector):
    """R29: the aggregator asks for a KVConnectorKVEvents."""

    def get_kv_connector_kv_cache_events(self) -> Any:
        return [] if self._worker is not None else None


@dataclass
class _Events(KVConnectorKVEvents):
    events: list[Any]
    workers: int = 1

    def add_events(self, events: list[Any]) -> None:
        self.events += events

    def aggregate(self) -> Any:
        return self

    def increment_workers(self, count: int = 1) -> None:
        self.workers += count

    def get_all_events(self) -> list[Any]:
        return self.events

    def get_number_of_workers(self) -> int:
        return self.workers

    def clear_events(self) -> None:
        self.events = []

    def merge(self, other: Any) -> Any:
        self.events += other.events
        return self


class KeepsWorkerEventsToItself(HostOffloadConnector):
    """R29: workers report events, and the scheduler role never looks at them."""

    _told = False

    def get_kv_connector_kv_cache_events(self) -> Any:
        if self._told or self._worker is None:
            return None
        self._told = True
        return _Events([BlockRemoved(block_hashes=[b"worker"], medium="CPU")])
