"""Legal habits of stores: what is kept, in what pieces it is offered, how long it takes, and what is said of it."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, ClassVar

from kvconform.reference.file_store import FileStoreConnector

_LOGGER = logging.getLogger(__name__)


class KeepsSomeBlocks(FileStoreConnector):
    """Keeps about two of three blocks, so that hits end early and holes are filled later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            scheduler, publish = self._scheduler, self._scheduler._publish
            scheduler._publish = lambda save_id, save: save.block_hash[0] % 3 > 0 and publish(save_id, save)  # type: ignore[method-assign]


class FinerChunks(FileStoreConnector):
    """Offers a stored prefix in pieces of half a block, as far as one token remains to be computed."""

    unit: ClassVar[int] = 8

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        size = self._scheduler_side()._granularity.block_tokens
        end = num_computed_tokens + tokens
        if not num_computed_tokens % size and not request.skip_reading_prefix_cache and self._has(request, end // size):
            tokens += (request.num_tokens - 1 - end) // self.unit * self.unit
        return tokens, False

    def _has(self, request: Any, index: int) -> bool:
        scheduler = self._scheduler_side()
        granularity = scheduler._granularity
        stored = index < granularity.hashed_blocks(request)
        return stored and scheduler._is_stored(granularity.block_hash(request, index))


class AllButTheLastToken(FinerChunks):
    """Offers everything but the one token that has to be computed."""

    unit = 1


class Slow(FileStoreConnector):
    """Takes its time with everything that it does."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        time.sleep(0.01)
        super().start_load_kv(forward_context, **kwargs)

    def wait_for_save(self) -> None:
        time.sleep(0.02)
        super().wait_for_save()

    def shutdown(self) -> None:
        time.sleep(0.1)
        super().shutdown()


class Chatty(FileStoreConnector):
    """Tells everybody about every step, at length."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        for number in range(200):
            print(f"step {number}: {scheduler_output!r:.400}")
            print("still there", file=sys.stderr)
            _LOGGER.error("nothing is wrong with %s", self)
        return super().build_connector_meta(scheduler_output)


class RemembersTheLatest(FileStoreConnector):
    """Knows the latest requests that have ended by their ids, for whoever asks in its log."""

    limit: ClassVar[int] = 32

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ended: dict[str, str] = {}

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._ended[request.request_id] = request.status.name
        while len(self._ended) > self.limit:
            del self._ended[next(iter(self._ended))]
        return super().request_finished(request, block_ids)


class KeepsLatestKeys(FileStoreConnector):
    """Keeps what it hashed for the latest requests, who have something to hash from the first whole block on."""

    limit: ClassVar[int] = 32

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hashed: dict[str, tuple[bytes, ...]] = {}

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if request.block_hashes:
            self._hashed[request.request_id] = tuple(request.block_hashes)
        while len(self._hashed) > self.limit:
            del self._hashed[next(iter(self._hashed))]
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class OffersToEverybody(FileStoreConnector):
    """Offers what it has to requests, too, that vLLM lets compute all of it; it drops the answer (0.31.0 on)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        skips, request.skip_reading_prefix_cache = request.skip_reading_prefix_cache, False
        try:
            return super().get_num_new_matched_tokens(request, num_computed_tokens)
        finally:
            request.skip_reading_prefix_cache = skips
