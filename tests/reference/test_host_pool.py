"""The pool of HostOffloadConnector: slots, pins, eviction, and what events say of it."""

from __future__ import annotations

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from kvconform.reference._host_pool import BlockStory, HostPool
from kvconform.reference._host_stats import HostOffloadStats


def story(key: bytes, parent: bytes | None = None) -> BlockStory:
    return BlockStory(key, parent, tuple(range(16)), None, None)


def filled(capacity: int, *keys: bytes) -> HostPool:
    pool = HostPool(capacity)
    for number, key in enumerate(keys):
        assert pool.reserve(number, story(key)) is not None
        pool.publish(number)
    return pool


def test_a_block_is_found_and_announced_once_it_was_written() -> None:
    pool = HostPool(2)
    pool.reserve(1, story(b"a", b"parent"))
    assert b"a" not in pool
    assert pool.take_events() == []
    pool.publish(1)
    assert b"a" in pool
    (event,) = pool.take_events()
    assert isinstance(event, BlockStored)
    # As vLLM names blocks in its own events: by default the last 64 bits of the hash.
    said = (event.block_hashes, event.parent_block_hash, event.medium)
    assert said == ([maybe_convert_block_hash(b"a")], maybe_convert_block_hash(b"parent"), "CPU")
    assert pool.take_events() == []


def test_a_failed_save_leaves_no_trace_and_its_slot_is_free() -> None:
    pool = HostPool(1)
    pool.reserve(1, story(b"a"))
    pool.discard(1)
    assert pool.reserve(2, story(b"b")) is not None
    assert pool.take_events() == []
    assert pool.evicted == 0


def test_the_least_recently_used_block_goes_first() -> None:
    pool = filled(2, b"a", b"b")
    pool.pin([b"a"])
    pool.unpin([b"a"])
    pool.take_events()
    pool.reserve(9, story(b"c"))
    assert (b"a" in pool, b"b" in pool) == (True, False)
    assert [type(event) for event in pool.take_events()] == [BlockRemoved]


def test_a_full_pool_of_pinned_blocks_refuses_a_save() -> None:
    pool = filled(2, b"a", b"b")
    pool.pin([b"a", b"b"])
    assert pool.reserve(9, story(b"c")) is None
    pool.unpin([b"a", b"b"])
    assert pool.reserve(9, story(b"c")) is not None
    assert (pool.refused, pool.evicted) == (1, 1)


def test_a_removed_block_keeps_its_slot_while_it_is_loaded() -> None:
    pool = filled(1, b"a")
    pool.pin([b"a"])
    slot = pool.slot(b"a")
    pool.clear()
    assert b"a" not in pool
    assert pool.slot(b"a") == slot
    assert pool.reserve(9, story(b"c")) is None
    pool.unpin([b"a"])
    assert pool.reserve(9, story(b"c")) == slot
    assert isinstance(pool.take_events()[-1], AllBlocksCleared)


def test_a_block_that_was_published_meanwhile_is_not_stored_twice() -> None:
    pool = HostPool(2)
    pool.reserve(1, story(b"a"))
    pool.reserve(2, story(b"a"))
    pool.publish(1)
    pool.publish(2)
    assert len(pool.take_events()) == 1
    assert pool.reserve(3, story(b"b")) is not None


def test_statistics_add_up_in_any_order_whatever_the_role_counted() -> None:
    worker, scheduler = HostOffloadStats(data={"saved_blocks": 2}), HostOffloadStats(data={"evicted_blocks": 1})
    both = {"saved_blocks": 2, "evicted_blocks": 1}
    assert HostOffloadStats(data=dict(worker.data)).aggregate(scheduler).reduce() == both
    assert HostOffloadStats(data=dict(scheduler.data)).aggregate(worker).reduce() == both
    worker.reset()
    assert worker.is_empty()
