"""From what a session saw to a :class:`Document`. Knows nothing of pytest's objects.

The outcome does not depend on the order in which tests ran, so a run under xdist gives the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import kvconform
from kvconform.baseline import Baseline, Entry, Tried
from kvconform.bench.figures import Measurement
from kvconform.capabilities import Capability
from kvconform.coverage_report import CoverageEntry
from kvconform.picture import Picture
from kvconform.report.document import (
    FLAKY,
    KNOWN,
    NOT_RUN,
    UNCHECKED,
    BaselineUse,
    ChapterInfo,
    Distribution,
    Document,
    Environment,
    Excuse,
    Kit,
    Options,
    PartialReason,
    RuleEntry,
    RuleInfo,
    Run,
    TargetEntry,
    TestCounts,
    Unusable,
    level_of,
    plural,
)
from kvconform.report.masking import Masker
from kvconform.rules import NO_TEST, Catalogue, Rule
from kvconform.verdicts import RuleResult, aggregate

#: Characters of one message that are kept, from its beginning and its end.
KEPT_HEAD, KEPT_TAIL = 24_000, 8_000
MAX_MESSAGES = 20
MAX_PICTURES = 4

NOT_COLLECTED = "its tests were not collected"
CANNOT_BE_TESTED = "the connector could not be tested"

State = Literal["ran", "skipped", "not run", "deselected"]
_SILENT: tuple[State, ...] = ("not run", "deselected")


@dataclass(frozen=True)
class SeenTest:
    """One collected or deselected test."""

    nodeid: str
    #: Target id, or empty.
    target: str
    rules: tuple[str, ...]
    #: ``"test_transfer.py::test_name"`` of a shipped test; empty for a vendor's own.
    shipped: str
    state: State
    #: Seconds.
    duration: float = 0.0


@dataclass(frozen=True)
class TargetFacts:
    """One connector of the run. Options are masked already."""

    id: str
    preset: str | None
    distribution: Distribution | None
    options: Options
    capabilities: tuple[Capability, ...] = ()
    #: What trials have shown, in sentences.
    trials: tuple[str, ...] = ()
    coverage: CoverageEntry | None = None
    bench: Measurement | None = None


@dataclass(frozen=True)
class RunFacts:
    """Everything that a session saw."""

    targets: tuple[TargetFacts, ...]
    results: tuple[RuleResult, ...]
    tests: tuple[SeenTest, ...]
    #: Shipped test -> rules, of all suites, see :func:`kvconform.report.suite_tests.rules_by_test`.
    shipped: Mapping[str, tuple[str, ...]]
    #: What was typed, or a target id -> why it could not be tested.
    unusable: Mapping[str, str]
    environment: Environment
    started: str
    duration: float
    command: tuple[str, ...]
    exit_status: int
    #: Why tests were left out or did not run, in the user's terms; empty when unknown.
    deselected_by: str = ""
    not_collected_by: str = ""
    stopped_by: str = ""
    #: Reasons of skipped tests.
    skip_reasons: tuple[str, ...] = ()
    #: Files that could not be collected.
    broken_files: tuple[str, ...] = ()
    #: What excuses verdicts.
    baseline: Baseline = field(default_factory=Baseline)
    no_such_target: Callable[[str], str | None] = lambda _: None
    #: Texts that must not appear.
    secrets: frozenset[str] = field(default_factory=frozenset)


def expected_rules(catalogue: Catalogue, vllm: str | None) -> tuple[Rule, ...]:
    """The rules that a report on a vLLM release has to speak of.

    Where the release is unknown, or older than any rule (a build without a version), these are all rules: leaving one
    out has to be justified.
    """
    try:
        return catalogue.applicable(vllm or "") or catalogue.rules
    except ValueError:
        return catalogue.rules


def build_document(facts: RunFacts, catalogue: Catalogue) -> Document:
    """Put everything in the catalogue's order, and say what is missing."""
    return _Builder(facts, catalogue).document()


class _Builder:
    def __init__(self, facts: RunFacts, catalogue: Catalogue) -> None:
        self._facts = facts
        self._catalogue = catalogue
        self._expected = expected_rules(catalogue, facts.environment.vllm)
        self._text = Masker(facts.secrets)
        self._durations = {test.nodeid: test.duration for test in facts.tests}
        in_order = sorted(facts.results, key=lambda r: (r.nodeid, r.rule, r.verdict.value, r.message))
        self._verdicts = aggregate(in_order, {rule.id: rule.level for rule in catalogue})

    def document(self) -> Document:
        reasons = tuple(self._partial_reasons())
        targets = tuple(self._target(target) for target in self._facts.targets)
        without = tuple(self._entry("", rule) for rule in self._rules_seen("", ()))
        named = {entry.id for target in targets for entry in target.entries} | {entry.id for entry in without}
        rules = tuple(_rule_info(rule) for rule in self._catalogue if rule.id in named)
        chapters = {rule.chapter for rule in rules}
        return Document(
            kit=Kit(kvconform.__version__, self._catalogue.digest()),
            environment=self._facts.environment,
            run=Run(
                started=self._facts.started,
                duration=round(self._facts.duration, 3),
                command=tuple(map(self._clean, self._facts.command)),
                exit_status=self._facts.exit_status,
                tests=self._counts(),
                partial=bool(reasons),
                partial_reasons=reasons,
                baseline=self._baseline(),
            ),
            unusable=tuple(Unusable(t, self._clean(s)) for t, s in sorted(self._facts.unusable.items())),
            chapters=tuple(ChapterInfo(c.id, c.title) for c in self._catalogue.chapters if c.id in chapters),
            rules=rules,
            targets=targets,
            without_target=without,
        )

    # -- rules -----------------------------------------------------------------------------------------------------

    def _target(self, target: TargetFacts) -> TargetEntry:
        expected = [rule.id for rule in self._expected]
        entries = tuple(self._entry(target.id, rule) for rule in expected)
        return TargetEntry(
            id=target.id,
            preset=target.preset,
            distribution=target.distribution,
            options=target.options,
            rules=entries,
            other_rules=tuple(self._entry(target.id, rule) for rule in self._rules_seen(target.id, expected)),
            capabilities=target.capabilities,
            trials=target.trials,
            level=level_of(entries, {rule.id: rule.capability for rule in self._catalogue}, target.capabilities),
            coverage=target.coverage,
            bench=None if target.bench is None else self._cleaned(target.bench),
        )

    def _cleaned(self, bench: Measurement) -> Measurement:
        cases = tuple(replace(case, problem=self._clean(case.problem)) for case in bench.cases)
        return replace(bench, reason=self._clean(bench.reason), cases=cases)

    def _rules_seen(self, target: str, besides: Iterable[str]) -> list[str]:
        """Rules that have results or named tests, in the catalogue's order, then unknown ones."""
        seen = {rule for t, rule in self._verdicts if t == target}
        seen |= {rule for test in self._facts.tests if test.target == target for rule in test.rules}
        seen -= set(besides)
        known = [rule.id for rule in self._catalogue if rule.id in seen]
        return known + sorted(seen - set(known))

    def _entry(self, target: str, rule: str) -> RuleEntry:
        verdict = self._verdicts.get((target, rule))
        named = [test for test in self._facts.tests if test.target == target and rule in test.rules]
        spoke = {result.nodeid for result in verdict.results if result.nodeid} if verdict is not None else set()
        spoke -= {test.nodeid for test in named if test.state == "skipped"}
        tests, missing = sorted(spoke), sorted({test.nodeid for test in named} - spoke)
        level = self._catalogue.rule(rule).level if rule in self._catalogue else None
        if verdict is None:
            kind, reason = self._silence(target, rule, named)
            return RuleEntry(rule, level, kind, reason, {}, (), 0, (), tuple(missing), 0.0)
        messages = list(dict.fromkeys(map(self._clean, verdict.messages)))
        excuse = self._facts.baseline.excuse(target, rule, verdict.verdict)
        return RuleEntry(
            id=rule,
            level=level,
            verdict=verdict.verdict.value if excuse is None else excuse.kind,
            reason="",
            witnesses=dict(sorted((what, count) for what, count in verdict.witnesses.items() if count)),
            messages=tuple(messages[:MAX_MESSAGES]),
            messages_cut=max(0, len(messages) - MAX_MESSAGES),
            tests=tuple(tests),
            missing_tests=tuple(missing),
            duration=round(sum(self._durations.get(nodeid, 0.0) for nodeid in tests), 3),
            baseline=None
            if excuse is None
            else Excuse(verdict.verdict.value, self._clean(excuse.reason), self._clean(excuse.link)),
            pictures=tuple(map(self._clean_picture, verdict.pictures[:MAX_PICTURES])),
        )

    def _silence(self, target: str, rule: str, named: list[SeenTest]) -> tuple[str, str]:
        """Why nothing was found out about a rule: "unchecked" or "not run", and the reason."""
        if target in self._facts.unusable and (named or self._is_checked(rule)):
            return NOT_RUN, CANNOT_BE_TESTED
        states = {test.state for test in named}
        if "ran" in states or "not run" in states:
            stopped = self._facts.stopped_by if "not run" in states else ""
            return NOT_RUN, self._clean(f"its tests did not run: {stopped}" if stopped else "its tests did not run")
        if "deselected" in states:
            by = f" ({self._facts.deselected_by})" if self._facts.deselected_by else ""
            return NOT_RUN, self._clean(f"its tests were deselected{by}")
        if self._is_checked(rule):
            by = f": {self._facts.not_collected_by}" if self._facts.not_collected_by else ""
            return NOT_RUN, self._clean(NOT_COLLECTED + by)
        reason = self._catalogue.rule(rule).unchecked if rule in self._catalogue else None
        return UNCHECKED, (reason or NO_TEST).rstrip(".")

    def _is_checked(self, rule: str) -> bool:
        return any(rule in rules for rules in self._facts.shipped.values())

    # -- the run ---------------------------------------------------------------------------------------------------

    def _baseline(self) -> BaselineUse | None:
        baseline = self._facts.baseline
        if not baseline.file:
            return None
        named = {rule for test in self._facts.tests for rule in test.rules}
        fit = baseline.fit(
            Tried(
                {pair: verdict.verdict for pair, verdict in self._verdicts.items()},
                [target.id for target in self._facts.targets],
                {rule.id for rule in self._catalogue} | named,
                {rule for rules in self._facts.shipped.values() for rule in rules} | named,
                self._incomplete(),
                self._facts.no_such_target,
            )
        )
        return BaselineUse(
            self._clean(baseline.file), tuple(map(self._clean, fit.problems)), tuple(map(self._clean, fit.not_tried))
        )

    def _incomplete(self) -> set[tuple[str, str]]:
        """(target, rule) of rules some of whose tests did not run, for whatever reason."""
        seen = {test.shipped for test in self._facts.tests}
        lacking = {rule for test, rules in self._facts.shipped.items() if test not in seen for rule in rules}
        return {(test.target, rule) for test in self._facts.tests if test.state in _SILENT for rule in test.rules} | {
            (target.id, rule) for target in self._facts.targets for rule in lacking
        }

    def _counts(self) -> TestCounts:
        states = [test.state for test in self._facts.tests]
        deselected = states.count("deselected")
        return TestCounts(
            collected=len(states) - deselected,
            ran=states.count("ran"),
            skipped=states.count("skipped"),
            not_run=states.count("not run"),
            deselected=deselected,
        )

    def _partial_reasons(self) -> Iterable[PartialReason]:
        facts, counts = self._facts, self._counts()
        if facts.unusable:
            names = ", ".join(sorted(facts.unusable))
            yield self._reason("unusable", f"{plural(len(facts.unusable), 'connector')} could not be tested: {names}")
        if facts.broken_files:
            files = ", ".join(sorted(facts.broken_files))
            yield self._reason(
                "collection error", f"{plural(len(facts.broken_files), 'file')} could not be collected: {files}"
            )
        seen = {test.shipped for test in facts.tests}
        lacking = [test for test in facts.shipped if test not in seen]
        if lacking:
            by = f": {facts.not_collected_by}" if facts.not_collected_by else ""
            some = f"{len(lacking)} of the {len(facts.shipped)} tests of the suites were not collected{by}"
            none = f"none of the {len(facts.shipped)} tests of the suites was collected{by}"
            yield self._reason("not collected", some if len(lacking) < len(facts.shipped) else none)
        if counts.deselected:
            by = f" ({facts.deselected_by})" if facts.deselected_by else ""
            were = "was" if counts.deselected == 1 else "were"
            yield self._reason("deselected", f"{plural(counts.deselected, 'test')} {were} deselected{by}")
        if counts.not_run:
            by = f": {facts.stopped_by}" if facts.stopped_by else ""
            yield self._reason("not run", f"{plural(counts.not_run, 'test')} did not run{by}")
        if counts.skipped:
            were = "was" if counts.skipped == 1 else "were"
            why = f": {'; '.join(sorted(set(facts.skip_reasons))[:3])}" if facts.skip_reasons else ""
            yield self._reason("skipped", f"{plural(counts.skipped, 'test')} {were} skipped{why}")

        for kind, what in ((KNOWN, "a known failure"), (FLAKY, "flaky")):
            rules = sorted({rule for rule, excuse in self._excused() if excuse.kind == kind})
            if rules:
                called = f"{facts.baseline.file} calls {plural(len(rules), 'rule')} {what}"
                yield self._reason(kind, f"{called}: {', '.join(rules)}")

    def _excused(self) -> Iterator[tuple[str, Entry]]:
        for (target, rule), verdict in self._verdicts.items():
            excuse = self._facts.baseline.excuse(target, rule, verdict.verdict)
            if excuse is not None:
                yield rule, excuse

    def _reason(self, kind: str, sentence: str) -> PartialReason:
        return PartialReason(kind, self._clean(sentence))

    def _clean_picture(self, picture: Picture) -> Picture:
        groups = (
            replace(
                group,
                layer=self._clean(group.layer),
                wrong=tuple(replace(wrong, what=self._clean(wrong.what)) for wrong in group.wrong),
            )
            for group in picture.groups
        )
        return replace(picture, request=self._clean(picture.request), groups=tuple(groups))

    def _clean(self, text: str) -> str:
        """A text that any file can hold: no lone surrogates, no secrets, no megabytes."""
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return _cut(self._text(text), KEPT_HEAD, KEPT_TAIL)  # masked before it is cut, or half a secret could remain


def _cut(text: str, head: int, tail: int) -> str:
    hidden = len(text) - head - tail
    return text if hidden <= 200 else f"{text[:head]}\n[... {hidden:,} characters cut ...]\n{text[-tail:]}"


def _rule_info(rule: Rule) -> RuleInfo:
    return RuleInfo(
        id=rule.id,
        chapter=rule.chapter,
        level=rule.level,
        capability=rule.capability,
        sentence=rule.sentence,
        consequence=rule.consequence,
        fix=rule.fix,
        evidence=tuple(map(str, rule.evidence)),
    )


def with_times_removed(document: Document) -> Document:
    """The report without what differs between two equal runs: times, durations and the command."""
    run = replace(document.run, started="1970-01-01T00:00:00Z", duration=0.0, command=())
    targets = tuple(
        replace(target, rules=_timeless(target.rules), other_rules=_timeless(target.other_rules))
        for target in document.targets
    )
    return replace(document, run=run, targets=targets, without_target=_timeless(document.without_target))


def _timeless(entries: tuple[RuleEntry, ...]) -> tuple[RuleEntry, ...]:
    return tuple(replace(entry, duration=0.0) for entry in entries)
