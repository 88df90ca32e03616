"""KV cache events of a connector, compared with the requests whose blocks they are about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvconform.engine.instrument import describe_error

Problem = tuple[str, str, str]
#: Which copy of a block an event is about: hash, medium, group, owner.
Place = tuple[Any, Any, Any, Any]


@dataclass
class EventReader:
    """Follows what is said to be stored. vLLM's block hashes are understood; a connector may use its own.

    ``hash_tokens`` is how many tokens each of vLLM's hashes covers. A connector may store chunks of several.
    """

    hash_tokens: int
    _requests: dict[int, Any] = field(default_factory=dict)
    _held: set[Place] = field(default_factory=set)
    _seen: list[Any] = field(default_factory=list)
    _of_workers: list[Any] = field(default_factory=list)

    def know(self, request: Any) -> None:
        """A request whose blocks events may be about; its hashes grow with it."""
        self._requests[id(request)] = request

    def of_worker(self, events: Any) -> tuple[Problem, ...]:
        """What get_kv_connector_kv_cache_events returned."""
        from vllm.distributed.kv_events import KVConnectorKVEvents

        if not isinstance(events, KVConnectorKVEvents):
            kind = f"{type(events).__module__}.{type(events).__qualname__}"
            return (("EVT-03", "None or a KVConnectorKVEvents", f"the worker returned a {kind}"),)
        self._of_workers += events.get_all_events()
        return ()

    def lost(self) -> Iterator[Problem]:
        """Events of workers that never came out of the scheduler role."""
        missing = [event for event in self._of_workers if event not in self._seen]
        if missing:
            expected = "events of workers come out of take_events, which alone is published"
            yield (
                "EVT-04",
                expected,
                f"{len(missing)} of {len(self._of_workers)} never did, e.g. {str(missing[0])[:160]}",
            )

    def published(self, batch: Any) -> tuple[int, int, tuple[Problem, ...]]:
        """How many blocks a batch says are stored and removed, and what is wrong with it."""
        import msgspec
        from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

        stored = removed = 0
        problems: list[Problem] = []
        try:
            msgspec.msgpack.Encoder().encode(batch)
        except Exception as error:
            text = f"encoding the batch for the publisher raised {describe_error(error)[0]}"
            problems.append(("EVT-02", "events of plain values", text))
        for event in batch.events:
            if any(event is known for known in self._seen):
                expected = "every event handed out once"
                problems.append(("EVT-01", expected, f"take_events returned again {str(event)[:160]}"))
                continue
            self._seen.append(event)
            if isinstance(event, BlockStored):
                stored += len(event.block_hashes)
                problems += [*self._stored(event), *self._told(event)]
            elif isinstance(event, BlockRemoved):
                removed += len(event.block_hashes)
                problems += self._removed(event)
            elif isinstance(event, AllBlocksCleared):
                self._held.clear()
            else:
                kind = f"{type(event).__module__}.{type(event).__qualname__}"
                expected = "BlockStored, BlockRemoved or AllBlocksCleared of vllm.distributed.kv_events"
                problems.append(("EVT-02", expected, f"take_events gave a {kind}"))
        return stored, removed, tuple(dict.fromkeys(problems))

    def _places(self, event: Any) -> list[Place]:
        extra = (event.medium, event.group_idx, getattr(event, "ownership", None))
        return [(block_hash, *extra) for block_hash in event.block_hashes]

    def _stored(self, event: Any) -> Iterator[Problem]:
        places = self._places(event)
        again = [place for place in places if place in self._held]
        self._held.update(places)
        if again:
            expected = "one stored event when a key appears"
            yield "EVT-07", expected, f"{_name(again[0])} is said to be stored a second time, without a removal between"

    def _removed(self, event: Any) -> Iterator[Problem]:
        places = self._places(event)
        unknown = [place for place in places if place not in self._held]
        self._held.difference_update(places)
        if unknown:
            expected = "a removed event only for what a stored event has named, on the same medium"
            yield "EVT-07", expected, f"{_name(unknown[0])} is said to be removed"

    def _told(self, event: Any) -> Iterator[Problem]:
        """What a stored event says of its blocks."""
        if event.medium == "GPU":
            expected = "the medium that holds the block, which is not the engine's own cache"
            yield "EVT-08", expected, "the medium of a stored event is GPU"
        truth = self._truth()
        size, parent = event.block_size, event.parent_block_hash
        for index, block_hash in enumerate(event.block_hashes):
            if block_hash not in truth or size % self.hash_tokens:
                return
            request, end = truth[block_hash]
            start = end - size
            tokens = list(request.all_token_ids[max(0, start) : end])
            said = list(event.token_ids[index * size : (index + 1) * size])
            if said != tokens:
                yield "EVT-08", f"the {len(tokens)} token ids of the block, {tokens[:4]}...", f"{len(said)}: {said[:4]}"
            before = self._hashes(request)[start // self.hash_tokens - 1] if start > 0 else None
            if parent != before:
                expected = f"the parent {_short(before)}, the block before it in the sequence"
                yield "EVT-08", expected, f"the parent is {_short(parent)}"
            lora = None if request.lora_request is None else request.lora_request.lora_name
            if event.lora_name != lora:
                yield "EVT-08", f"the LoRA name {lora!r}", f"it is {event.lora_name!r}"
            parent = block_hash

    def _truth(self) -> dict[Any, tuple[Any, int]]:
        """vLLM's own block hash -> a request that has it, and the number of its tokens up to the end of that block."""
        known: dict[Any, tuple[Any, int]] = {}
        for request in self._requests.values():
            for index, block_hash in enumerate(self._hashes(request), 1):
                known.setdefault(block_hash, (request, index * self.hash_tokens))
        return known

    @staticmethod
    def _hashes(request: Any) -> list[Any]:
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

        return [maybe_convert_block_hash(each) for each in request.block_hashes]


def _name(place: Place) -> str:
    return f"block {_short(place[0])} on {place[1]}"


def _short(block_hash: Any) -> str:
    return block_hash.hex()[:12] if isinstance(block_hash, bytes) else str(block_hash)
