"""Steps in which hooks are called where a connector may not expect them, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, failing, found, history, match, raised, witness

from kvconform.checks.order import STEP_HOOKS, scheduled_ahead
from kvconform.engine.events import Event, ForwardFailed, HookCall, MetadataBound, ProgramAction, StoreBroken

BROKEN = StoreBroken(1, 1, "data", "removed", 3)
LAYER_HOOKS = ("wait_for_layer_load", "save_kv_layer")


def built(tokens: int = 16, *, step: int = 1, result: Any = "<Metadata>", engine: int = 1) -> HookCall:
    args = {"scheduled": {"r1": tokens, "r2": tokens}} if tokens else {"scheduled": {}}
    return HookCall(engine, step, "scheduler", "build_connector_meta", args, result)


def on(hook: str, step: int = 1, *, engine: int = 1, rank: int = 0, role: Any = "worker", **args: Any) -> HookCall:
    return HookCall(engine, step, role, hook, args, rank=rank)


def taken(*received: str, step: int = 2, engine: int = 1) -> HookCall:
    return on("update_connector_output", step, engine=engine, role="scheduler", finished_recving=list(received))


# -- metadata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (built(result=None), "a step of 32 tokens"),
        (built(0, result=None), "a step in which nothing was scheduled"),
        (replace(built(result=None), args={}), "a step in which nothing was scheduled"),
        (built(), None),
        (built(0), None),
        (failing(built()), None),
    ],
)
def test_every_step_has_metadata(call: HookCall, said: str | None) -> None:
    findings = found("ORDER-02", built(), call, call)
    assert [finding.observed for finding in findings] == ([f"it returned None for {said}"] if said else [])


def test_metadata_of_steps_without_tokens_are_counted() -> None:
    bare = replace(built(), args={})
    assert witness("ORDER-02", built(0), bare, built(0, step=2), built(0, result=None), built()) == 3


# -- nothing to load ---------------------------------------------------------------------------------------------------

START = on("start_load_kv", attn_metadata=True)
SYNCHRONOUS = (match((16, False)), alloc(16))
ASYNCHRONOUS = (match((16, True)), alloc(16))
LATER = replace(START, step=3)


@pytest.mark.parametrize(
    ("events", "due"),
    [
        ((START,), False),
        ((*SYNCHRONOUS, START), True),
        ((match((1, False)), alloc(1), START), True),
        ((match((0, False)), alloc(0), START), False),
        ((*SYNCHRONOUS, LATER), False),
        ((*SYNCHRONOUS, replace(START, engine=2)), False),
        ((*ASYNCHRONOUS, LATER), True),
        ((*ASYNCHRONOUS, match((0, True), request="r2"), alloc(0, request="r2"), LATER), True),
        ((match((0, True)), alloc(0), LATER), False),
        ((match((16, True), request="r2"), alloc(16), LATER), False),
        ((match((16, True), engine=2), alloc(16), LATER), False),
        ((match((16, False)), *ASYNCHRONOUS, LATER), True),
        ((*ASYNCHRONOUS, replace(START, engine=2, step=3)), False),
        ((*ASYNCHRONOUS, match((16, True), engine=2), alloc(16, engine=2), LATER), True),
        # The load ends when the scheduler is told.
        ((*ASYNCHRONOUS, taken("r1"), LATER), False),
        ((*ASYNCHRONOUS, taken("r2"), LATER), True),
        ((*ASYNCHRONOUS, taken("r1", engine=2), LATER), True),
        ((*ASYNCHRONOUS, replace(taken(), args={}), LATER), True),
        ((*ASYNCHRONOUS, match((16, True), request="r2"), alloc(16, request="r2"), taken("r1"), LATER), True),
        ((*ASYNCHRONOUS, taken("r1", step=1), START), True),
    ],
)
def test_start_load_kv_that_raises_with_nothing_to_load(events: tuple[HookCall, ...], due: bool) -> None:
    *before, call = events
    findings = found("ORDER-09", *before, failing(call))
    assert len(findings) == (not due)
    assert found("ORDER-09", *events) == []
    bare = replace(call, args={})
    assert witness("ORDER-09", *before, call, bare, replace(bare), failing(bare)) == (0 if due else 2)


def test_missing_attention_metadata_is_told() -> None:
    (bare,) = found("ORDER-09", failing(on("start_load_kv")))
    (full,) = found("ORDER-09", failing(START))
    told = "there is no attention metadata in the forward context"
    assert (told in bare.observed, told in full.observed) == (True, False)


@pytest.mark.parametrize(
    ("other", "count"),
    [
        (BROKEN, 0),
        (ProgramAction(1, 1, "dummy run"), 0),
        (ProgramAction(2, 1, "dummy run"), 1),
        (ProgramAction(1, 1, "reset"), 1),
    ],
)
def test_broken_stores_and_dummy_runs_may_be_the_reason(other: Event, count: int) -> None:
    assert len(found("ORDER-09", other, failing(START))) == count


# -- preemptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "count"), [("base.py:9 in _get_connector_metadata", 1), ("vendor.py:7 in _metadata", 0), (None, 0)]
)
def test_preemptions_are_handled_before_metadata_is_bound(where: str | None, count: int) -> None:
    call = on("handle_preemptions")
    findings = found("ORDER-11", call, replace(call, error="AssertionError:", where=where))
    assert len(findings) == count
    assert witness("ORDER-11", call, call, failing(call)) == 2


def test_metadata_that_is_asked_for_in_vain_is_no_matter_as_long_as_nothing_is_raised() -> None:
    assert found("ORDER-11", replace(on("handle_preemptions"), where="base.py:9 in _get_connector_metadata")) == []


# -- steps without tokens ----------------------------------------------------------------------------------------------

EMPTY = built(0)


@pytest.mark.parametrize("hook", STEP_HOOKS)
def test_hook_that_raises_in_a_step_without_tokens(hook: str) -> None:
    call = failing(on(hook))
    (finding,) = found("ORDER-13", EMPTY, on(hook), call)
    assert finding.at is call
    assert found("ORDER-13", built(), call) == [], "there were tokens"
    assert found("ORDER-13", call) == [], "nothing was scheduled at all"
    assert found("ORDER-13", replace(EMPTY, step=2), call) == []
    assert found("ORDER-13", replace(EMPTY, engine=2), call) == []
    assert found("ORDER-13", EMPTY, replace(call, role="scheduler")) == []
    assert found("ORDER-13", EMPTY, BROKEN, call) == []


def test_every_hook_that_raises_in_a_step_without_tokens_is_told() -> None:
    raising = [failing(on("wait_for_save")), failing(on("clear_connector_metadata"))]
    (with_tokens, without) = (built(step=2), built(0, step=3))
    later = [replace(call, step=step) for step in (2, 3) for call in raising]
    assert len(found("ORDER-13", EMPTY, with_tokens, without, *raising, *later)) == 4


def test_step_whose_tokens_were_not_recorded_has_none() -> None:
    assert len(found("ORDER-13", replace(EMPTY, args={}), failing(on("wait_for_save")))) == 1


@pytest.mark.parametrize("hook", ["get_finished", "get_transfer_results"])
def test_finished_ids_may_be_the_reason(hook: str) -> None:
    told = failing(on(hook, finished_req_ids=["r1"]))
    nothing = failing(on(hook, finished_req_ids=[]))
    other = failing(on("wait_for_save", finished_req_ids=["r1"]))
    assert [finding.at for finding in found("ORDER-13", EMPTY, told, other, nothing)] == [other, nothing]


def test_metadata_that_is_still_bound_may_be_the_reason() -> None:
    bound, again = on("bind_connector_metadata"), failing(on("bind_connector_metadata", 2))
    after = failing(on("wait_for_save", 2))
    events = (built(), bound, built(0, step=2), again, after)
    assert [finding.at for finding in found("ORDER-13", *events)] == [after]
    assert [finding.at for finding in found("ORDER-27", *events)] == [again]


def test_steps_without_tokens_are_counted_by_their_end() -> None:
    clear = on("clear_connector_metadata")
    assert witness("ORDER-13", EMPTY, clear) == 1
    assert witness("ORDER-13", EMPTY, failing(clear)) == witness("ORDER-13", built(), clear) == 0
    assert witness("ORDER-13", EMPTY, on("wait_for_save")) == witness("ORDER-13", clear) == 0


# -- binding -----------------------------------------------------------------------------------------------------------

BIND, CLEAR = "bind_connector_metadata", "clear_connector_metadata"


@pytest.mark.parametrize(
    ("hook", "answer", "said"),
    [(BIND, "False", True), (CLEAR, "True", False), (BIND, "1", True), (CLEAR, "None", False)],
)
def test_wrong_answer_about_bound_metadata_is_told_once(hook: str, answer: str, said: bool) -> None:
    right = (MetadataBound(1, 1, BIND, "True"), MetadataBound(1, 1, CLEAR, "False"))
    wrong = MetadataBound(1, 2, hook, answer)
    (finding,) = found("ORDER-20", *right, wrong, wrong)
    assert (finding.at, finding.observed) == (wrong, f"it returned {answer}")
    assert finding.expected == f"has_connector_metadata is {said} after {hook}"
    assert witness("ORDER-20", *right, wrong) == 3


@pytest.mark.parametrize(
    ("before", "bound"),
    [
        ((on(BIND),), True),
        ((), False),
        ((on(BIND), on(CLEAR)), False),
        ((on(CLEAR),), False),
        ((on(BIND, 2),), False),
        ((on(BIND), on(CLEAR, engine=2)), True),
        ((on(BIND, engine=2),), False),
        # Each worker has its own.
        ((on(BIND), on(BIND, rank=1), on(CLEAR, rank=1)), True),
        ((on(BIND), on(CLEAR), on(BIND, rank=1)), False),
    ],
)
def test_binding_over_what_was_not_cleared_is_taken(before: tuple[HookCall, ...], bound: bool) -> None:
    call = on(BIND, 2)
    assert (len(found("ORDER-27", *before, failing(call))), witness("ORDER-27", *before, call)) == (bound, bound)
    assert found("ORDER-27", *before, call) == []
    assert witness("ORDER-27", *before, failing(call)) == 0


# -- a forward that raises ---------------------------------------------------------------------------------------------

CLOSING = ("start_load_kv", *STEP_HOOKS[2:])
FAILED = ForwardFailed(1, 1)


@pytest.mark.parametrize("hook", CLOSING)
def test_hook_that_raises_after_a_forward_that_did(hook: str) -> None:
    call = failing(on(hook))
    (finding,) = found("ORDER-21", FAILED, on(hook), call)
    assert finding.at is call
    assert found("ORDER-21", call) == []
    assert found("ORDER-21", ForwardFailed(2, 1), ForwardFailed(1, 2), call) == []
    assert found("ORDER-21", FAILED, replace(call, role="scheduler")) == []


@pytest.mark.parametrize("hook", ["bind_connector_metadata", "finish_forward", *LAYER_HOOKS])
def test_hook_before_the_end_of_a_forward_does_not_close_it(hook: str) -> None:
    assert found("ORDER-21", FAILED, failing(on(hook))) == []


def test_layer_hook_that_ended_the_forward_may_be_the_reason() -> None:
    call = failing(on("wait_for_save"))
    for hook in LAYER_HOOKS:
        assert found("ORDER-21", FAILED, raised("wait_for_save"), raised(hook), call) == []
    assert len(found("ORDER-21", FAILED, raised("wait_for_save"), raised(None), call)) == 1


def test_ends_after_a_forward_that_raised_are_counted() -> None:
    save = on("wait_for_save")
    others = (on("clear_connector_metadata"), on("get_finished"), on("get_block_ids_with_load_errors"))
    assert witness("ORDER-21", FAILED, save, *others, save, failing(save)) == 2
    assert witness("ORDER-21", FAILED, replace(save, step=2)) == witness("ORDER-21", save) == 0


# -- situations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", LAYER_HOOKS)
def test_steps_whose_layer_hooks_come_early_are_counted(hook: str) -> None:
    start, layer = on("start_load_kv"), on(hook)
    assert witness("ORDER-08", layer, layer, start) == 1
    assert witness("ORDER-08", start, layer) == 0
    assert witness("ORDER-08", failing(layer)) == 0
    assert witness("ORDER-08", layer, replace(start, step=2), replace(layer, step=2), replace(layer, step=3)) == 2
    assert witness("ORDER-08", replace(start, engine=2), layer) == 1


@pytest.mark.parametrize(
    ("events", "ahead"),
    [
        ((built(),), []),
        ((built(), built(step=2)), [2]),
        ((built(), taken(), built(step=2)), []),
        ((built(0), built(step=2)), []),
        ((replace(built(), args={}), built(step=2)), []),
        ((built(), built(0, step=2), built(step=3)), [2, 3]),
        ((built(), built(step=2), taken(), built(step=3), taken(), taken(), built(step=4)), [2, 3]),
        # A second output for the same step, as of an engine that was idle, makes up for none.
        ((built(), taken(), taken(), built(step=2), built(step=3)), [3]),
        ((built(), built(step=2, engine=2), taken(engine=2), built(step=3)), [3]),
    ],
)
def test_step_is_ahead_of_the_results_of_an_earlier_one_with_tokens(
    events: tuple[HookCall, ...], ahead: list[int]
) -> None:
    ids = scheduled_ahead(history(*events))
    assert [event.step for event in events if id(event) in ids] == ahead
    assert witness("ORDER-18", *events) == len(ahead)
