"""From the outcome of a test to results for the rules that it names.

The only place that decides what an exception in a test says about the connector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from kvconform.baseline import Baseline
from kvconform.faults import FaultsFailed
from kvconform.outcomes import ConformanceFailure, Inconclusive, NotApplicable, results_in, rules_of, target_of
from kvconform.rules import load_catalogue
from kvconform.verdicts import NO_WITNESS, RuleResult, Verdict

#: The baseline of the run.
BASELINE: pytest.StashKey[Baseline] = pytest.StashKey()


def explain_outcome(item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> list[RuleResult]:
    """Results for the rules that the test named and did not record, and a report without noise.

    Changes ``report``: a :class:`ConformanceFailure` is shown as its text alone, or as a warning when all the rules
    that it breaks are SHOULDs or excused by the baseline; a skip tells the test's place, not that of the kit's code.

    Args:
        item: the test.
        report: pytest's report of one phase.
        error: what the phase raised.
    """
    failures = _conformance_failures(error)
    if failures:
        return _failed(item, report, failures)
    if isinstance(error, Inconclusive | NotApplicable):
        path, line, _ = item.location
        report.longrepr = (path, (line or 0) + 1, str(error))
        verdict = Verdict.INCONCLUSIVE if isinstance(error, Inconclusive) else Verdict.NOT_APPLICABLE
        return _results(item, report, _open_rules(item), verdict, error.reason)
    if report.when == "teardown":
        return []  # the verdicts were given before
    if hasattr(report, "wasxfail"):
        return _results(item, report, _open_rules(item), Verdict.INCONCLUSIVE, f"marked xfail: {report.wasxfail}")
    if report.outcome == "skipped":
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(error)
        return _results(item, report, _open_rules(item), Verdict.INCONCLUSIVE, reason.removeprefix("Skipped: "))
    if report.outcome == "failed":
        verdict = _verdict_of(error)
        if isinstance(error, FaultsFailed):
            report.longrepr = str(error)
        rules = _open_rules(item) or rules_of(item)
        if report.when == "call" and rules and all(_is_excused(item, rule, verdict) for rule in rules):
            _show_as_known(report)
        return _results(item, report, rules, verdict, _sentence(error))
    if report.when == "call":
        return _results(item, report, _open_rules(item), Verdict.INCONCLUSIVE, NO_WITNESS)
    return []


def _conformance_failures(error: BaseException | None) -> list[ConformanceFailure]:
    """The failures in an exception (hypothesis raises a group for several); empty if there is anything else in it."""
    if isinstance(error, ConformanceFailure):
        return [error]
    if isinstance(error, BaseExceptionGroup):
        leaves = [_conformance_failures(inner) for inner in error.exceptions]
        return [failure for leaf in leaves for failure in leaf] if all(leaves) else []
    return []


def _failed(item: pytest.Item, report: pytest.TestReport, failures: list[ConformanceFailure]) -> list[RuleResult]:
    failed = {result.rule for result in results_in(item.user_properties) if result.verdict.is_bad}
    results: list[RuleResult] = []
    broken: set[str] = set(failed)
    verdicts = {failure.verdict for failure in failures}
    for failure in failures:
        rules = failure.rules or (() if failed else _open_rules(item) or rules_of(item))
        broken.update(rules)
        found = _results(item, report, [rule for rule in rules if rule not in failed], failure.verdict, failure.text)
        results += [replace(result, pictures=failure.pictures.get(result.rule, ())) for result in found]
    # What the test would have shown of its other rules, it did not get to.
    silent = [rule for rule in _open_rules(item) if rule not in broken]
    results += _results(item, report, silent, Verdict.INCONCLUSIVE, f"{_end(verdicts, broken)} before this was shown")
    text = "\n\n".join(dict.fromkeys(failure.text for failure in failures))
    serious = {rule for rule in broken if not all(_is_excused(item, rule, verdict) for verdict in verdicts)}
    if broken and not serious:
        _show_as_known(report)
    elif broken and verdicts == {Verdict.FAIL} and not _any_must(serious):
        report.outcome = "passed"
        report.longrepr = None
        report.kvconform_warned = True  # type: ignore[attr-defined]  # reports may carry anything; xdist sends it along
    else:
        report.outcome = "failed"
        report.longrepr = text
    # hypothesis describes the failing example in its own terms; the text has the shortest trace already.
    report.sections = [(title, body) for title, body in report.sections if title != "Hypothesis"]
    return results


def _end(verdicts: set[Verdict], broken: Iterable[str]) -> str:
    """What a failing test came to instead of its other rules."""
    if verdicts == {Verdict.TIMEOUT}:
        return "a scenario timed out"
    if verdicts == {Verdict.CRASH}:
        return "the connector's process ended"
    return f"the test broke {', '.join(sorted(broken))}"


def _is_excused(item: pytest.Item, rule: str, verdict: Verdict) -> bool:
    """Whether the baseline of the run expects this."""
    return item.config.stash.get(BASELINE, Baseline()).excuse(target_of(item), rule, verdict) is not None


def _show_as_known(report: pytest.TestReport) -> None:
    report.outcome = "passed"
    report.longrepr = None
    report.kvconform_known = True  # type: ignore[attr-defined]  # as above


def _any_must(rules: Iterable[str]) -> bool:
    catalogue = load_catalogue()
    return any(rule not in catalogue or catalogue.rule(rule).level == "MUST" for rule in rules)


def _open_rules(item: pytest.Item) -> tuple[str, ...]:
    """The rules that the test names and has no result for."""
    recorded = {result.rule for result in results_in(item.user_properties)}
    return tuple(rule for rule in rules_of(item) if rule not in recorded)


def _results(
    item: pytest.Item, report: pytest.TestReport, rules: Iterable[str], verdict: Verdict, message: str
) -> list[RuleResult]:
    target = target_of(item)
    return [RuleResult(rule, target, verdict, item.nodeid, {}, message, report.duration) for rule in rules]


def _verdict_of(error: BaseException | None) -> Verdict:
    """A test's own assertion accuses the connector; anything else that escapes a test is the kit's fault."""
    if isinstance(error, pytest.fail.Exception):
        # pytest-timeout (2.x, signal method) fails the test with this text.
        return Verdict.TIMEOUT if str(error).startswith("Timeout") else Verdict.FAIL
    return Verdict.FAIL if isinstance(error, AssertionError) else Verdict.KIT_ERROR


def _sentence(error: BaseException | None) -> str:
    if error is None:
        return ""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
