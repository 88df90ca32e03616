"""From what a test raised to results for the rules that it names, and to what pytest shows of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from kvconform.baseline import Baseline, Entry
from kvconform.judgement import BASELINE, explain_outcome
from kvconform.outcomes import PROPERTY, ConformanceFailure, Inconclusive, NotApplicable
from kvconform.picture import Picture
from kvconform.rules import load_catalogue
from kvconform.verdicts import NO_WITNESS, RuleResult, Verdict

MUST, OTHER, SHOULD = "MATCH-05", "LOAD-01", "MATCH-12"
NODEID = "tests/test_it.py::test_it"
#: pytest counts lines from 0 here, and from 1 in what it shows.
PLACE = ("tests/test_it.py", 41, "test_it")

Phase = Literal["setup", "call", "teardown"]


def item(*rules: str, known: Sequence[str] = (), recorded: Sequence[tuple[str, Verdict]] = ()) -> Any:
    """A test of connector "a:A" that names ``rules``; the baseline excuses those that are ``known``."""
    stash = pytest.Stash()
    stash[BASELINE] = Baseline("known.toml", tuple(Entry("known failure", rule, "a:A", "", "") for rule in known))
    results = [RuleResult(rule, "a:A", verdict).to_dict() for rule, verdict in recorded]
    return SimpleNamespace(
        nodeid=NODEID,
        location=PLACE,
        callspec=SimpleNamespace(params={"kvconform_target": SimpleNamespace(id="a:A")}),
        config=SimpleNamespace(stash=stash),
        iter_markers=lambda name: [SimpleNamespace(args=rules)] if name == "kvconform_rules" else [],
        user_properties=[(PROPERTY, json.dumps({"type": "result", **result})) for result in results],
    )


def phase(
    outcome: Literal["passed", "failed", "skipped"] = "failed", when: Phase = "call", shown: Any = "noise"
) -> Any:
    """pytest's report of one phase, which took 2 seconds."""
    return pytest.TestReport(NODEID, PLACE, {}, outcome, shown, when, duration=2.0)


def told(results: Sequence[RuleResult]) -> dict[str, tuple[Verdict, str]]:
    """Rule -> verdict and message; all are of this connector, this test and its duration."""
    for result in results:
        assert (result.target, result.nodeid, result.duration, result.witnesses) == ("a:A", NODEID, 2.0, {})
    assert len({result.rule for result in results}) == len(results)
    return {result.rule: (result.verdict, result.message) for result in results}


def test_levels_are_what_these_tests_take_them_for() -> None:
    levels = {rule: load_catalogue().rule(rule).level for rule in (MUST, OTHER, SHOULD)}
    assert levels == {MUST: "MUST", OTHER: "MUST", SHOULD: "SHOULD"}


# -- broken rules ------------------------------------------------------------------------------------------------------


def test_broken_rule_fails_with_its_text_and_its_pictures_and_the_others_were_not_shown() -> None:
    report = phase()
    picture = Picture("block table", 1, 3, 0, "r1", 0, 16, 1, 0, 16, ())
    report.sections = [("Hypothesis", "Falsifying example"), ("Captured stdout", "words")]
    error = ConformanceFailure("the text", rules=[MUST], pictures={MUST: (picture,)})
    results = explain_outcome(item(MUST, OTHER), report, error)
    assert told(results) == {
        MUST: (Verdict.FAIL, "the text"),
        OTHER: (Verdict.INCONCLUSIVE, "the test broke MATCH-05 before this was shown"),
    }
    assert [result.pictures for result in results] == [(picture,), ()]
    assert (report.outcome, report.longrepr) == ("failed", "the text")
    assert report.sections == [("Captured stdout", "words")]


def test_failure_without_rules_is_of_all_that_the_test_has_not_recorded() -> None:
    test = item(MUST, OTHER, recorded=[(OTHER, Verdict.PASS)])
    assert told(explain_outcome(test, phase(), ConformanceFailure("text"))) == {MUST: (Verdict.FAIL, "text")}


def test_failure_without_rules_is_of_all_named_if_all_are_recorded() -> None:
    test = item(MUST, recorded=[(MUST, Verdict.PASS)])
    assert told(explain_outcome(test, phase(), ConformanceFailure("text"))) == {MUST: (Verdict.FAIL, "text")}


def test_failure_that_was_recorded_is_not_told_again() -> None:
    test = item(MUST, OTHER, recorded=[(MUST, Verdict.FAIL)])
    told_later = (Verdict.INCONCLUSIVE, "the test broke MATCH-05 before this was shown")
    for error in (ConformanceFailure("text"), ConformanceFailure("text", rules=[MUST])):
        report = phase()
        assert told(explain_outcome(test, report, error)) == {OTHER: told_later}
        assert (report.outcome, report.longrepr) == ("failed", "text")


@pytest.mark.parametrize(
    ("verdict", "end"),
    [(Verdict.TIMEOUT, "a scenario timed out"), (Verdict.CRASH, "the connector's process ended")],
)
def test_scenario_without_an_end_says_so_of_the_other_rules(verdict: Verdict, end: str) -> None:
    report = phase()
    error = ConformanceFailure("text", rules=[SHOULD], verdict=verdict)
    assert told(explain_outcome(item(SHOULD, MUST), report, error)) == {
        SHOULD: (verdict, "text"),
        MUST: (Verdict.INCONCLUSIVE, f"{end} before this was shown"),
    }
    assert report.outcome == "failed", "a hang is no warning, whatever the rule"


def test_several_failures_are_told_each_and_the_same_text_once() -> None:
    report = phase()
    errors = [
        ConformanceFailure("one", rules=[MUST]),
        ExceptionGroup("", [ConformanceFailure("two", rules=[OTHER], verdict=Verdict.TIMEOUT)]),
        ConformanceFailure("one", rules=["LOAD-03"]),
    ]
    results = explain_outcome(item(MUST, OTHER, SHOULD), report, ExceptionGroup("several", errors))
    assert told(results) == {
        MUST: (Verdict.FAIL, "one"),
        OTHER: (Verdict.TIMEOUT, "two"),
        "LOAD-03": (Verdict.FAIL, "one"),
        SHOULD: (Verdict.INCONCLUSIVE, "the test broke LOAD-01, LOAD-03, MATCH-05 before this was shown"),
    }
    assert report.longrepr == "one\n\ntwo"


def test_group_with_another_exception_is_the_kits_fault() -> None:
    group = ExceptionGroup("several", [ConformanceFailure("one", rules=[MUST]), RuntimeError("no")])
    assert told(explain_outcome(item(MUST), phase(), group)) == {
        MUST: (Verdict.KIT_ERROR, "ExceptionGroup: several (2 sub-exceptions)")
    }


# -- what pytest shows of it -------------------------------------------------------------------------------------------


def _shown(report: Any) -> tuple[str, bool, bool]:
    """What pytest takes the test for, and whether it is marked as a warning and as a known failure."""
    return report.outcome, getattr(report, "kvconform_warned", False), getattr(report, "kvconform_known", False)


@pytest.mark.parametrize(
    ("broken", "known", "expected"),
    [
        ([MUST], [], ("failed", False, False)),
        ([SHOULD], [], ("passed", True, False)),
        ([MUST, SHOULD], [], ("failed", False, False)),
        (["OWN-01"], [], ("failed", False, False)),
        ([MUST], [MUST], ("passed", False, True)),
        ([SHOULD], [SHOULD], ("passed", False, True)),
        ([MUST, SHOULD], [MUST], ("passed", True, False)),
        ([MUST, SHOULD], [SHOULD], ("failed", False, False)),
    ],
)
def test_warning_and_known_failure_do_not_fail_the_test(
    broken: list[str], known: list[str], expected: tuple[str, bool, bool]
) -> None:
    report = phase()
    explain_outcome(item(*broken, known=known), report, ConformanceFailure("text", rules=broken))
    assert _shown(report) == expected
    assert report.longrepr == ("text" if expected[0] == "failed" else None)


def test_what_was_recorded_as_broken_counts_for_what_is_shown() -> None:
    report = phase()
    test = item(MUST, SHOULD, recorded=[(MUST, Verdict.FAIL)])
    explain_outcome(test, report, ConformanceFailure("text", rules=[SHOULD]))
    assert _shown(report) == ("failed", False, False)


def test_failure_of_the_kit_itself_is_never_excused() -> None:
    report = phase()
    errors = [ConformanceFailure("text", rules=[MUST], verdict=v) for v in (Verdict.FAIL, Verdict.KIT_ERROR)]
    explain_outcome(item(MUST, known=[MUST]), report, ExceptionGroup("several", errors))
    assert _shown(report) == ("failed", False, False)


def test_failure_of_no_rule_at_all_fails_the_test() -> None:
    report = phase()
    assert explain_outcome(item(), report, ConformanceFailure("text")) == []
    assert (_shown(report), report.longrepr) == (("failed", False, False), "text")


# -- nothing shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(Inconclusive("no hit"), Verdict.INCONCLUSIVE), (NotApplicable("no hit"), Verdict.NOT_APPLICABLE)],
)
def test_reason_is_told_of_the_rules_without_a_result_at_the_tests_place(error: Any, verdict: Verdict) -> None:
    report = phase("skipped", shown=("kit.py", 7, "noise"))
    test = item(MUST, OTHER, recorded=[(OTHER, Verdict.PASS)])
    assert told(explain_outcome(test, report, error)) == {MUST: (verdict, "no hit")}
    assert report.longrepr == ("tests/test_it.py", 42, str(error))


def test_place_without_a_line_is_the_first_one() -> None:
    report, test = phase("skipped"), item(MUST)
    test.location = ("tests/test_it.py", None, "test_it")
    explain_outcome(test, report, Inconclusive("no hit"))
    assert report.longrepr[:2] == ("tests/test_it.py", 1)


def test_test_that_passes_and_records_nothing_has_shown_nothing() -> None:
    test = item(MUST, OTHER, recorded=[(OTHER, Verdict.PASS)])
    assert told(explain_outcome(test, phase("passed"), None)) == {MUST: (Verdict.INCONCLUSIVE, NO_WITNESS)}


@pytest.mark.parametrize("when", ["setup", "teardown"])
def test_phase_around_the_test_says_nothing(when: Phase) -> None:
    assert explain_outcome(item(MUST), phase("passed", when), None) == []


def test_failing_teardown_takes_no_verdict_back() -> None:
    report = phase("failed", "teardown")
    assert explain_outcome(item(MUST), report, RuntimeError("no")) == []
    assert (report.outcome, report.longrepr) == ("failed", "noise")


def test_test_marked_xfail_shows_nothing() -> None:
    report = phase("skipped")
    report.wasxfail = "bug 7"
    assert told(explain_outcome(item(MUST), report, AssertionError("no"))) == {
        MUST: (Verdict.INCONCLUSIVE, "marked xfail: bug 7")
    }


@pytest.mark.parametrize(
    ("shown", "reason"), [(("file.py", 3, "Skipped: no disk"), "no disk"), ("words", "no room")], ids=["place", "words"]
)
def test_skipped_test_tells_its_reason(shown: Any, reason: str) -> None:
    report = phase("skipped", "setup", shown)
    assert told(explain_outcome(item(MUST), report, RuntimeError("no room"))) == {MUST: (Verdict.INCONCLUSIVE, reason)}
    assert report.longrepr == shown


# -- other exceptions --------------------------------------------------------------------------------------------------


def _fail(words: str) -> BaseException:
    return pytest.fail.Exception(words)


@pytest.mark.parametrize(
    ("error", "verdict", "sentence"),
    [
        (AssertionError("wrong\nmore"), Verdict.FAIL, "AssertionError: wrong"),
        (AssertionError(), Verdict.FAIL, "AssertionError"),
        (RuntimeError(" odd \nmore"), Verdict.KIT_ERROR, "RuntimeError: odd "),
        (_fail("no good"), Verdict.FAIL, "Failed: no good"),
        (
            _fail("Timeout (>60.0s) from pytest-timeout."),
            Verdict.TIMEOUT,
            "Failed: Timeout (>60.0s) from pytest-timeout.",
        ),
        (_fail("A Timeout"), Verdict.FAIL, "Failed: A Timeout"),
        (None, Verdict.KIT_ERROR, ""),
    ],
)
def test_own_assertion_accuses_the_connector_and_anything_else_the_kit(
    error: BaseException | None, verdict: Verdict, sentence: str
) -> None:
    report = phase()
    test = item(MUST, OTHER, recorded=[(OTHER, Verdict.PASS)])
    assert told(explain_outcome(test, report, error)) == {MUST: (verdict, sentence)}
    assert (report.outcome, report.longrepr) == ("failed", "noise")


def test_exception_after_all_was_recorded_is_told_of_every_rule() -> None:
    test = item(MUST, recorded=[(MUST, Verdict.PASS)])
    assert told(explain_outcome(test, phase(), RuntimeError("no"))) == {MUST: (Verdict.KIT_ERROR, "RuntimeError: no")}


@pytest.mark.parametrize(
    ("known", "error", "when", "expected"),
    [
        ([MUST, OTHER], AssertionError("no"), "call", "passed"),
        ([MUST], AssertionError("no"), "call", "failed"),
        ([MUST, OTHER], AssertionError("no"), "setup", "failed"),
        ([MUST, OTHER], RuntimeError("no"), "call", "failed"),
    ],
    ids=["known", "one of two", "in the set-up", "of the kit"],
)
def test_assertion_is_known_if_the_baseline_excuses_every_rule(
    known: list[str], error: Exception, when: Phase, expected: str
) -> None:
    report = phase("failed", when)
    results = explain_outcome(item(MUST, OTHER, known=known), report, error)
    assert set(told(results)) == {MUST, OTHER}
    assert _shown(report) == (expected, False, expected == "passed")


def test_exception_in_a_test_of_no_rule_is_left_to_pytest() -> None:
    report = phase()
    assert explain_outcome(item(), report, AssertionError("no")) == []
    assert _shown(report) == ("failed", False, False)
