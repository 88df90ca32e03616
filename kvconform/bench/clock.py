"""Taking the time of hook calls, and nothing else: what the kit records otherwise stays out of the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvconform.engine.events import Role
from kvconform.engine.instrument import SCHEDULER_HOOKS, WORKER_HOOKS
from kvconform.engine.shadowing import shadow


@dataclass(frozen=True)
class Call:
    """One call of a hook by the engine; times are ``time.perf_counter_ns()``."""

    role: Role
    hook: str
    start: int
    end: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / 1e9


@dataclass(frozen=True)
class Allocation:
    """What the scheduler told the connector in update_state_after_alloc: block ids per group, tokens to load."""

    blocks: tuple[tuple[int, ...], ...]
    external: int


class HookClock:
    """Shadows every hook of a connector with one that notes when it was entered and left.

    A hook that the connector calls itself, from another hook or from a thread of its own, is a part of that.
    """

    def __init__(self) -> None:
        self.allocated: dict[str, Allocation] = {}
        self._raw: list[tuple[Role, str, int, int]] = []
        self._inside = False
        self._thread = threading.get_ident()

    def attach(self, connector: Any, role: Role, rank: int = 0) -> None:
        """Shadow every hook that the instance has; ``rank`` is always 0 here."""
        for hook in SCHEDULER_HOOKS if role == "scheduler" else WORKER_HOOKS:
            original = getattr(connector, hook, None)
            if callable(original):
                timed = self.timed(original, role, hook)
                shadow(connector, hook, self._noting(timed) if hook == "update_state_after_alloc" else timed)

    def take(self) -> list[Call]:
        """The calls since the last time that this was asked, in the order in which they ended."""
        raw, self._raw = self._raw, []
        return [Call(*entry) for entry in raw]

    def timed(self, original: Callable[..., Any], role: Role, hook: str) -> Callable[..., Any]:
        """``original`` on the clock."""
        now, ident, thread = time.perf_counter_ns, threading.get_ident, self._thread

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside or ident() != thread:
                return original(*args, **kwargs)
            self._inside = True
            start = now()
            try:
                return original(*args, **kwargs)
            finally:
                end = now()
                self._inside = False
                self._raw.append((role, hook, start, end))

        call.__name__ = hook
        return call

    def _noting(self, timed: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, blocks: Any, num_external_tokens: int) -> Any:
            result = timed(request, blocks, num_external_tokens)
            ids = tuple(tuple(group) for group in blocks.get_block_ids())
            self.allocated[request.request_id] = Allocation(ids, num_external_tokens)
            return result

        call.__name__ = "update_state_after_alloc"
        return call


def overhead(calls: int = 2000) -> float:
    """Seconds that the clock adds to a call that does nothing, the median of some."""
    clock = HookClock()
    timed = clock.timed(lambda: None, "worker", "nothing")
    for _ in range(calls):
        timed()
    return sorted(call.seconds for call in clock.take())[calls // 2]
