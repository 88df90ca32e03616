"""Which tests were collected, deselected, or are lacking: what a run has not tried."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvconform.collection import suites_directory
from kvconform.outcomes import rules_of, target_of


def shipped_name(item: pytest.Item) -> str:
    """``"test_transfer.py::test_name"`` of a test of the shipped suites; empty for a vendor's own."""
    if item.path.parent != suites_directory():
        return ""
    name = getattr(item, "originalname", None) or item.name
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    return f"{item.path.name}::{'::'.join([*classes, name])}"


@dataclass
class Census:
    """The tests of a run, as each process that collects sees them; workers tell the controller."""

    #: Test id -> (target id, rules), of the tests that are to run.
    to_run: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    #: (target id, rule id) of deselected tests.
    left_out: set[tuple[str, str]] = field(default_factory=set)
    #: Shipped tests that were seen, to run or not.
    shipped: set[str] = field(default_factory=set)

    def deselected(self, items: Iterable[pytest.Item]) -> None:
        """Note tests that will not run."""
        for item in items:
            self.shipped.add(shipped_name(item))
            self.left_out.update((target_of(item), rule) for rule in rules_of(item))

    def collected(self, items: Iterable[pytest.Item]) -> None:
        """Note tests that are to run."""
        for item in items:
            self.shipped.add(shipped_name(item))
            self.to_run[item.nodeid] = (target_of(item), rules_of(item))

    def to_data(self) -> dict[str, Any]:
        """Plain data, for xdist."""
        return {
            "to_run": [[nodeid, target, list(rules)] for nodeid, (target, rules) in self.to_run.items()],
            "left_out": [list(pair) for pair in sorted(self.left_out)],
            "shipped": sorted(self.shipped),
        }

    def learn(self, data: Mapping[str, Any]) -> None:
        """Add what another process has told, see :meth:`to_data`."""
        self.to_run.update({nodeid: (target, tuple(rules)) for nodeid, target, rules in data["to_run"]})
        self.left_out.update((target, rule) for target, rule in data["left_out"])
        self.shipped.update(data["shipped"])

    def incomplete(self, spoke: Collection[str], targets: Iterable[str]) -> frozenset[tuple[str, str]]:
        """(target id, rule id) of rules some of whose tests did not run.

        Args:
            spoke: ids of the tests that said something.
            targets: ids of the run's connectors.
        """
        from kvconform.report.suite_tests import rules_by_test

        silent = [pair for nodeid, pair in self.to_run.items() if nodeid not in spoke]
        # Where every process that collected has died, nothing is known: then all of the suites is lacking.
        lacking = [rules for test, rules in rules_by_test(suites_directory()).items() if test not in self.shipped]
        return frozenset(
            self.left_out
            | {(target, rule) for target, rules in silent for rule in rules}
            | {(target, rule) for target in targets for rules in lacking for rule in rules}
        )
