"""pytest's side of a measurement, without a process: what ends it, and what is not in its way."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from kvconform.bench.figures import Measured
from kvconform.bench.plan import Case
from kvconform.bench.plugin import BenchPlugin
from kvconform.config import RunConfig
from kvconform.coverage_child import VARIABLE
from kvconform.errors import UsageError
from kvconform.target import Target

TARGET = Target("a:B", "module", "a", "B", "a:B")
FACTS = {"threads": 1, "cores": 2, "clock": 2e-7, "others": 0.25}


class FakeRoom:
    """Answers as it is told to; ``asked`` are the cases, ``traced`` tells whether lines were to be measured."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.asked: list[Case] = []
        self.traced: list[bool] = []
        self.closed = False

    def load(self) -> None:
        self.traced.append(VARIABLE in os.environ)

    def measure(self, case: Case) -> tuple[Measured, dict[str, Any]]:
        self.asked.append(case)
        if isinstance(self._answer, BaseException):
            raise self._answer
        problem = self._answer if case.blocks > 8 else ""
        return Measured(case.layout, case.blocks, problem=problem), FACTS

    def close(self) -> None:
        self.closed = True


def plugin(*, only: bool = False) -> BenchPlugin:
    option = SimpleNamespace(kvconform_bench_only=only, verbose=-1, collectonly=False)
    config: Any = SimpleNamespace(option=option, pluginmanager=SimpleNamespace(get_plugin=lambda _: None))
    return BenchPlugin(config, RunConfig(device="cpu"), (TARGET,), ("LBNHC", "LBHNC"), (8, 64, 256))


def measured(room: FakeRoom, made: BenchPlugin) -> Any:
    rooms: Any = SimpleNamespace(room=lambda _: room)
    return made._measure(TARGET, rooms)


def test_after_a_problem_the_rest_of_the_layout_is_left_out_and_the_next_one_is_tried() -> None:
    room = FakeRoom("it is full")
    found = measured(room, plugin())
    assert [(case.layout, case.blocks) for case in room.asked] == [
        ("LBNHC", 8), ("LBNHC", 64), ("LBHNC", 8), ("LBHNC", 64),
    ]  # fmt: skip
    assert [case.problem for case in found.cases] == ["", "it is full", "", "it is full"]
    assert (found.threads, found.cores, found.clock, found.others) == (1, 2, 2e-7, 0.25)
    assert room.closed


@pytest.mark.parametrize(
    "ended",
    [
        {"shouldfail": "stopping after 1 failures", "exitstatus": pytest.ExitCode.TESTS_FAILED},
        {"shouldstop": "done", "exitstatus": pytest.ExitCode.OK},
        {"exitstatus": pytest.ExitCode.INTERRUPTED},
    ],
)
def test_a_run_that_was_stopped_is_not_measured_and_ends_as_it_would(ended: dict[str, Any]) -> None:
    made = plugin()
    session: Any = SimpleNamespace(**{"shouldstop": False, "shouldfail": False, **ended})
    made.pytest_sessionfinish(session)
    found = made.measurement(TARGET.id)
    assert found is not None
    assert found.reason == "not measured: the run was stopped before its end"
    assert session.exitstatus == ended["exitstatus"]


def test_ctrl_c_ends_the_measurement_and_not_the_run() -> None:
    room = FakeRoom(KeyboardInterrupt())
    assert measured(room, plugin()).reason == "not measured: interrupted"
    assert room.closed


@pytest.mark.parametrize(("only", "unusable"), [(True, {"a:B": "no module\nin two lines"}), (False, {})])
def test_only_without_the_suites_an_unusable_connector_is_the_measurements_to_tell(
    only: bool, unusable: dict[str, str]
) -> None:
    made = plugin(only=only)
    found = measured(FakeRoom(UsageError("no module\nin two lines")), made)
    assert found.reason == "not measured: no module"
    assert made.unusable == unusable


def test_a_connector_that_the_suites_could_not_import_is_not_tried_again() -> None:
    made, room = plugin(), FakeRoom("")
    made.unusable = {"a:B": "why"}
    assert measured(room, made).reason == "not measured: the connector cannot be tested"
    assert room.asked == []


def test_lines_are_not_measured_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "folder")
    room = FakeRoom("")
    measured(room, plugin())
    assert room.traced == [False]
    assert os.environ[VARIABLE] == "folder"
