"""What left the engine for the front-end: tokens, how requests ended, and what a connector passed on with them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kvconform.engine.events import Tokens


class Deliveries:
    """The outputs of one engine, and how long it kept what belongs to requests that had ended."""

    def __init__(self) -> None:
        #: What request_finished returned for the front-end, by request; None where vLLM had nothing to pass on.
        self.params: dict[str, Any] = {}
        #: Seconds from the end of a request until the scheduler forgot it.
        self.held_for: dict[str, float] = {}
        self._ended_at: dict[str, float] = {}

    def take(self, outputs: Mapping[Any, Any], tracked: Collection[str], engine: int, step: int) -> Iterator[Tokens]:
        """EngineCoreOutputs of a step, by client; ``tracked`` are the requests that the scheduler still knows."""
        for client in outputs.values():
            for item in client.outputs:
                reason = None if item.finish_reason is None else str(item.finish_reason)
                if reason is not None:
                    self.params[item.request_id] = item.kv_transfer_params
                    self._ended_at[item.request_id] = time.monotonic()
                yield Tokens(engine, step, item.request_id, tuple(item.new_token_ids), reason)
        for request_id in self._ended_at.keys() - tracked:
            self.held_for[request_id] = round(time.monotonic() - self._ended_at.pop(request_id), 1)
