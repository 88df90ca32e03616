"""Which items of a step have to be encoded. There is always room, and nothing is ever thrown out."""

from __future__ import annotations

from vllm.v1.request import Request


class EncoderCacheManager:
    """Remembers what has been encoded."""

    def __init__(self, cache_size: int) -> None:
        self.cache_size = self.num_free_slots = self.num_freeable_slots = cache_size
        self._encoded: set[str] = set()

    def _to_encode(self, request: Request, first: int, count: int) -> list[int]:
        """Items among the tokens of a step that nobody has encoded before."""
        found = []
        for index, item in enumerate(request.mm_features):
            place = item.mm_position
            if place.offset < first + count and place.offset + place.length > first:
                if item.identifier not in self._encoded:
                    found.append(index)
                self._encoded.add(item.identifier)
        return found
