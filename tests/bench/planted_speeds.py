"""Connectors with which a measurement has something to say: hollow promises, a process that ends or hangs."""

from __future__ import annotations

import os
import time
from typing import Any

from inert_connector import InertConnector

from kvconform.reference.host_offload import HostOffloadConnector


class Promises(InertConnector):
    """Offers every prompt that was computed before, and loads nothing."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._known: set[int] = set()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        first = hash(tuple(request.prompt_token_ids[:16]))
        known, self._known = first in self._known, self._known | {first}
        return ((request.num_tokens - 1) // 16 * 16 - num_computed_tokens if known else 0), False


class MakesUp(Promises):
    """Fills all blocks with one number instead of what was stored."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        self._caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for cache in self._caches.values():
            cache.fill_(1)


class LoadsSlowly(HostOffloadConnector):
    """Every load takes at least this long."""

    SECONDS = 0.02

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        time.sleep(self.SECONDS)
        super().start_load_kv(forward_context, **kwargs)


class Refuses(InertConnector):
    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        raise ValueError("not this layout")


class NeverSaved(InertConnector):
    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return True, None


class SavesSlowly(HostOffloadConnector):
    """Takes its time in a hook, which is no transfer that does not end."""

    def wait_for_save(self) -> None:
        time.sleep(0.1)
        super().wait_for_save()


class EndsItsProcess(InertConnector):
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        os._exit(3)


class Hangs(InertConnector):
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        time.sleep(600)


class Raises(InertConnector):
    def wait_for_save(self) -> None:
        raise OSError("the disk is full, password=hunter2")
