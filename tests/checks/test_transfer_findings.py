"""The bytes of loads on hand-made histories: what is told of them, and whose rule a symptom beside local hits is."""

from __future__ import annotations

import pytest
from histories import LAYER, alloc, found, history, match, raised, stray, witness, wrong

from kvconform.checks.model import Finding
from kvconform.checks.transfer import local_hit_rule
from kvconform.engine.events import EngineStarted, Event, StoreBroken

POISON, EVERYWHERE = "tokens 0-15 hold poison of block 1", "tokens 16-31 hold 7.0 everywhere"


def test_layer_that_stays_wrong_is_named_once() -> None:
    (finding,) = found("LOAD-01", wrong(0, 15), wrong(0, 15, step=2))
    assert finding.observed.startswith(f"after the load, in layer {LAYER}, block(s) 1: ")


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ((POISON, POISON), "Nothing was loaded"),
        ((EVERYWHERE, EVERYWHERE), 'capabilities = ["dummy-fill"]'),
        ((POISON, EVERYWHERE), ""),
        ((POISON, "tokens 16-31 hold zeros"), ""),
        ((EVERYWHERE, "tokens 0-15 hold zeros"), ""),
    ],
)
def test_bytes_that_are_the_same_all_over_get_a_hint(said: tuple[str, str], hint: str) -> None:
    (finding,) = found("LOAD-01", wrong(0, 31, *said))
    assert finding.details[0] == said[1]
    assert len(finding.details) == (2 if hint else 1)
    assert hint in finding.details[-1]


def test_hook_that_raises_amid_a_load_is_a_symptom_of_the_smallest_load_too() -> None:
    (finding,) = found("LOAD-01", alloc(1), raised("start_load_kv"))
    assert finding.symptom
    assert finding.expected == "start_load_kv delivers the 1 tokens of r1 that get_num_new_matched_tokens promised"


def test_load_that_could_only_fail_hides_no_later_one() -> None:
    groups = (EngineStarted(1, 0, (16, 16), "recompute"), StoreBroken(1, 0, "data", "missing", 1))
    events = (*groups, alloc(32), raised("start_load_kv"), alloc(32, engine=2), raised("start_load_kv", engine=2))
    (finding,) = found("LOAD-01", *events)
    assert finding.at.engine == 2


def test_wrong_slot_that_nobody_loaded_is_a_symptom_with_all_that_is_known_of_it() -> None:
    event = wrong(0, 31, "tokens 0-15 hold zeros", "tokens 16-31 hold r2's tokens 0-15", external=False)
    (finding,) = found("LOAD-01", event)
    assert finding.details == ("tokens 16-31 hold r2's tokens 0-15",)
    assert finding.requests == ("r1",)
    assert finding.symptom
    assert found("LOAD-01", wrong(0, 15, reported_failed=True), event) == [finding], (
        "another load was reported as failed"
    )


@pytest.mark.parametrize(
    ("rule", "owners", "expected"),
    [
        ("LOAD-03", (), "only slots of the load's own blocks change"),
        ("ALLOC-02", ("r1",), "blocks that no load is to fill keep their content"),
    ],
)
def test_stray_write_is_a_symptom_and_says_what_should_be(rule: str, owners: tuple[str, ...], expected: str) -> None:
    (finding,) = found(rule, stray(9, *owners))
    assert (finding.expected, finding.symptom) == (expected, True)
    assert found(rule, stray(9, *owners, held=True)) == []


def test_loads_of_one_token_are_loads() -> None:
    assert witness("LOAD-03", alloc(1), alloc(0)) == 1
    assert witness("ALLOC-02", match((1, False), computed=1), alloc(1)) == 1


def test_local_hit_is_that_of_the_request_in_its_engine() -> None:
    asked = match((16, False), computed=16)
    assert witness("ALLOC-02", alloc(16)) == 0
    assert witness("ALLOC-02", asked, match((16, False), engine=2), alloc(16)) == 1
    assert witness("ALLOC-02", asked, match((16, False), engine=2), alloc(16, engine=2)) == 0
    assert witness("ALLOC-02", asked, alloc(16, request="r2")) == 0


BEHIND = (match((32, False), computed=16), alloc(32))
FOLLOWS = "tokens 0-15 hold r1's (computed on top of wrong KV)"


@pytest.mark.parametrize(
    ("events", "rule"),
    [
        ((*BEHIND, wrong(16, 47)), "ALLOC-01"),
        ((wrong(16, 47),), "PRE-01"),
        ((*BEHIND, wrong(0, 15, FOLLOWS, "more", request="r2"), wrong(16, 47)), "ALLOC-01"),
        ((*BEHIND, wrong(16, 47, FOLLOWS), wrong(0, 15, request="r2")), "PRE-01"),
        ((*BEHIND, wrong(0, 15, FOLLOWS, request="r2")), "PRE-01"),
        ((*BEHIND, wrong(16, 47, FOLLOWS)), "ALLOC-01"),
        ((raised("start_load_kv"),), "ALLOC-01"),
        ((stray(9, "r1"), wrong(16, 47)), "ALLOC-02"),
        ((stray(9), wrong(16, 47)), "PRE-01"),
        ((stray(9, "r1", held=True), wrong(16, 47)), "PRE-01"),
    ],
    ids=[
        "behind a local hit", "without one", "first-hand behind one", "first-hand without one", "nothing first-hand",
        "nothing first-hand behind one", "an exception", "overwritten KV", "a block of nobody", "KV of the finished",
    ],
)  # fmt: skip
def test_symptom_beside_local_hits_is_theirs_if_what_went_wrong_first_is(events: tuple[Event, ...], rule: str) -> None:
    symptom = Finding("LOAD-01", "", "", events[-1], symptom=True)
    assert local_hit_rule(otherwise="PRE-01")(history(*events), symptom) == rule
