"""Whether events are published."""

from __future__ import annotations

from typing import Any

from vllm.config._tables import fields_of


class KVEventsConfig(fields_of("KVEventsConfig")):  # type: ignore[misc]
    """They are not, unless somebody asks for it."""

    publisher: Any

    def __post_init__(self) -> None:
        if self.publisher is None:
            self.publisher = "zmq" if self.enable_kv_cache_events else "null"
