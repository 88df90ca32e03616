"""Hand-made reports: what a session would have seen, without one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvconform.baseline import Baseline, Entry
from kvconform.report.building import RunFacts, SeenTest, TargetFacts, build_document
from kvconform.report.document import Distribution, Document, Environment, Options, RuleEntry
from kvconform.report.json_report import digest, to_data
from kvconform.rules import load_catalogue
from kvconform.verdicts import RuleResult, Verdict

TARGET = "my.module:MyConnector"
RELEASE = "0.32.0"
MUSTS = [rule.id for rule in load_catalogue().applicable(RELEASE) if rule.level == "MUST"]
SHOULDS = [rule.id for rule in load_catalogue().applicable(RELEASE) if rule.level == "SHOULD"]
EXPECTED = [rule.id for rule in load_catalogue().applicable(RELEASE)]
OPTIONS = Options("kv_both", "vllm", "cpu", "quick", 0, 60.0, ("sync-load",), {"path": "{dir}"}, {})


def result(rule: str, verdict: Verdict, **facts: Any) -> RuleResult:
    """What one test found out; a pass has a witness."""
    facts.setdefault("nodeid", f"test_x.py::test_{rule}")
    facts.setdefault("target", TARGET)
    if verdict is Verdict.PASS:
        facts.setdefault("witnesses", {"external hits": 3})
    return RuleResult(rule, verdict=verdict, **facts)


def seen(rule: str, state: Any = "ran", **facts: Any) -> SeenTest:
    """The test that :func:`result` names."""
    facts.setdefault("nodeid", f"test_x.py::test_{rule}")
    return SeenTest(**{"target": TARGET, "rules": (rule,), "shipped": "", "state": state, "duration": 0.5, **facts})


def facts_of(results: Iterable[RuleResult] = (), tests: Iterable[SeenTest] | None = None, **facts: Any) -> RunFacts:
    """A run; by default every result comes from a test that ran, and nothing is missing."""
    results = tuple(results)
    if tests is None:
        by_test: dict[tuple[str, str], list[str]] = {}
        for one in results:
            by_test.setdefault((one.nodeid, one.target), []).append(one.rule)
        tests = [SeenTest(nodeid, target, tuple(rules), "", "ran", 0.5) for (nodeid, target), rules in by_test.items()]
    bad = any(one.verdict.is_bad for one in results)
    known = {
        "targets": (TargetFacts(TARGET, None, Distribution("my-store", "1.2"), OPTIONS),),
        "shipped": {},
        "unusable": {},
        "environment": Environment(RELEASE, "2.13.0", "9.0.0", "3.11.7", "Linux x86_64"),
        "started": "2026-01-31T12:00:00Z",
        "duration": 12.3456,
        "command": ("--kvconform=my.module:MyConnector",),
        "exit_status": int(bad),
    }
    return RunFacts(results=results, tests=tuple(tests), **{**known, **facts})


def make(results: Iterable[RuleResult] = (), tests: Iterable[SeenTest] | None = None, **facts: Any) -> Document:
    """A report."""
    return build_document(facts_of(results, tests, **facts), load_catalogue())


def entry(document: Document, rule: str) -> RuleEntry:
    """The entry of a rule of the only connector."""
    (target,) = document.targets
    (found,) = [entry for entry in target.entries if entry.id == rule]
    return found


def everything() -> Document:
    """A report with every verdict there is."""
    verdicts = [v for v in Verdict if v is not Verdict.WARN]
    results = [result(rule, v, message=f"text of {rule}") for rule, v in zip(MUSTS[1:], verdicts, strict=False)]
    results.append(result(SHOULDS[0], Verdict.FAIL, message="a warning's text"))
    tests = [seen(one.rule) for one in results]
    tests.append(seen(MUSTS[0], "deselected"))
    excused = [
        result(MUSTS[-1], Verdict.FAIL, message=f"text of {MUSTS[-1]}"),
        result(MUSTS[-2], Verdict.PASS),
    ]
    return make(
        [*results, *excused],
        [*tests, *(seen(one.rule) for one in excused)],
        deselected_by="-k 'x'",
        baseline=Baseline(
            "known.toml",
            (
                Entry("known failure", MUSTS[-1], TARGET, "to be fixed", "https://example.org/1"),
                Entry("flaky", MUSTS[-2], "", "depends on the backend", "ticket 2"),
            ),
        ),
    )


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """Data with a digest that fits, as a careful forger would write it."""
    return {**data, "digest": digest(data)}


def as_data(document: Document) -> dict[str, Any]:
    """The JSON form, to be changed at will."""
    return to_data(document)
