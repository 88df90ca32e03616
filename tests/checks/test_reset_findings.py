"""What a reset of the connector's cache must forget and what it must not, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, ended, failing, found, match, witness

from kvconform.engine.events import CacheReset, Event, HookCall, ProgramAction, Tokens

#: Of 48 tokens and the next one.
COMMON = tuple(range(49))


def added(request: str, tokens: tuple[int, ...] = COMMON, *, engine: int = 1, whose: str = "") -> ProgramAction:
    return ProgramAction(engine, 0, "add", {"request": request, "tokens": list(tokens), "identity": whose})


def asked(request: str, tokens: int = 48, *, step: int = 6, computed: int = 0, engine: int = 1) -> HookCall:
    return match((tokens, False), request=request, step=step, computed=computed, engine=engine)


def done(request: str, hook: str = "request_finished") -> HookCall:
    return HookCall(1, 4, "scheduler", hook, {"request": request, "status": "X", "block_ids": []})


#: The connector is asked to forget, and the engine notes how it went.
ASKED = HookCall(1, 5, "scheduler", "reset_cache", {}, True)
FORGOTTEN = CacheReset(1, 5, True, True, connector=True)


def reset(answer: Any = True, *, step: int = 5, engine: int = 1, **more: Any) -> tuple[Event, ...]:
    when = {"engine": engine, "step": step}
    return replace(ASKED, result=answer, **when), replace(FORGOTTEN, **when, **more)


def local(*, succeeded: bool = True, idle: bool = True, step: int = 5) -> CacheReset:
    """Of the engine's own cache only."""
    return CacheReset(1, step, succeeded, idle)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"), [(True, True), (False, True), (None, True), (0, False), (1, False), ("False", False)]
)
def test_reset_has_three_answers(answer: Any, right: bool) -> None:
    findings = found("RST-01", *reset(answer))
    assert [repr(answer) in finding.observed for finding in findings] == ([] if right else [True])


def test_reset_that_raised_has_no_answer() -> None:
    assert found("RST-01", replace(ASKED, result=0, error="OSError: gone")) == []


# -- what was stored before --------------------------------------------------------------------------------------------

BEFORE = (added("a"), done("a"))
AFTER = (added("b"), asked("b"))


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((*BEFORE, *reset(), *AFTER), 1),
        ((*BEFORE, *reset(None), *AFTER), 1),
        ((added("a"), asked("a", step=1), done("a"), *reset(), *AFTER), 1),
        ((added("a"), done("a", "request_finished_all_groups"), *reset(), *AFTER), 1),
        # It said that it had not worked, or said nothing.
        ((*BEFORE, *reset(False), *AFTER), 0),
        ((*BEFORE, failing(ASKED), FORGOTTEN, *AFTER), 0),
        ((*BEFORE, FORGOTTEN, *AFTER), 0),
        ((*BEFORE, replace(ASKED, step=4), FORGOTTEN, *AFTER), 0),
        ((*BEFORE, replace(ASKED, engine=2), FORGOTTEN, *AFTER), 0),
        ((*BEFORE, *reset(False), *reset(step=6), *AFTER), 1),
        ((*BEFORE, *reset(), *reset(False, step=6), *AFTER), 1),
        # It was not asked, or never forgets anything.
        ((*BEFORE, local(), *AFTER), 0),
        ((*BEFORE, *reset(inherits=True), *AFTER), 0),
        ((*BEFORE, *reset(inherits=True), *reset(step=6), *AFTER), 1),
        ((*BEFORE, local(), *reset(), *AFTER), 1),
        # Another engine's reset is none of this one's.
        ((*BEFORE, *reset(engine=2), *AFTER), 0),
        # It lived at the reset, or came later.
        ((added("a"), *reset(), *AFTER), 0),
        ((added("a"), alloc(0, request="a"), done("r2"), *reset(), *AFTER), 0),
        ((*reset(), added("a"), *AFTER), 0),
        ((*reset(), added("a"), done("a"), *AFTER), 0),
        ((*reset(), added("a", engine=2), *AFTER), 1),
        # What is shared between tenants is the affair of MATCH-17.
        ((*reset(), added("a", whose="tenant"), *AFTER), 0),
        # A local reset in the step of the connector's forgets nothing more.
        ((*reset(), added("a"), done("a"), local(), *AFTER), 0),
        ((*reset(), replace(added("a"), action="abort"), *AFTER), 1),
        # An id that is used again: both prompts have been computed since.
        ((added("a"), *reset(), done("a"), added("a", (7, 8, 9)), *AFTER), 0),
        ((added("a", (7, 8, 9)), *reset(), done("a"), added("a"), *AFTER), 0),
        # Nothing is promised: nothing is stale.
        ((*BEFORE, *reset(), added("b"), asked("b", 0)), 0),
        ((*BEFORE, *reset(), added("b"), asked("b", 0, computed=16)), 0),
        ((*BEFORE, *reset(), added("b"), alloc(0, request="b"), HookCall(1, 6, "worker", "get_finished")), 0),
    ],
)
def test_hit_after_a_reset_on_what_was_stored_before_it(events: tuple[Event, ...], count: int) -> None:
    findings = found("RST-02", *events)
    assert len(findings) == count
    assert all(finding.requests == ("b",) for finding in findings)


@pytest.mark.parametrize(
    ("computed", "tokens", "count"),
    [(0, 32, 0), (0, 33, 1), (0, 48, 1), (16, 16, 0), (16, 17, 1), (32, 0, 0), (40, 1, 1)],
)
def test_front_that_was_computed_since_may_be_promised(computed: int, tokens: int, count: int) -> None:
    """32 tokens of one request, and fewer of others."""
    fork = (*COMMON[:32], 99, *COMMON[33:])
    others = (added("c", COMMON[:8]), added("d", fork), added("e", (99,)))
    findings = found("RST-02", *BEFORE, *reset(), *others, added("b"), asked("b", tokens, computed=computed))
    assert len(findings) == count
    assert all(finding.expected.startswith("at most the 32 leading tokens") for finding in findings)


def test_request_has_no_part_in_its_own_hit_before_it_got_blocks() -> None:
    again = (added("b"), *reset(), asked("b"))
    assert [finding.requests for finding in found("RST-02", *again)] == [("b",)]
    assert found("RST-02", added("b"), alloc(0, request="b"), *reset(), asked("b")) == []
    assert len(found("RST-02", added("b"), alloc(0, request="c"), *reset(), asked("b"))) == 1
    (finding,) = found("RST-02", *BEFORE, *reset(), *AFTER, asked("b", step=7))
    assert finding.expected.startswith("at most the 0 leading tokens")


# -- what is found again -----------------------------------------------------------------------------------------------

SERVED = (added("a"), asked("a", step=1), done("a"))


def put_off(query: HookCall) -> HookCall:
    return replace(query, result=(None, False))


def tries(*tokens: int, computed: int = 0, prompt: tuple[int, ...] = COMMON, whose: str = "") -> tuple[Event, ...]:
    """Requests of the same prompt one after the other, and what each was promised."""
    each = (
        (added(f"b{n}", prompt, whose=whose), asked(f"b{n}", t, computed=computed, step=6 + n))
        for n, t in enumerate(tokens)
    )
    return tuple(event for events in each for event in events)


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((*SERVED, *reset(), *tries(0, 0, 0)), 1),
        ((*SERVED, *reset(), *tries(0, 0, 0, 0, 0)), 1),
        ((*SERVED, *reset(), *tries(0, 0)), 0),
        ((*SERVED, *reset(), *tries(0, 0, 48)), 0),
        ((*SERVED, *reset(), *tries(0, 16, 0, 0, 0)), 0),
        ((*SERVED, *reset(), *tries(0, 0, 0, computed=16)), 0),
        ((*SERVED, *reset(), *tries(0, 0, 0, prompt=COMMON[:40])), 0),
        ((*SERVED, *reset(False), *tries(0, 0, 0)), 0),
        ((added("a"), asked("a", 0), done("a"), *reset(), *tries(0, 0, 0)), 0),
        ((added("a"), failing(asked("a")), done("a"), *reset(), *tries(0, 0, 0)), 0),
        ((*SERVED, *reset(), *[failing(e) if isinstance(e, HookCall) else e for e in tries(0, 0, 0)]), 0),
        # One request that asks again and again was computed once at most, and an answer that is put off is none.
        ((*SERVED, *reset(), added("b0"), *[asked("b0", 0)] * 5), 0),
        ((*SERVED, *reset(), *[put_off(e) if isinstance(e, HookCall) else e for e in tries(0, 0, 0)]), 0),
        ((*SERVED, *reset(), *tries(0, 0), added("b2"), put_off(asked("b2")), asked("b2", 0)), 1),
        ((*SERVED, *reset(), *tries(0, 0), added("b2"), put_off(asked("b2")), asked("b2")), 0),
        # What was first found after the reset was not served before it.
        ((*reset(), *SERVED, *tries(0, 0, 0)), 0),
        # Found after one reset and never after the next.
        ((*SERVED, *reset(), *tries(0, 48), *reset(step=9), *tries(0, 0, 0)), 1),
        ((*SERVED, *reset(), *tries(0, 0), *reset(step=9), *tries(0, 0)), 0),
        ((*reset(), *SERVED, *reset(step=9), *tries(0, 0, 0)), 1),
        # The same tokens of another tenant, and of that one: what was served was another's.
        ((*SERVED, *reset(), *tries(0, 0, 0, whose="tenant")), 0),
        ((added("a", whose="tenant"), asked("a", step=1), done("a"), *reset(), *tries(0, 0, 0, whose="tenant")), 1),
        # Two engines forget each for itself.
        ((*SERVED, *reset(), *[replace(event, engine=2) for event in tries(0, 0, 0)]), 0),
    ],
)
def test_prompt_that_is_never_found_again(events: tuple[Event, ...], count: int) -> None:
    findings = found("RST-07", *events)
    assert len(findings) == count
    assert all("request number 3 for this prompt" in finding.observed for finding in findings)
    assert all(finding.requests == ("b2",) for finding in findings)


@pytest.mark.parametrize(
    ("events", "asked_for", "again"),
    [
        ((*SERVED, *reset(), *tries(0, 48, 48)), 3, 1),
        ((*SERVED, *reset(), *tries(1)), 1, 1),
        ((*SERVED, *reset(), *tries(0, 0)), 2, 0),
        ((*SERVED, *reset(), *tries(0, 48, prompt=COMMON[:40])), 0, 0),
        ((*SERVED, *reset(), *tries(0, 48, whose="tenant")), 0, 0),
        ((*SERVED, *tries(48)), 0, 0),
        ((*SERVED, *reset(inherits=True), *tries(48)), 0, 0),
        ((*SERVED, added("c", (1, 2, 3)), asked("c", 2), *reset(), *tries(48), *tries(2, prompt=(1, 2, 3))), 2, 2),
    ],
)
def test_queries_after_a_reset_and_prompts_that_are_found_again_are_counted(
    events: tuple[Event, ...], asked_for: int, again: int
) -> None:
    assert (witness("RST-02", *events), witness("RST-07", *events)) == (asked_for, again)


# -- the engine's own cache --------------------------------------------------------------------------------------------


def test_local_reset_of_an_idle_engine_that_fails_is_told_once() -> None:
    failed = local(succeeded=False, step=6)
    (finding,) = found("RST-06", local(), failed, local(succeeded=False, step=7))
    assert finding.at is failed


@pytest.mark.parametrize(
    "event", [local(), local(succeeded=False, idle=False), replace(local(succeeded=False), connector=True)]
)
def test_reset_that_works_or_need_not_is_right(event: CacheReset) -> None:
    assert found("RST-06", event) == []


def test_resets_are_counted_for_what_they_show() -> None:
    events = (*reset(), *reset(), *reset(idle=False), *reset(inherits=True), *reset(inherits=True, idle=False))
    events = (*events, local(), local(idle=False), local(succeeded=False))
    assert witness("RST-01", *events) == 3
    assert witness("RST-06", *events) == 4, "idle and successful"


# -- resets amid requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "count"),
    [
        (reset(idle=False), 2),
        ((*reset(), *reset(idle=False)), 2),
        (reset(), 0),
        (reset(idle=False, inherits=True), 0),
        ((local(idle=False),), 0),
        ((), 0),
    ],
)
def test_requests_that_end_beside_a_reset_are_counted(events: tuple[Event, ...], count: int) -> None:
    ends = (ended("a"), ended("b"), Tokens(1, 1, "c", (5,), None))
    assert witness("RST-03", *events, *ends) == count


def acted(action: str, engine: int = 1) -> ProgramAction:
    return ProgramAction(engine, 1, action)


BUILT = HookCall(1, 1, "scheduler", "build_connector_meta", {"scheduled": {}}, "<Metadata>")


@pytest.mark.parametrize(
    ("events", "steps"),
    [
        ((acted("pause new"), BUILT, BUILT), 2),
        ((acted("pause all"), BUILT), 1),
        ((acted("pause all"), acted("abort"), BUILT), 1),
        ((acted("pause new"), BUILT, acted("resume"), BUILT), 1),
        ((acted("resume"), BUILT), 0),
        ((acted("abort"), BUILT), 0),
        ((BUILT,), 0),
        ((acted("pause new", 2), BUILT), 0),
        ((acted("pause new"), acted("pause new", 2), acted("resume", 2), BUILT), 1),
        ((acted("pause new"), HookCall(1, 1, "worker", "get_finished")), 0),
    ],
)
def test_steps_of_a_paused_engine_are_counted(events: tuple[Event, ...], steps: int) -> None:
    assert witness("RST-05", *events) == steps
