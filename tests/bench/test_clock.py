"""The clock: what is on it, and what is a part of something else."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from kvconform.bench.clock import Allocation, HookClock, overhead


class Nested:
    """A worker role whose hook calls another hook, as the base class does."""

    def get_transfer_results(self, finished: set[str]) -> Any:
        return self.get_finished(finished)

    def get_finished(self, finished: set[str]) -> Any:
        time.sleep(0.01)
        return None, None

    def wait_for_save(self) -> None:
        raise OSError("full")


def test_a_hook_that_another_hook_calls_is_a_part_of_that() -> None:
    clock, connector = HookClock(), Nested()
    clock.attach(connector, "worker")
    assert connector.get_transfer_results(set()) == (None, None)
    (call,) = clock.take()
    assert (call.role, call.hook) == ("worker", "get_transfer_results")
    assert 0.01 <= call.seconds < 1.0
    connector.get_finished(set())
    assert [call.hook for call in clock.take()] == ["get_finished"]
    assert clock.take() == []


def test_a_hook_that_raises_is_on_the_clock_and_raises() -> None:
    clock, connector = HookClock(), Nested()
    clock.attach(connector, "worker")
    with pytest.raises(OSError, match="full"):
        connector.wait_for_save()
    assert [call.hook for call in clock.take()] == ["wait_for_save"]


def test_what_a_thread_of_the_connector_calls_is_not_the_engines_time() -> None:
    clock, connector = HookClock(), Nested()
    clock.attach(connector, "worker")
    thread = threading.Thread(target=connector.get_finished, args=(set(),))
    thread.start()
    thread.join()
    assert clock.take() == []


def test_an_allocation_is_kept_with_its_blocks_and_external_tokens() -> None:
    class Scheduling:
        def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
            self.seen = num_external_tokens

    clock, connector = HookClock(), Scheduling()
    clock.attach(connector, "scheduler")
    ids: tuple[list[int], ...] = ([3, 4], [0, 9])
    connector.update_state_after_alloc(
        SimpleNamespace(request_id="r"), SimpleNamespace(get_block_ids=lambda: ids), num_external_tokens=32
    )
    assert connector.seen == 32
    assert clock.allocated == {"r": Allocation(((3, 4), (0, 9)), 32)}
    assert [call.hook for call in clock.take()] == ["update_state_after_alloc"]


def test_the_clock_knows_what_it_adds() -> None:
    assert 0 < overhead(200) < 1e-3
