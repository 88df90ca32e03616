"""The end of an engine on hand-made histories: what it breaks, and what was seen of it."""

from __future__ import annotations

from typing import Any

import pytest
from histories import compared, found, history, raised, witness, wrong

from kvconform.checks import Finding
from kvconform.checks.shutdown import in_flight_rule, killed_rule, twice_rule
from kvconform.engine.events import Audited, EngineStarted, Event, ForeignState, ProgramAction


def act(action: str, engine: int = 1) -> ProgramAction:
    return ProgramAction(engine, 9, action)


def idle(engine: int = 1) -> Audited:
    return Audited(engine, 8, 31, 31)


def started(engine: int) -> EngineStarted:
    return EngineStarted(engine, 0, (16,), "recompute")


FOREIGN = ForeignState(1, 9, "scheduler", "shutdown", "self.views")


@pytest.mark.parametrize(
    ("rule", "during", "expected"),
    [
        ("SHUT-05", "worker shutdown", "cleaned up"),
        ("SHUT-05", "scheduler shutdown", "cleaned up"),
        ("SHUT-06", "second worker shutdown", "does nothing"),
        ("SHUT-06", "second scheduler shutdown", "does nothing"),
    ],
)
def test_shutdown_that_raises_breaks_the_rule_of_its_time(rule: str, during: str, expected: str) -> None:
    event = raised("shutdown", during=during)
    (finding,) = found(rule, event)
    assert (finding.rule, finding.at) == (rule, event)
    assert expected in finding.expected
    assert finding.observed == f"{during} raised RuntimeError: planted (vendor.py:7 in hook)"
    assert found("SHUT-06" if rule == "SHUT-05" else "SHUT-05", event) == []
    assert found(rule, FOREIGN, event) == [], "for want of the other role's state it fails at any time (ROLE-03)"
    assert found(rule, ForeignState(2, 9, "scheduler", "shutdown", "self.views"), event) == [finding]
    assert found(rule, ForeignState(1, 9, "scheduler", "take_events", "self.views"), event) == [finding]


def symptom(event: Event) -> Finding:
    return Finding("LIVE-01", "", "", event, symptom=True)


@pytest.mark.parametrize(
    ("rule_of", "event", "rule"),
    [
        (in_flight_rule, wrong(0, 15, engine=2), "SHUT-04"),
        (in_flight_rule, raised("start_load_kv", engine=2), "SHUT-02"),
        (killed_rule, wrong(0, 15, engine=2), "SHUT-03"),
        (killed_rule, raised("start_load_kv", engine=2), "SHUT-03"),
        (killed_rule, raised("register_kv_caches", during="start-up", engine=2), "SHUT-08"),
        (twice_rule, raised("start_load_kv"), "SHUT-06"),
    ],
)
def test_symptom_after_the_end_of_an_engine_is_about_what_it_shows(rule_of: Any, event: Event, rule: str) -> None:
    assert rule_of(history(event), symptom(event)) == rule


@pytest.mark.parametrize(
    ("rule", "events", "seen"),
    [
        ("SHUT-05", (act("shutdown"), act("shutdown again")), 1),
        ("SHUT-06", (act("shutdown"), act("shutdown again")), 1),
        ("SHUT-06", (act("shutdown"),), 0),
        # Amid requests: of engines that were not idle.
        ("SHUT-02", (act("shutdown"),), 1),
        ("SHUT-02", (act("shutdown"), act("shutdown", 2)), 2),
        ("SHUT-02", (idle(), act("shutdown")), 0),
        ("SHUT-02", (idle(2), act("shutdown")), 1),
        ("SHUT-02", (idle(), act("shutdown"), act("shutdown", 2)), 1),
        ("SHUT-02", (act("killed"), act("shutdown again")), 0),
        # What an engine that was killed has left.
        ("SHUT-03", (act("killed"), started(2), compared(16, engine=2), compared(32, engine=2)), 48),
        ("SHUT-03", (idle(), act("killed"), compared(16, engine=2)), 16),
        ("SHUT-03", (act("killed"), idle(2), act("killed", 2), compared(16, engine=3)), 16),
        ("SHUT-03", (act("killed", 2), compared(16), compared(32, engine=3)), 32),
        ("SHUT-03", (compared(16, engine=2), act("killed", 2)), 0),
        ("SHUT-03", (act("shutdown"), compared(16, engine=2)), 0),
        # What one has left that was shut down too early.
        ("SHUT-04", (act("shutdown"), compared(16, engine=2)), 16),
        ("SHUT-04", (act("shutdown"), idle(2), act("shutdown", 2), compared(16, engine=3)), 16),
        ("SHUT-04", (idle(), act("shutdown"), compared(16, engine=2)), 0),
        ("SHUT-04", (act("killed"), compared(16, engine=2)), 0),
        ("SHUT-08", (act("killed"), started(2)), 1),
        ("SHUT-08", (started(1), act("shutdown"), act("killed", 2), act("shutdown", 3), started(3), started(4)), 2),
        ("SHUT-08", (started(1), act("killed", 2)), 0),
        ("SHUT-08", (started(1), act("shutdown"), started(2)), 0),
    ],
)
def test_ends_are_counted_by_their_kind(rule: str, events: tuple[Event, ...], seen: int) -> None:
    assert witness(rule, *events) == seen
