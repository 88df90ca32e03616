"""What the scheduler of an engine still holds; that of an idle one holds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvconform.engine import compat
from kvconform.engine.events import Audited, Leaked


def held_by(scheduler: Any, engine: int, step: int) -> Iterator[Leaked | Audited]:
    """Requests in the scheduler's containers, blocks with references, and that all was looked at."""
    for container, ids in compat.tracked_request_ids(scheduler).items():
        yield Leaked(engine, step, f"requests in scheduler.{container}", ", ".join(ids))
    pool = scheduler.kv_cache_manager.block_pool
    free, usable = pool.free_block_queue.num_free_blocks, pool.num_gpu_blocks - 1
    held = [block.block_id for block in pool.blocks if block.ref_cnt and block is not pool.null_block]
    if held or free != usable:
        detail = f"{len(held)} blocks with references: {held[:20]}; {free} of {usable} free"
        yield Leaked(engine, step, "blocks", detail)
    yield Audited(engine, step, free, usable)
