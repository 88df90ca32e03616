"""Who waits for a store that never answers, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import failing, found, history, match, witness
from test_asynchronous_findings import stuck
from test_failure_findings import START, step

from kvconform.checks.silent_store import ended_in_silence
from kvconform.engine.events import Event, ProgramAction, StoreBroken

SILENT = StoreBroken(1, 1, "silent", "every entry is silent", 3)
NOTHING = replace(SILENT, files=0)
REMOVED = replace(SILENT, kind="data")
MENDED = replace(SILENT, kind="mended", files=0)


def add(request: str, seed: int = 1) -> ProgramAction:
    return ProgramAction(1, 0, "add", {"request": request, "tokens": (seed,) * 49})


def test_what_waits_in_silence_is_a_finding() -> None:
    (finding,) = found("LIVE-05", SILENT, stuck("r1"), stuck("r2"))
    assert finding.requests == ("r1",)
    assert finding.observed.startswith("r1 still waited after ")


@pytest.mark.parametrize(
    "events",
    [
        (stuck("r1"),),
        (NOTHING, stuck("r1")),
        (REMOVED, stuck("r1")),
        (stuck("r1"), SILENT),
        (SILENT, MENDED, stuck("r1")),
    ],
)
def test_what_waits_for_something_else_is_none(events: tuple[Event, ...]) -> None:
    assert found("LIVE-05", *events) == []


def test_silence_lasts_until_it_is_mended_whatever_else_breaks() -> None:
    assert len(found("LIVE-05", SILENT, REMOVED, stuck("r1"))) == 1


FAILED = (START, *step(1, [1], load=48))


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((SILENT, *FAILED), 1),
        ((replace(SILENT, files=1), *FAILED), 1),
        ((SILENT, START, *step(1, load=48, asynchronous=True), *step(2, lost=["r1"])), 1),
        ((START, SILENT, *FAILED[1:], *step(2, [1], load=48)), 2),
        (FAILED, 0),
        ((NOTHING, *FAILED), 0),
        ((SILENT, MENDED, *FAILED), 0),
        ((*FAILED, SILENT), 0),
        ((SILENT, START, *step(1, load=48)), 0),
        ((SILENT, *FAILED, stuck("r9")), 0),
    ],
)
def test_loads_that_were_given_up_are_counted(events: tuple[Event, ...], count: int) -> None:
    what = "steps in which loads from a store that does not answer were reported as failed"
    assert ended_in_silence(history(*events)).get(what, 0) == count


OTHER = (add("r2", 2), match((16, False), request="r2"))
ASKED = (add("r3", 2), match((0, False), request="r3"))
BEFORE = (add("r0"), match((48, False), request="r0"))


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((*BEFORE, SILENT, add("r1"), match((0, False))), 1),
        ((*BEFORE, SILENT, add("r1"), match((None, False))), 1),
        ((*BEFORE, *OTHER, SILENT, add("r1"), match((0, False)), *ASKED), 2),
        # Asked again, found all the same, of another prompt, behind a local hit, never found before, not in silence.
        ((*BEFORE, SILENT, add("r1"), match((None, False)), match((0, False))), 1),
        ((*BEFORE, SILENT, add("r1"), match((48, False))), 0),
        ((*BEFORE, SILENT, add("r1"), failing(match((0, False)))), 0),
        ((*BEFORE, SILENT, add("r1", 2), match((0, False))), 0),
        ((*BEFORE, SILENT, add("r1"), match((0, False), computed=16)), 0),
        ((SILENT, add("r1"), match((0, False))), 0),
        ((*BEFORE, add("r1"), match((0, False))), 0),
        ((*BEFORE, SILENT, MENDED, add("r1"), match((0, False))), 0),
    ],
)
def test_matches_that_were_given_up_are_counted(events: tuple[Event, ...], count: int) -> None:
    what = "prompts that matched before and not when the store did not answer"
    assert ended_in_silence(history(*events))[what] == count
    assert witness("LIVE-05", START, *events) == count
