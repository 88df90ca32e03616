"""Whether a connector keeps the block state that the scheduler lends it during build_connector_meta."""

from __future__ import annotations

import weakref
from typing import Any

from kvconform.engine.events import BlockStateKept
from kvconform.engine.history import History


class BlockStateWatch:
    """Nobody but the scheduler may hold SchedulerOutput.kv_connector_block_state once the scheduler has dropped it."""

    def __init__(self, history: History, engine: int) -> None:
        self._history = history
        self._engine = engine
        self._lent: weakref.ref[Any] | None = None

    def built(self, output: Any) -> None:
        """build_connector_meta has returned; the scheduler still holds the state."""
        state = getattr(output, "kv_connector_block_state", None)
        self._lent = None if state is None else weakref.ref(state)

    def scheduled(self, output: Any, step: int) -> None:
        """schedule() has returned, and the scheduler has dropped the state."""
        state = None if self._lent is None else self._lent()
        self._lent = None
        if state is not None:
            held = getattr(output.kv_connector_metadata, "__dict__", {}).values()
            where = "in the metadata" if any(value is state for value in held) else "by the connector"
            self._history.add(BlockStateKept(self._engine, step, where))
