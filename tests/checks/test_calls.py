"""What recorded calls and their results say, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import history, match, raised

from kvconform.checks import calls
from kvconform.engine.events import EngineRaised, EngineStarted, ForeignState, HookCall, StoreBroken
from kvconform.engine.history import History


def hook(result: Any = None, error: str | None = None, where: str | None = "vendor.py:7 in load", **more: Any) -> Any:
    fields: dict[str, Any] = {"engine": 1, "step": 2, "role": "worker", "hook": "start_load_kv", "args": {}, **more}
    return HookCall(**fields, result=result, error=error, where=where)


def test_exception_is_told_with_its_hook_and_place() -> None:
    assert calls.raised(hook(error="KeyError: 'r1'")) == "start_load_kv raised KeyError: 'r1' (vendor.py:7 in load)"


@pytest.mark.parametrize(
    ("error", "where", "expected"),
    [
        (None, None, False),
        ("KeyError: 'r1'", "vendor.py:7 in load", True),
        ("KeyError: 'r1'", "kit.py:7 in recorded", True),
        ("KeyError: 'r1'", None, True),
        ("TypeError: no such argument", "kit.py:7 in recorded", False),
        ("TypeError: None + 1", "vendor.py:7 in load", True),
        ("TypeError: None + 1", None, True),
    ],
)
def test_argument_that_a_hook_does_not_take_is_no_failure_of_the_situation(
    error: str | None, where: str | None, expected: bool
) -> None:
    call = hook(error=error, where=where)
    assert calls.failed_here(history(call), call) is expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [({}, False), ({"engine": 2}, True), ({"step": 3}, True), ({"role": "scheduler"}, True), ({"hook": "x"}, True)],
)
def test_want_of_the_other_roles_state_is_no_failure_of_the_situation(
    difference: dict[str, Any], expected: bool
) -> None:
    call = hook(error="AttributeError: _pool", **difference)
    foreign = ForeignState(1, 2, "worker", "start_load_kv", "_pool")
    assert calls.failed_here(history(foreign, call), call) is expected


# -- a load of several groups that failed ------------------------------------------------------------------------------


def _refused(event: EngineRaised, *, sizes: tuple[int, ...] = (16, 16), faults: tuple[StoreBroken, ...]) -> bool:
    started = (EngineStarted(1, 0, sizes, "recompute"), EngineStarted(2, 0, (16,), "recompute"))
    return calls.refused_to_go_on(History([*started, *faults, event]), event)


BROKEN = StoreBroken(1, 1, "data", "removed", 3)
SILENT = StoreBroken(1, 1, "silent", "never answered", 3)
WRITES = StoreBroken(1, 1, "writes", "full", 3)
NOTHING = StoreBroken(1, 1, "data", "removed", 0)


@pytest.mark.parametrize("loading", ["start_load_kv", "wait_for_layer_load"])
def test_worker_that_raises_on_a_failed_load_of_several_groups_refuses_to_go_on(loading: str) -> None:
    assert _refused(raised(loading), faults=(BROKEN,))
    assert _refused(raised(loading), faults=(SILENT,))
    assert _refused(raised(loading), faults=(NOTHING, BROKEN))


@pytest.mark.parametrize(
    ("event", "sizes", "faults"),
    [
        (raised("wait_for_save"), (16, 16), (BROKEN,)),
        (raised(None), (16, 16), (BROKEN,)),
        (raised("start_load_kv", engine=2), (16, 16), (BROKEN,)),
        (raised("start_load_kv"), (16,), (BROKEN,)),
        (raised("start_load_kv"), (16, 16), ()),
        (raised("start_load_kv"), (16, 16), (WRITES,)),
        (raised("start_load_kv"), (16, 16), (NOTHING,)),
        (raised("start_load_kv"), (16, 16), (WRITES, NOTHING)),
    ],
    ids=["saving", "no hook", "other engine", "one group", "no fault", "writes", "nothing there", "both"],
)
def test_any_other_exception_is_none_of_these(
    event: EngineRaised, sizes: tuple[int, ...], faults: tuple[StoreBroken, ...]
) -> None:
    assert not _refused(event, sizes=sizes, faults=faults)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "tokens", "asynchronous"),
    [
        ((16, False), 16, False),
        ((16, True), 16, True),
        ((-16, False), 0, False),
        ((None, True), 0, True),
        (("16", True), 0, True),
        ((), 0, False),
        ((16,), 16, True),
        (None, 0, False),
        ([16, True], 0, False),
        ("16", 0, False),
    ],
)
def test_answer_of_no_sense_offers_nothing(answer: Any, tokens: int, asynchronous: bool) -> None:
    assert (calls.offered(match(answer)), calls.is_asynchronous(match(answer))) == (tokens, asynchronous)


def test_most_that_was_offered_counts() -> None:
    asked = history(match((16, False)), match((48, False)), match((32, False)), match(None, request="r2"))
    assert calls.offered_by_request(asked) == {"r1": 48, "r2": 0}


@pytest.mark.parametrize(
    ("answer", "held"),
    [((True, None), True), ((1, None), True), ((False, {}), False), ((), False), (None, False), ("yes", False)],
)
def test_hold_is_a_pair_that_begins_with_something_true(answer: Any, held: bool) -> None:
    assert calls.is_held(hook(answer)) is held


def test_both_names_of_the_end_are_ends() -> None:
    ends = [hook(hook=name) for name in ("request_finished", "request_finished_all_groups")]
    assert list(calls.finishes(history(ends[0], hook(), ends[1]))) == ends


@pytest.mark.parametrize(
    ("answer", "blocks"), [({"set": [3, 4]}, (3, 4)), ({"set": []}, ()), ({"list": [3]}, ()), (None, ()), ("set", ())]
)
def test_failed_blocks_are_those_of_a_set(answer: Any, blocks: tuple[int, ...]) -> None:
    assert calls.failed_blocks(hook(answer)) == blocks


@pytest.mark.parametrize(
    ("result", "error", "right"),
    [
        ((0, False), None, True),
        ((48, True), None, True),
        ((None, False), None, False),
        (None, None, False),
        (7, None, False),
        ([48, False], None, False),
        ((48, False), "OSError: gone", False),
    ],
)
def test_an_answer_is_what_did_not_raise_and_was_not_put_off(result: object, error: str | None, right: bool) -> None:
    assert calls.is_answer(replace(match((0, False)), result=result, error=error)) is right
