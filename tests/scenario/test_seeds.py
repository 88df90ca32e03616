"""What is drawn for a test depends on the run's seed, the test and the connector, and not on where they are run."""

from __future__ import annotations

import pytest

from kvconform import conformance as module
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.scenario import transfer
from kvconform.scenario.exploration import Budget, Outcome
from kvconform.target import Target


def seed(nodeid: str, monkeypatch: pytest.MonkeyPatch, run: int = 0) -> int:
    budgets: list[Budget] = []

    class Explored:
        def __init__(self, *_: object) -> None: ...

        def explore(self, budget: Budget) -> Outcome:
            budgets.append(budget)
            return Outcome()

    monkeypatch.setattr(module, "Explorer", Explored)
    connector = Conformance(Target("x:Y", "module", "x", "Y", "x:Y"), RunConfig(seed=run))
    connector.explore(transfer.reload(), ("LOAD-01",), nodeid)
    return budgets[0].seed


def test_folders_before_the_file_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("test_a.py::test_b[x:Y]", "suites/test_a.py::test_b[x:Y]", "../lib/suites/test_a.py::test_b[x:Y]")
    assert len({seed(name, monkeypatch) for name in names}) == 1


def test_file_test_connector_and_the_seed_of_the_run_do(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "test_a.py::test_b[x:Y]", "test_c.py::test_b[x:Y]", "test_a.py::test_d[x:Y]", "test_a.py::test_b[a/b:Y]",
        "test_a.py::test_b[c/b:Y]", "test_a.py::test_d[a/b:Y]",
    )  # fmt: skip
    assert len({*(seed(name, monkeypatch) for name in names), seed(names[0], monkeypatch, run=1)}) == 7
