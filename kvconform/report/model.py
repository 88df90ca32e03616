"""What a run found, ready to be shown: every rendering starts from a :class:`RunReport`."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from packaging.version import Version

import kvconform
from kvconform.api import NEWEST_TESTED_RELEASE, release_of
from kvconform.baseline import KINDS as BASELINE_KINDS
from kvconform.baseline import Baseline, Entry, Tried
from kvconform.capabilities import Capability
from kvconform.coverage_report import CoverageEntry
from kvconform.report.levels import Judged, Level, assess
from kvconform.rules import Catalogue, Rule
from kvconform.verdicts import NOT_SET_UP, RuleResult, RuleVerdict, Verdict, aggregate

#: Heading of the rules that the catalogue does not have.
UNKNOWN_CHAPTER = "Rules that are not in the catalogue"
NOT_RUN = "none of its tests ran"
#: How a report calls a rule whose tests did not run, see :mod:`kvconform.report.document`.
NOT_RUN_WORD = "not run"
NO_BASELINE = Baseline()


@dataclass(frozen=True)
class RuleLine:
    """One rule of the catalogue with its verdict."""

    verdict: RuleVerdict
    #: The rule's sentence; empty when the catalogue does not have the rule.
    sentence: str
    #: Whether a failed test shows the verdict's text. A test that is about other rules finds things and passes.
    told: bool = True
    #: What excuses the verdict.
    excuse: Entry | None = None

    @property
    def not_run(self) -> bool:
        """Whether no test has said anything about the rule."""
        return [result.message for result in self.verdict.results] == [NOT_RUN]

    @property
    def word(self) -> str:
        """The verdict as it is shown: an excused one by what excuses it, and none where no test ran."""
        if self.excuse is not None:
            return self.excuse.kind
        return NOT_RUN_WORD if self.not_run else self.verdict.verdict.value


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
    #: What the connector declares, has the hooks for, and was seen to do.
    capabilities: tuple[Capability, ...] = ()
    #: What it has earned; None for tests that run against no connector.
    level: Level | None = None
    #: What was measured of its lines; None where nothing was.
    coverage: CoverageEntry | None = None

    @property
    def lines(self) -> tuple[RuleLine, ...]:
        """The rules of all chapters."""
        return tuple(line for chapter in self.chapters for line in chapter.lines)

    def counts(self) -> dict[str, int]:
        """How many rules have each verdict, the good news first; verdicts that no rule has are left out."""
        counter = Counter(line.word for line in self.lines)
        others = [verdict.value for verdict in Verdict if verdict is not Verdict.PASS]
        order = (Verdict.PASS.value, *others, *BASELINE_KINDS, NOT_RUN_WORD)
        return {word: counter[word] for word in order if counter[word]}


@dataclass(frozen=True)
class RunReport:
    """A whole run."""

    targets: tuple[TargetReport, ...]
    #: What was typed -> the sentence that says why it could not be tested.
    unusable: Mapping[str, str]
    #: One line that says what was tested with what.
    environment: str
    #: The baseline's file, and its entries that do not fit the run: they fail it.
    baseline_file: str = ""
    baseline_problems: tuple[str, ...] = ()
    #: Its entries that the run says nothing about.
    baseline_not_tried: tuple[str, ...] = ()
    #: Where the time went; empty where nothing was played.
    spent: str = ""
    #: What trials have shown, see :meth:`kvconform.trials.traits.StoreTraits.sentences`.
    trials: tuple[str, ...] = ()

    @property
    def excused(self) -> tuple[str, ...]:
        """The rules that the baseline excuses, with what it calls them; they make the run partial."""
        lines = [line for target in self.targets for line in target.lines if line.excuse is not None]
        return tuple(dict.fromkeys(f"{line.verdict.rule} ({line.word})" for line in lines))

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
        lines = (line for target in self.targets for line in target.lines)
        return any(line.verdict.verdict.is_bad and line.excuse is None for line in lines)


def build_report(
    *,
    presets: Mapping[str, str | None],
    named: Iterable[tuple[str, str]],
    results: Iterable[RuleResult],
    unusable: Mapping[str, str],
    environment: str,
    catalogue: Catalogue,
    failed_tests: Collection[str] | None = None,
    baseline: Baseline = NO_BASELINE,
    capabilities: Mapping[str, tuple[Capability, ...]] | None = None,
    required: Iterable[str] = (),
    coverage: Mapping[str, CoverageEntry | None] | None = None,
    checked: Iterable[str] = (),
    incomplete: Iterable[tuple[str, str]] = (),
    no_such_target: Callable[[str], str | None] = lambda _: None,
    spent: str = "",
    trials: tuple[str, ...] = (),
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
        baseline: what excuses verdicts.
        coverage: by target id, what was measured of its lines.
        capabilities: per target what it declares and showed.
        required: ids of the rules that the suites check on this release, whether their tests were collected or not.
        checked: ids of the rules that the suites check on any release.
        incomplete: (target id, rule id) of rules some of whose tests did not run.
        no_such_target: why no connector of some id can exist, or None.
        spent: where the time went, in a sentence.
        trials: what trials have shown, in a sentence each.
    """
    levels = {rule.id: rule.level for rule in catalogue}
    verdicts = aggregate(results, levels)
    named = tuple(named)
    by_name = {rule for _, rule in named}
    fit = baseline.fit(
        Tried(
            {pair: verdict.verdict for pair, verdict in verdicts.items()},
            tuple(presets),
            levels.keys() | by_name,
            set(checked) | by_name,
            tuple(incomplete),
            no_such_target,
        )
    )
    for target, rule in named:
        nothing = RuleResult(rule, target, Verdict.INCONCLUSIVE, message=NOT_RUN)
        verdicts.setdefault((target, rule), RuleVerdict(rule, target, Verdict.INCONCLUSIVE, {}, (nothing,)))
    # Results of tests that run against no target of their own (a vendor's marked tests) come last.
    order = dict.fromkeys([*presets, *sorted(target for target, _ in verdicts)])
    targets = tuple(
        TargetReport(
            target,
            presets.get(target),
            _chapters([v for v in verdicts.values() if v.target == target], catalogue, failed_tests, baseline),
            coverage=(coverage or {}).get(target),
        )
        for target in order
    )
    needed = [catalogue.rule(rule) for rule in required]
    shown = tuple(_standing(target, needed, capabilities or {}) for target in targets if target.chapters)
    return RunReport(shown, unusable, environment, baseline.file, fit.problems, fit.not_tried, spent, trials)


def _standing(
    target: TargetReport, required: Iterable[Rule], capabilities: Mapping[str, tuple[Capability, ...]]
) -> TargetReport:
    """The report with what the connector has earned."""
    if target.target not in capabilities:
        return target
    shown = capabilities[target.target]
    words = {line.verdict.rule: line.word for line in target.lines}
    judged = [Judged(rule.id, rule.level, rule.capability, words.get(rule.id, NOT_RUN_WORD)) for rule in required]
    return replace(target, capabilities=shown, level=assess(judged, shown))


def _chapters(
    verdicts: list[RuleVerdict], catalogue: Catalogue, failed_tests: Collection[str] | None, baseline: Baseline
) -> tuple[ChapterReport, ...]:
    def line(verdict: RuleVerdict, sentence: str) -> RuleLine:
        told = failed_tests is None or any(result.nodeid in failed_tests for result in verdict.deciding)
        return RuleLine(verdict, sentence, told, baseline.excuse(verdict.target, verdict.rule, verdict.verdict))

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
        version = importlib.metadata.version("vllm")
        vllm = f"vLLM {version}"
        if Version(Version(version).base_version) > NEWEST_TESTED_RELEASE:
            vllm += f" (newer than {NEWEST_TESTED_RELEASE}, the last one that this kvconform is tested with)"
    except importlib.metadata.PackageNotFoundError:
        vllm = "vLLM not installed"
    if engine == "embedded":
        vllm = f"no vLLM (its {release_of(engine)} is imitated)"
    return f"kvconform {kvconform.__version__}, {vllm}, engine {engine} on {device}, budget {budget}, seed {seed}"
