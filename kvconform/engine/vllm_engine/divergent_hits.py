"""Seeing local hits that go deeper in full attention than in recurrent layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def note_divergent_hits(manager: Any, note: Callable[[str, int], None]) -> None:
    """Tell ``note`` of each (request id, local tokens) that vLLM's KVCacheManager calls diverged.

    The scheduler asks so only for a connector with ``supports_divergent_local_hybrid_hits``
    (KVCacheManager.get_computed_blocks_for_connector, vllm/v1/core/kv_cache_manager.py, 0.32.0; none before 0.28.0).
    """
    original = getattr(manager, "get_computed_blocks_for_connector", None)
    if original is None:
        return

    @functools.wraps(original)
    def asked(request: Any, *more: Any, **named: Any) -> Any:
        found = original(request, *more, **named)
        _, tokens, _, diverged = found
        if diverged:
            note(request.request_id, tokens)
        return found

    manager.get_computed_blocks_for_connector = asked
