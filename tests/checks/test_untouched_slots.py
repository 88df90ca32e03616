"""Wrong slots that a load has left as they were handed out tell of the load, and not of what had been stored."""

from __future__ import annotations

import pytest
from histories import history, wrong

from kvconform.checks.model import Finding
from kvconform.checks.transfer import left_untouched
from kvconform.engine.byte_events import Held, WrongBytes
from kvconform.scenario.transfer import drafts

OWN = Held(16, 31, "never written", "poison of block 2 (engine 1)")
OTHERS = Held(16, 31, "never written", "poison of block 21 (engine 1)")
EARLIER = Held(16, 31, "stale", "poison of an earlier life of block 2 (engine 1)")
DRAFTS = Held(16, 31, "unknown", "bytes that nobody computed in this run")


def of_block_2(held: Held) -> WrongBytes:
    return wrong(16, 31, held=(held,))


@pytest.mark.parametrize(("held", "untouched"), [(OWN, True), (OTHERS, False), (EARLIER, False), (DRAFTS, False)])
def test_only_the_poison_of_its_own_block_shows_that_nothing_was_loaded(held: Held, untouched: bool) -> None:
    assert left_untouched(of_block_2(held)) is untouched
    assert left_untouched(wrong(16, 31, held=(DRAFTS, held))) is untouched, "some of its slots are enough"


@pytest.mark.parametrize(
    ("held", "rule", "said"), [(OWN, "LOAD-01", "nothing was loaded"), (DRAFTS, "META-07", "drafts")]
)
def test_a_load_that_brings_nothing_is_not_held_against_what_was_stored(held: Held, rule: str, said: str) -> None:
    family, at = drafts(), of_block_2(held)
    assert family.sort is not None
    assert family.explain is not None
    finding = Finding("LOAD-01", "right bytes", "wrong bytes", at, requests=("r1",), symptom=True)
    assert family.sort(history(at), finding) == rule
    assert said in family.explain(history(at))
