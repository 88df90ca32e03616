"""A store that the vendor's own class breaks: what it is asked for, and what is made of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvconform.engine.events import StoreBroken
from kvconform.engine.options import EngineOptions
from kvconform.faults import FAULTS, Fault, FaultsFailed, Setting
from kvconform.scenario.failures_by_hook import STAND_INS, HookedStore
from kvconform.scenario.program import BreakStore, MendStore, Program, RefuseWrites, StoreFault
from kvconform.scenario.run import play

SETTING = Setting(Path("store"), {"port": 7}, tuple)


class Faults:
    """Keeps what it was asked for."""

    faults: tuple[str, ...] = FAULTS
    answer: Any = 2
    asked: list[tuple[str, int] | str]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def damage(self, fault: Fault, every: int) -> Any:
        self.asked.append((fault, every))
        return self.answer

    def mend(self) -> None:
        self.asked.append("mend")


def store(**values: Any) -> tuple[HookedStore, list[tuple[str, int] | str]]:
    """A store of a class with these attributes, and what it was asked for."""
    kind: Any = type("Theirs", (Faults,), {"asked": [], **values})
    return HookedStore(kind, SETTING), kind.asked


@pytest.mark.parametrize(
    ("fault", "faults", "asked"),
    [
        ("removed", FAULTS, "missing"),
        ("truncated", FAULTS, "truncated"),
        ("emptied", ("missing", "failing"), "missing"),
        ("folders", FAULTS, "failing"),
        ("unreadable", ("truncated",), "truncated"),
        ("silent", FAULTS, "silent"),
        ("silent", ("missing", "failing"), None),
        ("removed", ("silent", "unwritable"), None),
    ],
)
def test_the_fault_that_is_most_like_it_stands_for_one(
    fault: StoreFault, faults: tuple[str, ...], asked: str | None
) -> None:
    hooked, calls = store(faults=faults)
    assert hooked.damage(fault, 3) == (2 if asked else 0)
    assert calls == ([(asked, 3)] if asked else [])


def test_every_fault_of_a_scenario_has_a_stand_in() -> None:
    assert set(STAND_INS) == set(StoreFault.__args__)
    assert {kind for kinds in STAND_INS.values() for kind in kinds} == set(FAULTS) - {"unwritable"}


def test_writes_are_refused_by_who_can() -> None:
    hooked, calls = store()
    assert hooked.refuse_writes("full") == 2
    assert calls == [("unwritable", 1)]
    hooked, calls = store(faults=("missing",))
    assert (hooked.refuse_writes("no folder"), calls) == (0, [])


def test_only_what_was_broken_is_mended() -> None:
    hooked, calls = store()
    hooked.mend()
    assert calls == []
    hooked.damage("silent", 1)
    hooked.mend()
    assert calls == [("silent", 1), "mend"]


@pytest.mark.parametrize("answer", [None, -1, "2", 1.5])
def test_an_answer_that_is_no_number_of_entries_is_refused(answer: Any) -> None:
    hooked, _ = store(answer=answer)
    with pytest.raises(FaultsFailed, match=r"Theirs.damage\('missing', 2\) returned .*how many entries"):
        hooked.damage("removed", 2)


def _raise(*_: Any) -> None:
    raise RuntimeError("no server")


@pytest.mark.parametrize("where", ["__init__", "damage", "mend"])
def test_what_the_class_raises_is_said_with_its_name(where: str) -> None:
    hooked, _ = store(**{where: _raise})

    def use() -> None:
        hooked.damage("removed", 1)
        hooked.mend()

    with pytest.raises(FaultsFailed, match=rf"^Theirs\.{where}.* raised RuntimeError: no server\. .*'faults'"):
        use()


class _Engine:
    """An engine that has nothing to do."""

    def __init__(self, connectors: tuple[Any, ...]) -> None:
        self.connectors = connectors

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_a_program_breaks_and_mends_by_the_class_and_mends_at_its_end() -> None:
    hooked, calls = store()
    seen: list[tuple[Any, ...]] = []

    def make_store(connectors: Any) -> HookedStore:
        seen.append(connectors)
        return hooked

    actions = (BreakStore("silent", 2), MendStore(), RefuseWrites("full"))
    made_engines: Any = lambda *_: _Engine(("scheduler's", "worker's"))  # noqa: E731
    history = play(Program("faults", EngineOptions(), actions), made_engines, make_store=make_store)
    assert calls == [("silent", 2), "mend", ("unwritable", 1), "mend"]
    assert [(event.kind, event.files) for event in history.of(StoreBroken)] == [
        ("silent", 2),
        ("mended", 0),
        ("writes", 2),
    ]
    assert seen[0]() == ("scheduler's", "worker's")
