"""Whether a report is one: unchanged, complete for its vLLM release, and free of contradictions.

What a file says is compared with what this kvconform knows; nothing of it is imported, evaluated or unpickled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import kvconform
from kvconform.report.building import expected_rules
from kvconform.report.document import BAD, NOT_RUN, UNCHECKED, Document, RuleEntry, TargetEntry, level_of
from kvconform.report.json_report import digest, from_data, schema_problems
from kvconform.rules import Catalogue

_MAX_NAMES = 5


@dataclass(frozen=True)
class Verification:
    """What is wrong with a report, and what a reader has to know about one that is right."""

    #: One sentence each; a report without problems is accepted.
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    #: The report, if it could be read.
    document: Document | None = None


def verify(data: Any, catalogue: Catalogue, checked: frozenset[str]) -> Verification:
    """Check the content of a report's file.

    Args:
        data: parsed JSON.
        catalogue: the rules of this kvconform.
        checked: rules that some test of this kvconform's suites names.
    """
    problems = schema_problems(data)
    if problems:
        return Verification(tuple(problems))
    if data["digest"] != digest(data):
        return Verification(("The digest does not match the content: the report was changed after the run.",))
    document = from_data(data)
    problems = [*_foreign_rules(document, catalogue)]
    if not problems:
        problems += _incomplete(document, catalogue, checked)
    problems += _contradictions(document)
    return Verification(tuple(problems), tuple(_notes(document)), document)


def _foreign_rules(document: Document, catalogue: Catalogue) -> Iterator[str]:
    """Why this kvconform can't say which rules the report must have."""
    if document.kit.rules_digest == catalogue.digest():
        return
    if document.kit.version == kvconform.__version__:
        yield (
            f"The report says that kvconform {document.kit.version} wrote it, but its rules are not those of that "
            "version: its rules digest was changed, or the kit was."
        )
    else:
        yield (
            f"The report was written by kvconform {document.kit.version} with other rules than those of this "
            f"kvconform {kvconform.__version__}, so what it must hold is unknown here: "
            f"verify it with kvconform=={document.kit.version}."
        )


def _incomplete(document: Document, catalogue: Catalogue, checked: frozenset[str]) -> Iterator[str]:
    expected = [rule.id for rule in expected_rules(catalogue, document.environment.vllm)]
    release = f"vLLM {document.environment.vllm}" if document.environment.vllm else "an unknown vLLM release"
    if not document.targets:
        yield "The report is on no connector."
    for target in document.targets:
        have = Counter(entry.id for entry in target.rules)
        lacking = [rule for rule in expected if rule not in have]
        if lacking:
            yield f"{target.id}: {_names(lacking)} must be in a report on {release}, and {_are(lacking)} missing."
        unknown = [rule for rule in have if rule not in expected]
        if unknown:
            yield f"{target.id}: {_names(unknown)} {_are(unknown)} no rule of {release}."
        twice = [rule for rule, count in Counter(entry.id for entry in target.entries).items() if count > 1]
        if twice:
            yield f"{target.id}: {_names(twice)} {_are(twice)} there more than once."
        hidden = [entry.id for entry in target.rules if entry.verdict == UNCHECKED and entry.id in checked]
        if hidden:
            yield f"{target.id}: {_names(hidden)} {_are(hidden)} called unchecked, but tests of the suites check it."
        earned = level_of(target.rules, {rule.id: rule.capability for rule in catalogue}, target.capabilities)
        if target.level != earned and not lacking:  # without its rules nothing can be earned
            yield f"{target.id}: the report says level {target.level}, but its verdicts make it {earned}."
    yield from _altered(document, catalogue)


def _altered(document: Document, catalogue: Catalogue) -> Iterator[str]:
    entries = _all_entries(document)
    levels = {rule.id: rule.level for rule in catalogue}
    wrong = sorted({entry.id for entry in entries if entry.level != levels.get(entry.id)})
    if wrong:
        yield f"The level of {_names(wrong)} is not that of the catalogue."
    texts = {
        rule.id: (rule.chapter, rule.level, rule.capability, rule.sentence, rule.consequence, rule.fix)
        for rule in catalogue
    }
    said = {
        rule.id: (rule.chapter, rule.level, rule.capability, rule.sentence, rule.consequence, rule.fix)
        for rule in document.rules
    }
    wrong = sorted(rule for rule, text in said.items() if texts.get(rule) != text)
    if wrong:
        yield f"What the report says about {_names(wrong)} is not what the catalogue says."
    wrong = sorted({entry.id for entry in entries if entry.id in levels} - set(said))
    if wrong:
        yield f"The report does not say what {_names(wrong)} demands."


def _contradictions(document: Document) -> Iterator[str]:
    run, tests = document.run, document.run.tests
    if tests.ran + tests.skipped + tests.not_run != tests.collected:
        yield (
            f"The tests that ran ({tests.ran}), were skipped ({tests.skipped}) and did not run ({tests.not_run}) are "
            f"not the {tests.collected} that were collected."
        )
    if run.exit_status == 0:
        bad = [entry.id for target in document.targets for entry in target.entries if entry.verdict in BAD]
        if bad:
            yield f"pytest's exit status is 0, which it never is where {_names(bad)} {_are(bad)} broken or untold."
        if document.unusable or any(target.not_set_up for target in document.targets):
            yield "pytest's exit status is 0, which it never is where a connector could not be tested."
        if run.baseline is not None and run.baseline.problems:
            yield "pytest's exit status is 0, which it never is where the baseline does not fit the run."
    excused = [entry.id for entry in _all_entries(document) if entry.baseline is not None]
    if excused and run.baseline is None:
        yield f"{_names(excused)} {_are(excused)} excused by a baseline, but the run had none."
    if excused and not run.partial:
        yield f"The run is not called partial, although a baseline excuses {_names(excused)}."
    for target in document.targets:
        yield from _target_contradictions(target, run.partial)
    if not run.partial and (tests.not_run or tests.deselected or tests.skipped or document.unusable):
        yield "The run is not called partial, although tests are missing."


def _target_contradictions(target: TargetEntry, partial: bool) -> Iterator[str]:
    entries = target.entries
    hollow = [entry.id for entry in entries if _said(entry) == "pass" and not _witnessed(entry.witnesses)]
    if hollow:
        yield f"{target.id}: {_names(hollow)} {_are(hollow)} called pass without a witness."
    idle = [entry.id for entry in entries if _said(entry) in BAD | {"pass", "warn"} and not _has_test(entry)]
    if idle:
        yield f"{target.id}: {_names(idle)} {_are(idle)} judged without a test."
    if not partial and any(entry.verdict == NOT_RUN or entry.missing_tests for entry in entries):
        yield f"{target.id}: the run is not called partial, although tests are missing."


def _said(entry: RuleEntry) -> str:
    """The verdict itself, whatever excuses it."""
    return entry.verdict if entry.baseline is None else entry.baseline.verdict


def _all_entries(document: Document) -> list[RuleEntry]:
    return [entry for target in document.targets for entry in target.entries] + list(document.without_target)


def _witnessed(witnesses: Mapping[str, int]) -> bool:
    return any(count > 0 for count in witnesses.values())


def _has_test(entry: RuleEntry) -> bool:
    return bool(entry.tests or entry.missing_tests)


def _notes(document: Document) -> Iterator[str]:
    if document.run.partial:
        yield "The run is partial: " + "; ".join(reason.sentence for reason in document.run.partial_reasons) + "."
    for problem in document.run.baseline.problems if document.run.baseline is not None else ():
        yield f"The baseline does not fit the run: {problem}"
    for sentence in document.run.baseline.not_tried if document.run.baseline is not None else ():
        yield f"The run says nothing about an entry of the baseline: {sentence}"
    for unusable in document.unusable:
        yield f"{unusable.target} was not tested."
    for target in document.targets:
        if target.not_set_up:
            yield f"{target.id}: {target.not_set_up}"
    if document.embedded:
        yield f"The run was on {document.driven_by}; run it with vLLM installed for a verdict on vLLM itself."
    if document.environment.vllm is None:
        yield "vLLM was not installed; the report lists the rules of all releases."
    others = sorted({entry.id for target in document.targets for entry in target.other_rules})
    if others:
        yield f"Beside the rules of the release the report has {_names(others)}."


def _names(rules: list[str]) -> str:
    shown = list(dict.fromkeys(rules))
    more = f" and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    return ", ".join(shown[:_MAX_NAMES]) + more


def _are(rules: list[str]) -> str:
    return "is" if len(set(rules)) == 1 else "are"
