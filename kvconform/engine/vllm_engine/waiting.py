"""Stepping an engine until it is idle, and giving up on one that is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvconform.engine.events import NeverIdle, Outlasted
from kvconform.engine.options import EMPTY_STEP_LIMIT, PATIENCE
from kvconform.engine.protocol import EngineStopped

if TYPE_CHECKING:
    from kvconform.engine.vllm_engine.engine import VllmEngine

# Steps that compute something within one drain; the longest scenario needs a quarter of them.
STEP_LIMIT = 400


class Waiting:
    """How long one engine is waited for.

    Args:
        engine: which.
        patience: seconds that a drain waits for transfers when nothing can be computed.
        hurried: whether that is less than it should be.
    """

    def __init__(self, engine: VllmEngine, patience: float, hurried: bool) -> None:
        self._engine = engine
        self._patience = patience
        self._hurried = hurried
        #: The most seconds of steps without work after which there was some, or the engine was idle.
        self.longest = 0.0

    def drain(self, meanwhile: Callable[[], object], *, held: bool) -> None:
        """Step until idle, or with ``held`` until no request is unfinished; ``meanwhile`` is done after each step.

        Raises:
            EngineStopped: not idle within the limits.
        """
        busy = empty = 0
        waited = 0.0
        last_computed = time.monotonic()
        while self._engine.step():
            meanwhile()
            if held and not self._unfinished():
                return
            if self._engine.empty_step:
                empty += 1
                waited = time.monotonic() - last_computed
                if empty >= EMPTY_STEP_LIMIT:
                    if waited >= self._patience:
                        self._give_up(empty, waited)
                    time.sleep(min(0.01, self._patience - waited))
            else:
                self.longest = max(self.longest, waited)
                busy, empty, waited = busy + 1, 0, 0.0
                last_computed = time.monotonic()
                if busy >= STEP_LIMIT:
                    self._give_up(busy)
        self.longest = max(self.longest, waited)

    def outlast(self, limit: float, meanwhile: Callable[[], object]) -> bool:
        """Step until idle or, if a peer's silence may take ``limit`` seconds, well beyond that; whether it is idle."""
        engine, start = self._engine, time.monotonic()
        first = engine.steps
        longest = 1.5 * limit + 1.0 if limit else min(PATIENCE, self._patience)
        while (idle := not engine.step()) is False:
            meanwhile()
            if time.monotonic() - start > longest:
                break
            if engine.empty_step and engine.steps - first > EMPTY_STEP_LIMIT:
                # One that fails and tries again is seen to do so, but need not be watched thousands of times.
                time.sleep(0.01)
        seconds = round(time.monotonic() - start, 1)
        unfinished = self._unfinished()
        held = tuple(sorted(set(engine.scheduler.requests) - set(unfinished)))
        held_for = dict(engine.deliveries.held_for)
        hurried = self._hurried and not limit and longest < PATIENCE and not idle
        engine.history.add(Outlasted(engine.number, engine.steps, seconds, limit, unfinished, held, held_for, hurried))
        return idle

    def _unfinished(self) -> tuple[str, ...]:
        requests = self._engine.scheduler.requests
        return tuple(sorted(i for i, request in requests.items() if not request.is_finished()))

    def _give_up(self, steps: int, seconds: float = 0.0) -> None:
        engine = self._engine
        unfinished = tuple(sorted(engine.scheduler.requests))
        hurried = self._hurried and bool(seconds)
        engine.history.add(NeverIdle(engine.number, engine.steps, steps, unfinished, round(seconds, 1), hurried))
        raise EngineStopped(f"not idle after {steps} steps")
