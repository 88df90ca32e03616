"""What got better and what got worse between two runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from making import EXPECTED, MUSTS, OPTIONS, SHOULDS, TARGET, make, result, seen

from kvconform.report.building import TargetFacts
from kvconform.report.compare import Change, compare
from kvconform.report.document import Document, Environment, Kit
from kvconform.verdicts import Verdict

RULE = MUSTS[0]
OTHER = "my.module:Other"


def run(verdict: Verdict | str | None, rule: str = RULE) -> Document:
    """A report in which one rule has a verdict; None for a rule that nothing checks, "not run" for one left out."""
    if verdict is None:
        return make([])
    if isinstance(verdict, str):
        return make([], [seen(rule, verdict)])
    return make([result(rule, verdict, message="m")])


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (Verdict.PASS, Verdict.FAIL, "worse"),
        (Verdict.PASS, Verdict.TIMEOUT, "worse"),
        (Verdict.PASS, Verdict.INCONCLUSIVE, "worse"),
        (Verdict.PASS, Verdict.NOT_APPLICABLE, "worse"),
        (Verdict.PASS, Verdict.KIT_ERROR, "worse"),
        (Verdict.INCONCLUSIVE, Verdict.FAIL, "worse"),
        (Verdict.FAIL, Verdict.PASS, "better"),
        (Verdict.CRASH, Verdict.INCONCLUSIVE, "better"),
        (Verdict.INCONCLUSIVE, Verdict.PASS, "better"),
        (Verdict.FAIL, Verdict.CRASH, "changed"),
        (Verdict.FAIL, Verdict.KIT_ERROR, "changed"),
        (Verdict.INCONCLUSIVE, Verdict.NOT_APPLICABLE, "changed"),
        (None, Verdict.PASS, "new"),
        (None, Verdict.FAIL, "new"),
        ("not run", Verdict.FAIL, "new"),
        (Verdict.PASS, None, "gone"),
        (Verdict.FAIL, "deselected", "gone"),
    ],
)
def test_a_change_of_a_verdict_has_a_kind(before: Verdict | str | None, after: Verdict | str | None, kind: str) -> None:
    found = compare(run(before), run(after))
    (change,) = found.changes
    assert (change.kind, change.target, change.rule, change.level) == (kind, TARGET, RULE, "MUST")
    assert found.got_worse == (kind == "worse")


@pytest.mark.parametrize(
    ("before", "after"),
    [(Verdict.PASS, Verdict.PASS), (Verdict.FAIL, Verdict.FAIL), (None, "not run"), ("deselected", "not run")],
)
def test_the_same_is_no_change(before: Verdict | str | None, after: Verdict | str | None) -> None:
    found = compare(run(before), run(after))
    assert found.changes == ()
    assert found.same == (1 if isinstance(before, Verdict) else 0)


def test_a_warning_is_worse_than_nothing_and_better_than_a_failure() -> None:
    should = SHOULDS[0]
    assert compare(run(Verdict.PASS, should), run(Verdict.FAIL, should)).changes[0].after == "warn"
    assert compare(run(Verdict.INCONCLUSIVE, should), run(Verdict.FAIL, should)).got_worse
    assert not compare(run(Verdict.CRASH, should), run(Verdict.FAIL, should)).got_worse


def test_the_bad_news_comes_first() -> None:
    before = make([result(MUSTS[0], Verdict.FAIL, message="m"), result(MUSTS[1], Verdict.PASS)])
    after = make([result(MUSTS[0], Verdict.PASS), result(MUSTS[1], Verdict.FAIL, message="m")])
    found = compare(before, after)
    assert [(change.kind, change.rule) for change in found.changes] == [("worse", MUSTS[1]), ("better", MUSTS[0])]
    assert found.to_dict()["worse"] == [
        {"target": TARGET, "rule": MUSTS[1], "level": "MUST", "before": "pass", "after": "fail"}
    ]


def test_connectors_come_and_go() -> None:
    other = make(
        [result(RULE, Verdict.PASS, target=OTHER)], targets=(TargetFacts(OTHER, None, None, OPTIONS),), tests=None
    )
    found = compare(run(Verdict.FAIL), other)
    assert [(change.kind, change.target) for change in found.changes] == [("new", OTHER), ("gone", TARGET)]
    assert not found.got_worse


def test_a_connector_that_can_no_longer_be_tested_is_worse() -> None:
    broken = make([], [seen(RULE, "not run")], unusable={TARGET: "no backend"})
    found = compare(run(Verdict.PASS), broken)
    assert found.of("worse") == (Change("worse", TARGET, "", None, "tested", "cannot be tested"),)
    assert compare(broken, run(Verdict.PASS)).of("better")
    assert not compare(broken, broken).changes


def test_a_connector_that_was_mistyped_is_named() -> None:
    mistyped = make([], unusable={"a:B": "no module a."})
    assert compare(make([]), mistyped).of("new") == (Change("new", "a:B", "", None, None, "cannot be tested"),)
    assert compare(mistyped, make([])).of("gone")


def test_what_makes_reports_hard_to_compare_is_named() -> None:
    before = run(Verdict.PASS)
    (target,) = before.targets
    after = replace(
        run("deselected"),
        kit=Kit("9.9", "0" * 64),
        environment=Environment("0.33.0", None, "9", "3.12.1", "Linux"),
        targets=(replace(target, options=replace(OPTIONS, seed=7, budget="full")),),
    )
    assert compare(before, after).notes == (
        f"kvconform differs: {before.kit.version} before, 9.9 after.",
        "vLLM differs: 0.32.0 before, 0.33.0 after.",
        "torch differs: 2.13.0 before, not installed after.",
        "Python differs: 3.11.7 before, 3.12.1 after.",
        "The rules differ, so a verdict may have changed without the connector.",
        f"{TARGET}: other options (budget, seed).",
        "The run after is partial: 1 test was deselected.",
    )
    assert compare(before, before).notes == ()


def test_every_rule_is_compared() -> None:
    before = make([result(rule, Verdict.PASS) for rule in EXPECTED])
    after = make([result(rule, Verdict.INCONCLUSIVE) for rule in EXPECTED])
    assert [change.rule for change in compare(before, after).of("worse")] == EXPECTED
