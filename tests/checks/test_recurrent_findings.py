"""Wrong bytes in models with recurrent layers, on hand-made histories: whose rule they break, what counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import alloc, history, raised, witness, wrong

from kvconform.checks import Finding
from kvconform.checks.recurrent import divergent_hit_rule, reused_block_rule, rule_of
from kvconform.engine.byte_events import Held, WrongBytes
from kvconform.engine.events import DivergentHit, EngineStarted, Event

STARTED = EngineStarted(1, 0, (16, 16), "recompute", (1,))
ATTENTION_ONLY = EngineStarted(1, 0, (16, 16), "recompute")


def state(kind: str, what: str = "r1's token 63", *, request: str = "r1") -> WrongBytes:
    """A wrong state in the second group."""
    event = wrong(47, 47, f"token 47 holds {what}", request=request, held=(Held(47, 47, kind, what),))
    return replace(event, group=1, layer="model.layers.1.mixer")


def sorted_as(event: Event, *others: Event, by: object = rule_of, rule: str = "LOAD-01") -> str:
    finding = Finding(rule, "", "", event, symptom=True)
    return by(history(STARTED, *others, event), finding)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("other position", "HMA-06"),
        ("never written", "HMA-06"),
        ("stale", "HMA-06"),
        ("other request", "HMA-06"),
        # No state of anybody: the page was not copied as it is.
        ("unknown", "LAY-16"),
        ("rearranged", "LAY-16"),
    ],
)
def test_what_stands_instead_of_a_state_tells_how_it_went_wrong(kind: str, rule: str) -> None:
    assert sorted_as(state(kind)) == rule


def test_page_of_which_one_part_is_a_state_is_one_that_was_copied() -> None:
    parts = (Held(0, 7, "unknown", "bytes that nobody wrote"), Held(8, 15, "rearranged", "the same bytes"))
    mixed = replace(state("unknown"), held=parts)
    assert sorted_as(mixed) == "LAY-16"
    assert sorted_as(replace(mixed, held=(*parts, Held(16, 31, "stale", "r1's token 31")))) == "HMA-06"


def test_state_of_another_layer_tells_that_groups_were_mixed_up() -> None:
    assert sorted_as(state("other layer", "r1's token 47 (of layer model.layers.3.mixer)")) == "HMA-03"
    among_others = replace(
        state("stale"), observed=("token 31 holds r1's token 15 (of layer x)", "token 47 holds zeros")
    )
    assert sorted_as(among_others) == "HMA-03"


def test_wrong_slots_of_attention_and_exceptions_are_judged_as_with_any_groups() -> None:
    assert sorted_as(wrong(0, 15)) == "HMA-02"
    assert sorted_as(raised("start_load_kv")) == "HMA-02"


def test_same_bytes_in_a_group_that_is_not_recurrent_are_no_state() -> None:
    finding = Finding("LOAD-01", "", "", state("unknown"), symptom=True)
    assert rule_of(history(ATTENTION_ONLY, state("unknown")), finding) == "HMA-02"
    beside = replace(STARTED, engine=2)
    assert rule_of(history(beside, ATTENTION_ONLY, state("unknown")), finding) == "HMA-02"
    assert rule_of(history(replace(ATTENTION_ONLY, engine=2), STARTED, state("unknown")), finding) == "LAY-16"
    assert rule_of(history(state("unknown")), finding) == "HMA-02", "no engine came up"


def test_look_up_that_fails_at_registration_is_about_the_entry() -> None:
    assert sorted_as(raised("register_kv_caches", during="start-up"), rule="LAY-01") == "LAY-16"


def test_first_wrong_state_counts_and_not_what_was_computed_on_it() -> None:
    consequence = state("on wrong KV", "r1's token 47 (computed on top of wrong KV)")
    assert sorted_as(consequence, state("unknown")) == "LAY-16"
    assert sorted_as(state("unknown"), consequence) == "LAY-16"
    in_part = replace(consequence, observed=(*consequence.observed, "token 48 holds zeros"))
    assert sorted_as(state("unknown"), in_part) == "LAY-16"
    assert sorted_as(consequence) == "HMA-06", "where there is nothing else"


def test_state_behind_a_divergent_local_hit_is_about_the_claim() -> None:
    hit, load = DivergentHit(1, 1, "r1", 32), alloc(16)
    assert sorted_as(state("never written"), hit, load, by=divergent_hit_rule) == "MATCH-23"
    # Without the hit, without a load, and for another request it is the state's own rule.
    assert sorted_as(state("never written"), load, by=divergent_hit_rule) == "HMA-06"
    assert sorted_as(state("never written"), hit, alloc(0), by=divergent_hit_rule) == "HMA-06"
    assert sorted_as(state("never written", request="r2"), hit, load, by=divergent_hit_rule) == "HMA-06"
    assert sorted_as(wrong(0, 15), hit, load, by=divergent_hit_rule) == "HMA-02", "no state is wrong"


def test_state_that_is_wrong_once_blocks_are_short_was_stored_too_late() -> None:
    assert sorted_as(state("other request"), by=reused_block_rule) == "META-10"
    assert sorted_as(wrong(0, 15), by=reused_block_rule) == "HMA-02"


@pytest.mark.parametrize("rule", ["HMA-06", "META-10", "LAY-16"])
def test_loads_on_models_with_recurrent_layers_are_the_witness(rule: str) -> None:
    assert witness(rule, STARTED, alloc(16), alloc(0), alloc(16, engine=2)) == 1
    assert witness(rule, STARTED, alloc(1)) == 1
    assert witness(rule, ATTENTION_ONLY, alloc(16)) == 0


def test_only_loads_that_complete_a_divergent_hit_are_the_witness_for_the_claim() -> None:
    assert witness("MATCH-23", STARTED, DivergentHit(1, 1, "r1", 32), alloc(16)) == 1
    assert witness("MATCH-23", STARTED, DivergentHit(1, 1, "r1", 32), alloc(16, step=2)) == 0
    assert witness("MATCH-23", STARTED, alloc(16)) == 0
