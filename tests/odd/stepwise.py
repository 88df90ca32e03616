"""AsyncFileStoreConnector on a storage whose speed is counted in engine steps: slow, and the same each time.

A transfer of ``n`` steps is done in the n-th get_finished after its start, the one of its own step included.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

from kvconform.reference._async_transfers import Load, TransferPool
from kvconform.reference.async_file_store import AsyncFileStoreConnector


@dataclass
class Queued:
    """A transfer and the steps until it runs."""

    run: Callable[[], None]
    future: Future[None]
    steps: int


class StepwisePool:
    """Runs transfers in the engine's own thread when their time has come."""

    def __init__(self, load_steps: int, save_steps: int) -> None:
        self.load_steps = load_steps
        self.save_steps = save_steps
        self.queue: list[Queued] = []

    def submit(self, run: Callable[[], None], /) -> Future[None]:
        future: Future[None] = Future()
        is_load = isinstance(getattr(run, "__self__", None), Load)
        self.queue.append(Queued(run, future, self.load_steps if is_load else self.save_steps))
        return future

    def tick(self) -> None:
        """A step has passed."""
        for queued in self.queue:
            queued.steps -= 1
        due = [queued for queued in self.queue if queued.steps <= 0]
        self.queue = [queued for queued in self.queue if queued.steps > 0]
        for queued in due:
            queued.run()
            queued.future.set_result(None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.queue.clear()


class Stepwise(AsyncFileStoreConnector):
    """Loads of 3 steps, saves of 4."""

    load_steps: ClassVar[int] = 3
    save_steps: ClassVar[int] = 4

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.storage: StepwisePool | None = None

    def _make_pool(self, threads: int) -> TransferPool:  # type: ignore[override]
        self.storage = StepwisePool(self.load_steps, self.save_steps)
        return self.storage

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self.storage is not None:
            self.storage.tick()
        return super().get_finished(finished_req_ids)


class SlowLoads(Stepwise):
    """Loads that take far longer than saves."""

    load_steps = 7
    save_steps = 1


class SlowSaves(Stepwise):
    """Saves that take far longer than loads."""

    load_steps = 1
    save_steps = 9


class Immediate(Stepwise):
    """Everything is done in the step in which it begins, and still reported as asynchronous."""

    load_steps = 1
    save_steps = 1
