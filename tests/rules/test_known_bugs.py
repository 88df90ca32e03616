"""The list of reported bugs: each is planted by a mutant that exists, or says why not; and the docs say the same."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from known_bugs import DOC, KnownBugs, read, render
from matrix_entries import SUITES, read_entries

from kvconform.report.suite_tests import rules_by_test
from kvconform.rules import load_catalogue


@pytest.fixture(scope="module")
def known() -> KnownBugs:
    return read()


def test_numbers_ascend_and_leave_out_only_unused_ones(known: KnownBugs) -> None:
    numbers = [bug.number for bug in known.bugs]
    assert all(earlier < later for earlier, later in pairwise(numbers))
    assert sorted([*numbers, *known.unused]) == list(range(1, numbers[-1] + 1))


def test_every_bug_has_mutants_or_a_reason_and_not_both(known: KnownBugs) -> None:
    assert [bug.number for bug in known.bugs if bool(bug.mutants) == bool(bug.uncovered.strip())] == []


def test_every_bug_has_a_short_title_a_source_and_rules(known: KnownBugs) -> None:
    assert [bug.number for bug in known.bugs if not 10 < len(bug.title) <= 90] == []
    assert [bug.number for bug in known.bugs if not re.search(r"#\d", bug.source)] == []
    assert [bug.number for bug in known.bugs if not bug.rules or not set(bug.rules) <= known.rules.keys()] == []


def test_rules_are_numbered_from_1_to_33(known: KnownBugs) -> None:
    assert list(known.rules) == [f"R{number}" for number in range(1, 34)]


def test_named_mutants_are_in_the_kill_matrix(known: KnownBugs) -> None:
    entries = {entry.connector for entry in read_entries() if entry.kind == "mutant"}
    named = {mutant for bug in known.bugs for mutant in bug.mutants}
    named |= {mutant for bug in known.bugs for mutant in re.findall(r"\w+:\w+", bug.uncovered)}
    assert len(named) > 50
    assert sorted(named - entries) == []


def test_rules_that_a_reason_calls_unchecked_are_unchecked(known: KnownBugs) -> None:
    """As soon as a rule is checked, reasons that rest on its not being checked have to be thought over."""
    checked = {rule for rules in rules_by_test(SUITES).values() for rule in rules}
    unchecked = {
        rule
        for bug in known.bugs
        if "not checked" in bug.uncovered
        for rule in re.findall(r"\b[A-Z]+-\d\d\b", bug.uncovered)
    }
    assert len(unchecked) > 5
    assert sorted(rule for rule in unchecked if rule not in load_catalogue()) == []
    assert sorted(unchecked & checked) == []


def test_docs_are_up_to_date(known: KnownBugs) -> None:
    assert DOC.read_text(encoding="utf-8") == render(known), "python tests/mutants/known_bugs.py --write"
