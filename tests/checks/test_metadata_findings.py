"""What build_connector_meta reads and keeps, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, found, witness

from kvconform.engine.events import BlockStateKept, CacheReset, Event, HookCall, Scheduled


def built(step: int = 2, *, error: str | None = None, engine: int = 1, **args: Any) -> HookCall:
    return HookCall(engine, step, "scheduler", "build_connector_meta", args, "<M>", error, "vendor.py:7 in build")


def failed_load(*blocks: int, engine: int = 1) -> HookCall:
    return HookCall(engine, 1, "worker", "get_block_ids_with_load_errors", {}, {"set": list(blocks)})


REFUSED = built(no_new_blocks=["r1", "r2"], error="TypeError: 'NoneType' object is not iterable")
TAKEN = replace(REFUSED, error=None)
AHEAD = built(1, scheduled={"r1": 1})
RESET = CacheReset(1, 1, succeeded=True, idle=False)


def test_first_step_without_new_blocks_that_is_refused() -> None:
    (finding,) = found("META-04", REFUSED)
    assert (finding.rule, finding.at, finding.requests) == ("META-04", REFUSED, ("r1", "r2"))
    assert "build_connector_meta raised TypeError" in finding.observed
    assert finding.observed.endswith("the first step in which it is None, for r1, r2")
    other = replace(REFUSED, engine=2)
    assert [finding.at for finding in found("META-04", REFUSED, replace(REFUSED, step=3), other)] == [REFUSED, other]


@pytest.mark.parametrize(
    ("before", "findings"),
    [
        ((built(1),), 1),
        ((built(1, error="KeyError: 1"),), 1),
        ((TAKEN,), 0),
        ((replace(TAKEN, engine=2),), 1),
        ((AHEAD,), 0),
        ((replace(AHEAD, engine=2),), 1),
        ((failed_load(4),), 0),
        ((failed_load(),), 1),
        ((failed_load(4, engine=2),), 1),
        ((replace(failed_load(4), hook="get_finished"),), 1),
        ((RESET,), 0),
        ((replace(RESET, idle=True),), 1),
        ((replace(RESET, engine=2),), 1),
        ((Scheduled(1, 1, {}, {"r1": 1}, preempted=("r1",)),), 0),
        ((Scheduled(1, 1, {}, {"r1": 1}, resumed=("r1",)),), 0),
        ((Scheduled(1, 1, {}, {"r1": 1}),), 1),
    ],
    ids=[
        "a step", "a step that failed otherwise", "it was taken before", "by another engine", "scheduled ahead",
        "another engine is ahead", "a failed load", "no failed load", "another engine's", "another set",
        "a reset amid requests", "an idle reset", "another engine's reset", "preempted", "resumed", "a usual step",
    ],
)  # fmt: skip
def test_step_without_new_blocks_is_refused_for_that_only_if_nothing_else_is_new(
    before: tuple[Event, ...], findings: int
) -> None:
    assert len(found("META-04", *before, REFUSED)) == findings


def test_running_requests_without_new_blocks_are_counted_where_they_were_taken() -> None:
    assert witness("META-04", TAKEN, built(3, no_new_blocks=["r1"]), built(4)) == 3
    assert witness("META-04", REFUSED) == 0


def test_block_state_that_is_kept_is_found_once() -> None:
    kept = BlockStateKept(1, 2, "in self._state")
    (finding,) = found("META-09", kept, kept)
    assert (finding.rule, finding.at) == ("META-09", kept)
    assert "it is kept in self._state" in finding.observed
    assert witness("META-09", built(), built(3), REFUSED, failed_load()) == 2


@pytest.mark.parametrize(
    ("events", "passed"),
    [
        ((alloc(48), alloc(48, request="r2", step=2)), 3),
        ((alloc(1), alloc(0, request="r2", step=2)), 3),
        ((alloc(0), alloc(48, request="r2", step=2)), 0),
        ((alloc(48), alloc(48, step=2)), 0),
        ((alloc(48), alloc(48, request="r2", engine=2)), 0),
        # An asynchronous load has ended, and its request got a block more.
        ((alloc(48), alloc(0, step=2), alloc(0, request="r2", step=3)), 3),
        # Its new owner computed in them: what a third request gets are no blocks of a load.
        ((alloc(48), alloc(0, request="r2"), alloc(0, request="r3")), 3),
        ((alloc(48), alloc(48, request="r2"), alloc(0, request="r3")), 6),
    ],
)
def test_blocks_of_loads_that_others_got_are_counted(events: tuple[Event, ...], passed: int) -> None:
    assert witness("META-02", *events) == passed


def test_null_block_is_nobodys() -> None:
    first, second = (replace(alloc(48), args={**alloc(48).args, "request": r, "block_ids": [[0, 1]]}) for r in "ab")
    assert witness("META-02", first, second) == 1


@pytest.mark.parametrize(
    ("calls", "again"),
    [
        ((built(1, new={"a": 0}), built(2, finished=["a"]), built(3, new={"a": 0})), 1),
        ((built(1, new={"a": 0}), built(2, finished=["a"], new={"a": 0})), 1),
        ((built(1, new={"a": 0}), built(2, finished=["a"]), built(3, new={"a": 0}), built(4, new={"a": 0})), 1),
        ((built(1, finished=["a"]), built(2, finished=["b"]), built(3, new={"a": 0}), built(4, new={"b": 0})), 2),
        ((built(1, finished=["a"]), built(2, new={"a": 0}), built(3, finished=["a"]), built(4, new={"a": 0})), 2),
        ((built(1, finished=["a"]), built(2, new={"a": 0}, engine=2)), 0),
        ((built(1, finished=["a"]), built(2, new={"b": 0})), 0),
        ((built(1, finished=["a"]), replace(built(2, new={"a": 0}), hook="update_connector_output")), 0),
    ],
)
def test_ids_that_came_back_after_their_end_are_counted(calls: tuple[HookCall, ...], again: int) -> None:
    assert witness("META-12", *calls) == again
