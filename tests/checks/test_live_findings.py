"""Exceptions, endless requests and leaks on hand-made histories: which of them are a defect of their own."""

from __future__ import annotations

import pytest
from histories import alloc, broken, found, match, raised

from kvconform.engine.events import EngineStarted, Event, Leaked, NeverIdle, ProgramAction, StoreBroken

LATER = raised("wait_for_save", step=9)
GROUPS = (EngineStarted(1, 0, (16, 16), "recompute"), StoreBroken(1, 0, "data", "missing", 1))


@pytest.mark.parametrize(
    ("events", "rules"),
    [
        ((raised(None, during="start-up", step=0),), []),
        ((match((49, False)), raised(None)), ["MATCH-05"]),
        ((*GROUPS, raised("start_load_kv")), []),
        ((GROUPS[0], raised("start_load_kv")), ["LIVE-01"]),
    ],
    ids=["a refusal", "explained by another rule", "no other way to tell of a failed load", "nothing was broken"],
)
def test_exception_that_is_no_defect_of_its_own_hides_no_later_one(events: tuple[Event, ...], rules: list[str]) -> None:
    assert broken(*events) == rules
    assert found("LIVE-01", *events, LATER)[-1].at == LATER


def test_only_another_set_up_is_an_excuse_for_an_engine_that_does_not_start() -> None:
    refusal = raised("register_kv_caches", during="start-up", step=0, engine=2)
    assert broken(ProgramAction(2, 0, "restart"), refusal) == ["LIVE-01"]
    assert broken(ProgramAction(2, 0, "another set-up"), refusal) == []


def test_request_that_never_ends_is_a_symptom_within_its_time() -> None:
    (finding,) = found("LIVE-02", NeverIdle(1, 99, 400, ("r1",), 2.5))
    assert (finding.rule, finding.requests, finding.symptom) == ("LIVE-02", ("r1",), True)
    assert finding.expected == "an idle engine within 400 steps and 2.5 s (setting: transfer_timeout)"


def test_engine_that_waits_for_a_load_hides_no_other_one_that_is_stuck() -> None:
    loading = (ProgramAction(1, 0, "add", {"request": "r1"}), match((32, True)), alloc(32))
    waiting, stuck = NeverIdle(1, 99, 90, ("r1",)), NeverIdle(2, 99, 90, ("r2",))
    assert broken(*loading, waiting, stuck) == ["ASYNC-01", "LIVE-02"]
    (finding,) = found("LIVE-02", *loading, waiting, stuck)
    assert finding.at == stuck


def test_leak_is_told_with_its_rule() -> None:
    (finding,) = found("LIVE-03", Leaked(1, 9, "blocks", "1 block"))
    assert finding.rule == "LIVE-03"
