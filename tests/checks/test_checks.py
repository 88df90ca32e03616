"""Every check on histories made by hand: what it finds, what it has seen, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
from histories import (
    LAYER,
    alloc,
    broken,
    compared,
    crossed,
    ended,
    found,
    history,
    match,
    raised,
    stray,
    witness,
    wrong,
)

from kvconform.checks import ALL_CHECKS, CHECKS_BY_RULE, examine
from kvconform.checks.hand_off_situations import SITUATIONS
from kvconform.engine.events import (
    Audited,
    EngineRaised,
    Event,
    HookCall,
    Leaked,
    MetadataHeld,
    NeverIdle,
    RolesInspected,
    TransferParams,
)
from kvconform.rules import load_catalogue

# -- all checks ------------------------------------------------------------------------------------------------

CLEAN: tuple[Event, ...] = (
    match((0, False)),
    alloc(0),
    compared(0),
    ended(),
    match((48, False), request="r2", step=2),
    alloc(48, request="r2", step=2),
    compared(48, request="r2", step=2),
    crossed("scheduler output"),
    crossed("worker output"),
    crossed("handshake metadata"),
    ended("r2", 2),
    Audited(1, 3, 31, 31),
    MetadataHeld(1, 2, ()),
    RolesInspected(1, 3, ()),
    TransferParams(1, 3, "r2", ()),
)


def test_nothing_is_found_in_a_clean_history() -> None:
    examination = examine(history(*CLEAN))
    assert examination.findings == ()
    assert examination.clean
    names = {check.rule for check in ALL_CHECKS} | {situation.name for situation in SITUATIONS}
    assert set(examination.witnesses) == names


def test_nothing_is_found_or_witnessed_where_nothing_happened() -> None:
    examination = examine(history())
    assert examination.clean
    assert [rule for rule, seen in examination.witnesses.items() if any(seen.values())] == []


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.rule)
def test_every_check_is_about_a_rule_and_says_what_was_missing(check: Any) -> None:
    assert check.rule in {rule.id for rule in load_catalogue().rules}
    assert check.missing
    assert not check.missing.endswith(".")
    assert check.missing[0].islower()


def test_no_rule_has_two_checks() -> None:
    assert len(CHECKS_BY_RULE) == len(ALL_CHECKS)


# -- MATCH -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "rules"),
    [
        ((0, False), []),
        ((48, False), []),
        ((48, True), []),
        ((49, True), []),  # an asynchronous load of everything: the engine computes the last token itself
        ((None, False), []),
        ((None, True), []),
        ((49, False), ["MATCH-05"]),
        ((50, False), ["MATCH-04"]),
        ((50, True), ["MATCH-04"]),
        ((-1, False), ["MATCH-03"]),
        ((0, True), ["MATCH-07"]),
        (None, ["MATCH-01"]),
        (48, ["MATCH-01"]),
        ((48,), ["MATCH-01"]),
        ((48, False, 0), ["MATCH-01"]),
        (("48", False), ["MATCH-01"]),
        ((True, False), ["MATCH-01"]),
        ((48, None), ["MATCH-01"]),
        ((48, 1), ["MATCH-01"]),
    ],
    ids=str,
)
def test_answers_to_a_match_query(answer: Any, rules: list[str]) -> None:
    assert broken(match(answer)) == rules
    for rule in rules:
        (finding,) = found(rule, match(answer))
        assert finding.requests == ("r1",)
        assert not finding.symptom
        assert "get_num_new_matched_tokens(r1, num_computed_tokens=0) for a request of 49 tokens" in finding.observed


def test_a_local_hit_leaves_less_room() -> None:
    assert broken(match((17, False), computed=32)) == ["MATCH-05"]
    assert broken(match((16, False), computed=32)) == []
    (finding,) = found("MATCH-05", match((17, False), computed=32))
    assert finding.expected == "at most 16 tokens, so that one is left to compute"
    (finding,) = found("MATCH-04", match((18, False), computed=32))
    assert finding.expected == "at most 17 tokens"


def test_request_with_nothing_left_can_be_offered_nothing_and_one_with_a_token_left_not_even_that() -> None:
    assert broken(match((0, False), computed=49)) == []
    assert broken(match((1, False), computed=48)) == ["MATCH-05"]
    assert broken(match((1, True), computed=48)) == []


def test_a_query_that_raised_is_no_answer() -> None:
    call = HookCall(1, 1, "scheduler", "get_num_new_matched_tokens", match(None).args, None, "ValueError: x", "a.py:1")
    assert broken(call) == []
    assert witness("MATCH-01", call) == 0


@pytest.mark.parametrize(
    ("rule", "event", "seen"),
    [
        ("MATCH-01", match((0, False)), 1),
        ("MATCH-03", match((0, False), computed=1), 1),
        ("MATCH-04", match((1, False)), 1),
        ("MATCH-03", match((0, False)), 0),
        ("MATCH-03", match((0, False), computed=16), 1),
        ("MATCH-04", match((0, False)), 0),
        ("MATCH-04", match((16, False)), 1),
        ("MATCH-05", match((0, False)), 0),
        ("MATCH-05", match((16, False)), 1),
        ("MATCH-07", match((16, True)), 0),
        ("MATCH-07", match((0, False)), 1),
        ("MATCH-07", match((None, False)), 0),
    ],
)
def test_match_rules_are_witnessed_by_their_situation(rule: str, event: Event, seen: int) -> None:
    assert witness(rule, event) == seen


def test_what_follows_from_a_senseless_answer_is_not_reported() -> None:
    """After it the scheduler's state proves nothing; what came before it does."""
    before, after = wrong(0, 15, request="early"), wrong(0, 15, request="late", step=3)
    events = (before, match((-5, False), step=2), after, raised(None, step=3), stray(9, step=3))
    assert broken(*events) == ["MATCH-03", "LOAD-01"]
    findings = examine(history(*events)).findings
    assert findings[1].requests == ("early",)


def test_another_engine_is_not_undermined() -> None:
    events = (match((-5, False), engine=1), wrong(0, 15, engine=2, step=4))
    assert broken(*events) == ["MATCH-03", "LOAD-01"]


# -- LOAD and ALLOC --------------------------------------------------------------------------------------------


def test_wrong_bytes_of_one_request_are_one_finding() -> None:
    other = LAYER.replace("0", "1")
    said = ("tokens 0-15 hold r2's tokens 0-15", "tokens 16-31 hold zeros")
    (finding,) = found("LOAD-01", wrong(0, 31, *said), wrong(0, 31, "tokens 0-31 hold zeros", layer=other))
    assert finding.expected == "r1's tokens 0-31 as they were computed when they were stored"
    assert finding.observed == (
        f"after the load, in layer {LAYER} and 1 more, block(s) 1, 2: tokens 0-15 hold r2's tokens 0-15"
    )
    assert finding.details == ("tokens 16-31 hold zeros",)
    assert finding.requests == ("r1",)
    assert finding.symptom


def test_wrong_bytes_that_stay_wrong_are_reported_once() -> None:
    assert len(found("LOAD-01", wrong(0, 15), wrong(0, 15, step=2), wrong(0, 15, step=3))) == 1


def test_each_request_and_engine_is_a_finding_of_its_own() -> None:
    events = (wrong(0, 15), wrong(0, 15, request="r2"), wrong(0, 15, engine=2))
    assert [finding.requests for finding in found("LOAD-01", *events)] == [("r1",), ("r2",), ("r1",)]


def test_a_load_that_was_reported_as_failed_is_not_accused() -> None:
    assert broken(wrong(0, 15, reported_failed=True)) == []
    assert broken(wrong(0, 15, reported_failed=True), wrong(0, 15, reported_failed=True, external=False)) == []


def test_wrong_slots_that_nobody_loaded_are_accused_once_if_nothing_explains_them() -> None:
    local = wrong(0, 15, external=False)
    (finding,) = found("LOAD-01", local, wrong(16, 20, external=False))
    assert finding.expected == "r1's tokens 0-15 as computed"
    assert len(found("LOAD-01", wrong(0, 15), local)) == 1, "the wrong load explains them"
    assert found("LOAD-01", stray(1, "r1"), local) == [], "the stray write explains them"


def test_wrong_positions_are_named_in_runs() -> None:
    event = wrong(0, 31)
    gap = wrong(40, 40)
    scattered = type(event)(**{**event.__dict__, "positions": (*event.positions, *gap.positions)})
    (finding,) = found("LOAD-01", scattered)
    assert finding.expected.startswith("r1's tokens 0-31, token 40 as they")


@pytest.mark.parametrize("hook", ["start_load_kv", "wait_for_layer_load"])
def test_a_loading_hook_that_raises_breaks_its_promise(hook: str) -> None:
    assert broken(alloc(32), raised(hook)) == ["LOAD-01"]
    (finding,) = found("LOAD-01", alloc(32), alloc(16, request="r2"), raised(hook))
    assert finding.expected.startswith(f"{hook} delivers the 32 tokens of r1, 16 tokens of r2 that")
    assert finding.observed == f"{hook} raised RuntimeError: planted (vendor.py:7 in hook)"
    assert finding.requests == ("r1", "r2")


def test_a_loading_hook_that_raises_without_a_load_breaks_no_promise() -> None:
    assert broken(alloc(0), raised("start_load_kv")) == ["LIVE-01"]
    assert broken(alloc(32), raised("start_load_kv", step=2)) == ["LIVE-01"]
    assert broken(alloc(32), raised("wait_for_save")) == ["LIVE-01"]


@pytest.mark.parametrize(
    ("write", "rule", "text"),
    [
        (stray(0), "LOAD-03", f"block 0, the null block, in layer {LAYER} changed while saving"),
        (
            stray(-1, layer="guard bytes behind the last view", slots=(-1,)),
            "LOAD-03",
            "guard bytes behind the last view",
        ),
        (stray(9), "LOAD-03", f"block 9 slots 0-1 of layer {LAYER}, which no request owns, changed"),
        (stray(9, "r1"), "ALLOC-02", f"block 9 slots 0-1 of layer {LAYER}, KV of r1, changed"),
        (stray(9, "r1", "r2", slots=(3,)), "ALLOC-02", f"block 9 slot 3 of layer {LAYER}, KV of r1 and r2,"),
    ],
)
def test_a_stray_write_belongs_to_the_rule_of_its_place(write: Any, rule: str, text: str) -> None:
    assert broken(write) == [rule]
    (finding,) = found(rule, write)
    assert finding.observed.startswith(text)
    assert finding.requests == write.owners


def test_a_stray_write_says_what_was_written() -> None:
    (finding,) = found("LOAD-03", stray(9, observed=("tokens 0-1 hold r1's tokens 0-1", "more")))
    assert finding.observed.endswith("changed while saving: tokens 0-1 hold r1's tokens 0-1")
    assert finding.details == ("more",)


def test_all_layers_of_a_block_are_one_stray_write() -> None:
    layers = [stray(9, layer=f"layer {i}") for i in range(3)]
    assert len(found("LOAD-03", *layers, stray(9, step=2), stray(8))) == 3


@pytest.mark.parametrize(
    ("rule", "events", "seen"),
    [
        ("LOAD-01", (compared(0), compared(0, local=16)), 0),
        ("LOAD-01", (compared(32), compared(48, step=2)), 48),
        ("LOAD-01", (compared(32), compared(16, request="r2"), compared(8, engine=2)), 56),
        ("LOAD-03", (alloc(0),), 0),
        ("LOAD-03", (alloc(16), alloc(16, request="r2")), 2),
        ("ALLOC-02", (match((16, False)), alloc(16)), 0),
        ("ALLOC-02", (match((16, False), computed=16), alloc(16)), 1),
        ("ALLOC-02", (match((16, False), computed=16), alloc(0)), 0),
    ],
)
def test_load_rules_are_witnessed_by_their_situation(rule: str, events: tuple[Event, ...], seen: int) -> None:
    assert witness(rule, *events) == seen


# -- crossings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "what"),
    [("ROLE-06", "scheduler output"), ("ROLE-08", "worker output"), ("ROLE-09", "handshake metadata")],
)
def test_what_cannot_be_pickled_breaks_the_rule_of_its_crossing(rule: str, what: str) -> None:
    events = (
        crossed(what, "TypeError: cannot pickle"),
        EngineRaised(1, 1, f"serialising the {what}", "TypeError: cannot pickle", "x.py:1", None),
    )
    assert broken(*events) == [rule], "the exception that ended the engine is no second defect"
    (finding,) = found(rule, *events)
    assert finding.observed == f"pickling the {what} raised TypeError: cannot pickle"
    assert witness(rule, *events) == 0
    assert witness(rule, crossed(what)) == 1
    assert witness(rule, crossed("something else")) == 0


# -- LIVE ------------------------------------------------------------------------------------------------------


def test_an_exception_names_its_hook_or_vllm() -> None:
    (finding,) = found("LIVE-01", raised("wait_for_save"))
    assert finding.observed == "wait_for_save raised RuntimeError: planted (vendor.py:7 in hook)"
    (finding,) = found("LIVE-01", raised(None))
    assert finding.observed == "vLLM raised RuntimeError: planted during execute_model (vendor.py:7 in hook)"
    assert finding.symptom


def test_an_exception_that_another_finding_explains_is_that_findings() -> None:
    assert broken(match((49, False)), raised(None, during="schedule")) == ["MATCH-05"]
    assert broken(match((49, False)), raised(None, during="schedule", engine=2)) == ["MATCH-05", "LIVE-01"]


def test_a_first_engine_that_does_not_start_is_a_refusal_and_a_second_one_a_defect() -> None:
    assert broken(raised(None, during="start-up", step=0)) == []
    assert broken(raised("register_kv_caches", during="start-up", step=0, engine=2)) == ["LIVE-01"]


def test_an_exception_before_the_first_step_is_no_refusal() -> None:
    assert broken(raised("on_new_request", during="add_request", step=0)) == ["LIVE-01"]


def test_requests_that_never_end() -> None:
    (finding,) = found("LIVE-02", NeverIdle(1, 400, 400, ("r1", "r2")))
    assert finding.observed == "these requests never ended: r1, r2"
    assert finding.requests == ("r1", "r2")
    (finding,) = found("LIVE-02", NeverIdle(1, 400, 400, ()))
    assert finding.observed == "has_requests() stays True"
    assert witness("LIVE-02", ended()) == 1
    assert witness("LIVE-02", NeverIdle(1, 400, 400, ())) == 0


def test_what_an_idle_engine_holds() -> None:
    (finding,) = found("LIVE-03", Leaked(1, 9, "blocks", "1 blocks with references: [4]; 30 of 31 free"))
    assert finding.observed == "blocks: 1 blocks with references: [4]; 30 of 31 free"
    assert witness("LIVE-03", Audited(1, 9, 31, 31)) == 1
    assert witness("LIVE-01", match((0, False))) == 1
