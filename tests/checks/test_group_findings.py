"""Wrong bytes in models with several KV cache groups, on hand-made histories: whose rule they break, what counts."""

from __future__ import annotations

import pytest
from histories import alloc, compared, history, match, raised, stray, witness, wrong

from kvconform.checks import Finding
from kvconform.checks.hybrid import rule_of
from kvconform.engine.events import EngineStarted, Event, HookCall, Scheduled


def load(*groups: list[int], tokens: int = 48, engine: int = 1, hook: str = "update_state_after_alloc") -> HookCall:
    args = {"request": "r1", "block_ids": list(groups), "num_external_tokens": tokens}
    return HookCall(engine, 1, "scheduler", hook, args)


def started(*sizes: int, engine: int = 1) -> EngineStarted:
    return EngineStarted(engine, 0, sizes, "recompute")


def sorted_as(event: Event, *others: Event, rule: str = "LOAD-01") -> str:
    return rule_of(history(*others, event), Finding(rule, "", "", event, symptom=True))


def computed(tokens: int, *, step: int = 1, engine: int = 1, request: str = "r1") -> Scheduled:
    return Scheduled(engine, step, {request: tokens}, {request: 1})


def test_write_into_the_null_block_is_about_null_blocks_and_another_one_stays_what_it_was() -> None:
    assert sorted_as(stray(0)) == "HMA-04"
    assert sorted_as(stray(1), rule="LOAD-03") == "LOAD-03"


def test_exception_is_about_handling_several_groups() -> None:
    assert sorted_as(raised("start_load_kv")) == "HMA-02"


def test_bytes_of_another_layer_anywhere_tell_that_groups_were_mixed_up() -> None:
    foreign = wrong(0, 15, "tokens hold r1's tokens 0-15 (of layer model.layers.1)", request="other")
    assert sorted_as(wrong(0, 15), foreign) == "HMA-03"
    assert sorted_as(wrong(0, 15), wrong(16, 31)) == "HMA-02"


@pytest.mark.parametrize(
    ("group", "last", "scheduled", "rule"),
    [
        (1, 15, computed(48), "HMA-05"),
        (1, 46, computed(48), "HMA-05"),
        # Up to the last computed token: nothing of the window is right.
        (1, 47, computed(48), "HMA-02"),
        # The first group has no window.
        (0, 15, computed(48), "HMA-02"),
        # Another step, engine or request says nothing of this one.
        (1, 15, computed(48, step=2), "HMA-02"),
        (1, 15, computed(48, engine=2), "HMA-02"),
        (1, 15, computed(48, request="other"), "HMA-02"),
    ],
)
def test_older_part_of_a_window_is_about_the_window(group: int, last: int, scheduled: Event, rule: str) -> None:
    event = wrong(0, last)
    event = type(event)(**{**vars(event), "group": group})
    assert sorted_as(event, scheduled) == rule


def test_request_without_computed_tokens_has_no_older_part() -> None:
    event = wrong(0, 0)
    event = type(event)(**{**vars(event), "group": 1, "positions": (-1,)})
    assert sorted_as(event, computed(48, request="other")) == "HMA-02"


def test_loads_with_several_groups_are_counted() -> None:
    assert witness("HMA-02", load([1], [2]), load([1], [2], tokens=1)) == 2
    assert witness("HMA-02", load([1])) == 0
    assert witness("HMA-02", load([1], [2], tokens=0), alloc(48)) == 0
    assert witness("HMA-03", load([1], [2])) == 1
    assert witness("HMA-02", load([1], [2], hook="request_finished")) == 0


def test_null_blocks_of_loads_are_counted_one_by_one() -> None:
    assert witness("HMA-04", load([1, 2], [0, 0, 3]), load([0], [1])) == 3
    assert witness("HMA-04", load([1, 2], [3])) == 0


def test_window_is_seen_where_some_group_has_null_blocks() -> None:
    assert witness("HMA-05", load([1, 2], [0, 3]), load([1, 2], [3, 4])) == 1
    assert witness("HMA-05", load([1, 2], [0, 0])) == 1


def test_block_sizes_count_where_they_differ_in_the_engine_of_the_load() -> None:
    assert witness("HMA-08", started(16, 32), load([1], [2])) == 1
    assert witness("HMA-08", started(16, 16), load([1], [2])) == 0
    assert witness("HMA-08", started(16, 32, engine=2), started(16, 16), load([1], [2])) == 0


def given(request: str, *groups: list[int], engine: int = 1) -> HookCall:
    args = {"request": request, "block_ids": list(groups), "num_external_tokens": 0}
    return HookCall(engine, 1, "scheduler", "update_state_after_alloc", args)


def end(request: str, hook: str = "request_finished_all_groups") -> HookCall:
    return HookCall(1, 1, "scheduler", hook, {"request": request}, (False, None))


FIRST = given("a", [1, 2], [3, 4])
PREEMPTED = Scheduled(1, 2, {}, {}, preempted=("a",))


@pytest.mark.parametrize(
    ("between", "later", "count"),
    [
        ((), given("b", [5], [3]), 1),
        ((), given("b", [3], [4]), 2),
        ((), given("b", [3], [3]), 1),
        ((), given("b", [5], [6]), 0),
        ((), given("b", [5], [3], engine=2), 0),
        ((), given("b", [3]), 0),
        ((), given("a", [5], [3]), 0),
        ((), given("b", [0], [0]), 0),
        ((end("b"), end("c", "request_finished"), computed(16)), given("b", [5], [3]), 1),
        ((end("a"),), given("b", [5], [3]), 0),
        ((end("a", "request_finished"),), given("b", [5], [3]), 0),
        ((PREEMPTED,), given("b", [5], [3]), 0),
        ((match((0, False), request="b"),), given("b", [5], [3]), 1),
        ((match((0, False), request="b", computed=16),), given("b", [3], [5]), 0),
        ((match((0, False), request="c", computed=16),), given("b", [5], [3]), 1),
        ((match((0, False), request="b", computed=16, engine=2),), given("b", [5], [3]), 1),
        ((given("b", [3], [6]), given("c", [6], [7])), given("d", [3], [7]), 4),
    ],
)
def test_block_that_a_running_request_no_longer_has_is_one_that_its_window_left(
    between: tuple[Event, ...], later: Event, count: int
) -> None:
    """Not of one that ended or was preempted, and not one that is shared, as blocks of a local hit are."""
    null = given("a", [0], [0])
    assert witness("HMA-11", null, FIRST, *between, later, compared(16)) == count
    assert witness("HMA-11", null, FIRST, *between, later) == 0, "nothing was loaded that could have been wrong"
