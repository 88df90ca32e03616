"""What a run found, ready to be shown: every rendering starts from a :class:`RunReport`."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import kvconform
from kvconform.rules import Catalogue
from kvconform.verdicts import NOT_SET_UP, RuleResult, RuleVerdict, Verdict, aggregate

#: Heading of the rules that the catalogue does not have.
UNKNOWN_CHAPTER = "Rules that are not in the catalogue"
NOT_RUN = "none of its tests ran"


@dataclass(frozen=True)
class RuleLine:
    """One rule of the catalogue with its verdict."""

    verdict: RuleVerdict
    #: The rule's sentence; empty when the catalogue does not have the rule.
    sentence: str
    #: Whether a failed test shows the verdict's text. A test that is about other rules finds things and passes.
    told: bool = True


@dataclass(frozen=True)
class ChapterReport:
    """The rules of one chapter, in the catalogue's order."""

    title: str
    lines: tuple[RuleLine, ...]


@dataclass(frozen=True)
class TargetReport:
    """Everything about one connector."""

    target: str
    #: Target id of the preset that was used, or None.
    preset: str | None
    chapters: tuple[ChapterReport, ...]

    @property
    def lines(self) -> tuple[RuleLine, ...]:
        """The rules of all chapters."""
        return tuple(line for chapter in self.chapters for line in chapter.lines)

    def counts(self) -> dict[Verdict, int]:
        """How many rules have each verdict, the good news first; verdicts that no rule has are left out."""
        counter = Counter(line.verdict.verdict for line in self.lines)
        order = (Verdict.PASS, *(verdict for verdict in Verdict if verdict is not Verdict.PASS))
        return {verdict: counter[verdict] for verdict in order if counter[verdict]}


@dataclass(frozen=True)
class RunReport:
    """A whole run."""

    targets: tuple[TargetReport, ...]
    #: What was typed -> the sentence that says why it could not be tested.
    unusable: Mapping[str, str]
    #: One line that says what was tested with what.
    environment: str

    @property
    def not_set_up(self) -> dict[str, str]:
        """Target id -> why it did not start at all, in its own words: neither a pass nor a rule broken."""
        return {
            target.target: message
            for target in self.targets
            for line in target.lines
            for message in line.verdict.messages
            if message.startswith(NOT_SET_UP)
        }

    @property
    def has_bad_verdict(self) -> bool:
        """Whether some rule's verdict forbids exit code 0."""
        return any(line.verdict.verdict.is_bad for target in self.targets for line in target.lines)


def build_report(
    *,
    presets: Mapping[str, str | None],
    named: Iterable[tuple[str, str]],
    results: Iterable[RuleResult],
    unusable: Mapping[str, str],
    environment: str,
    catalogue: Catalogue,
    failed_tests: Collection[str] | None = None,
) -> RunReport:
    """Put the results of all tests in the catalogue's order.

    Args:
        presets: target id -> preset that was used or None; in the order in which targets are shown.
        named: (target id, rule id) of every collected test's rules: those are shown even if no test ran.
        results: what the tests found out.
        unusable: see :class:`RunReport`.
        environment: see :func:`describe_environment`.
        catalogue: gives sentences, levels and order.
        failed_tests: ids of the tests that pytest shows as failed; None when that is not known.
    """
    levels = {rule.id: rule.level for rule in catalogue}
    verdicts = aggregate(results, levels)
    for target, rule in named:
        nothing = RuleResult(rule, target, Verdict.INCONCLUSIVE, message=NOT_RUN)
        verdicts.setdefault((target, rule), RuleVerdict(rule, target, Verdict.INCONCLUSIVE, {}, (nothing,)))
    # Results of tests that run against no target of their own (a vendor's marked tests) come last.
    order = dict.fromkeys([*presets, *sorted(target for target, _ in verdicts)])
    targets = tuple(
        TargetReport(
            target,
            presets.get(target),
            _chapters([v for v in verdicts.values() if v.target == target], catalogue, failed_tests),
        )
        for target in order
    )
    return RunReport(tuple(target for target in targets if target.chapters), unusable, environment)


def _chapters(
    verdicts: list[RuleVerdict], catalogue: Catalogue, failed_tests: Collection[str] | None
) -> tuple[ChapterReport, ...]:
    def line(verdict: RuleVerdict, sentence: str) -> RuleLine:
        told = failed_tests is None or any(result.nodeid in failed_tests for result in verdict.deciding)
        return RuleLine(verdict, sentence, told)

    by_rule = {verdict.rule: verdict for verdict in verdicts}
    chapters = [
        ChapterReport(
            f"{chapter.title} ({chapter.id})",
            tuple(line(by_rule[rule.id], rule.sentence) for rule in chapter.rules if rule.id in by_rule),
        )
        for chapter in catalogue.chapters
    ]
    unknown = tuple(line(by_rule[rule], "") for rule in sorted(by_rule) if rule not in catalogue)
    chapters.append(ChapterReport(UNKNOWN_CHAPTER, unknown))
    return tuple(chapter for chapter in chapters if chapter.lines)


def describe_environment(*, engine: str, device: str, budget: str, seed: int) -> str:
    """One line: versions (of the distributions, nothing is imported) and options."""
    try:
        vllm = f"vLLM {importlib.metadata.version('vllm')}"
    except importlib.metadata.PackageNotFoundError:
        vllm = "vLLM not installed"
    return f"kvconform {kvconform.__version__}, {vllm}, engine {engine} on {device}, budget {budget}, seed {seed}"
