"""All checks together: what an answer undermines, and what a known defect of vLLM excuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import broken, history, match, raised, wrong

from kvconform.checks import examine
from kvconform.checks.known_engine_bugs import Met
from kvconform.checks.model import Examination, Finding, KitFailure
from kvconform.engine.events import Event, KitFailed, NeverIdle, Outlasted
from kvconform.rules.engine_bugs import load_engine_bugs


def test_first_undermining_answer_counts_whichever_rule_it_breaks() -> None:
    negative, too_many = match((-5, False)), match((50, False), step=3)
    between, before = wrong(0, 15, step=2), wrong(0, 15)
    assert broken(negative, between, too_many) == ["MATCH-03", "MATCH-04"]
    assert broken(before, negative, too_many) == ["MATCH-03", "MATCH-04", "LOAD-01"]
    assert broken(replace(too_many, step=1), between, replace(negative, step=3)) == ["MATCH-03", "MATCH-04"]


def test_only_what_comes_with_the_defect_of_vllm_or_after_it_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    early, bad, late = match((-5, False)), wrong(0, 15, step=2), match((50, False), step=3)

    def first_met(seen: object, release: str) -> Met | None:
        return Met(load_engine_bugs()[0], met)

    monkeypatch.setattr("kvconform.checks.known_engine_bugs.first_met", first_met)
    met: Event = late
    examination = examine(history(early, bad, late), "0.33.0")
    assert [finding.rule for finding in examination.findings] == ["MATCH-03"]
    assert examination.excused == ("MATCH-04",)
    assert not examination.excused_symptom
    met = bad
    examination = examine(history(match((0, False)), bad, late, raised("wait_for_save", step=9)), "0.33.0")
    assert examination.findings == ()
    assert examination.excused == ("MATCH-04", "LOAD-01", "LIVE-01")
    assert examination.excused_symptom, "one symptom among them is enough"


def failed_in_the_kit(step: int) -> KitFailed:
    return KitFailed(
        1, step, "execute_model", "TypeError: unknown argument", "kvconform/engine/compat.py:1", "its lines"
    )


@pytest.mark.parametrize("before", [(), (match((16, False)),)])
def test_where_the_kit_failed_nothing_is_said_of_the_connector(before: tuple[Event, ...]) -> None:
    # What the kit's failure left behind is none of the connector's.
    told = "TypeError: unknown argument during execute_model .*compat.py:1.*\nits lines"
    with pytest.raises(KitFailure, match=told):
        examine(history(*before, failed_in_the_kit(1), match((-7, False), step=2)))


def test_what_the_kit_stumbled_over_is_told() -> None:
    wrong = match((-5, False))
    examination = examine(history(wrong, failed_in_the_kit(1), match((-7, False), request="r2", step=2)))
    assert [finding.at for finding in examination.findings] == [wrong]


WAITED = NeverIdle(1, 3, 200, ("r1",), 10.0)
LEFT = Outlasted(1, 4, 3.0, 0.0, ("r1",))


@pytest.mark.parametrize("event", [WAITED, LEFT], ids=["drained", "outlasted"])
def test_what_broke_after_a_shortened_wait_is_told_from_what_broke_after_a_full_one(
    event: NeverIdle | Outlasted,
) -> None:
    hurried = replace(event, hurried=True)
    finding = Finding("LIVE-02", "an end", "none", event)
    assert Examination(history(event, hurried), (finding,)).hurried is True
    assert Examination(history(hurried, event), (finding,)).hurried is True
    assert Examination(history(event), (finding,)).hurried is False
    assert Examination(history(event, hurried)).hurried is False
