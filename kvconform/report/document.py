"""The report as it is kept: plain data with a published schema, from which every other form is made.

Field names are the keys of the JSON form, see ``report.schema.json``. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvconform.baseline import KINDS
from kvconform.bench.figures import Measurement
from kvconform.capabilities import Capability
from kvconform.coverage_report import CoverageEntry
from kvconform.picture import Picture
from kvconform.report.levels import NOTHING_EARNED, Judged, Level, assess
from kvconform.verdicts import NOT_SET_UP, PRECEDENCE, Verdict

FORMAT = "kvconform-report"
FORMAT_VERSION = 1

#: No test of the suites checks the rule: nothing could have been shown.
UNCHECKED = "unchecked"
#: Tests check the rule, and none of them ran.
NOT_RUN = "not run"

#: A verdict that the baseline excuses; the entry's ``baseline`` has the verdict itself.
KNOWN, FLAKY = KINDS

_BEFORE_WARN = PRECEDENCE.index(Verdict.WARN)
#: Every verdict of a report, the most alarming first.
VERDICTS: tuple[str, ...] = (
    *(verdict.value for verdict in PRECEDENCE[:_BEFORE_WARN]),
    KNOWN,
    FLAKY,
    *(verdict.value for verdict in PRECEDENCE[_BEFORE_WARN:]),
    NOT_RUN,
    UNCHECKED,
)
BAD: frozenset[str] = frozenset(verdict.value for verdict in Verdict if verdict.is_bad)
#: Verdicts that come from a test, as opposed to the two that say that there was none.
JUDGED: frozenset[str] = frozenset(verdict.value for verdict in Verdict)


@dataclass(frozen=True)
class Kit:
    """What judged."""

    version: str
    #: sha256 (hex) of the rule catalogue.
    rules_digest: str


@dataclass(frozen=True)
class Environment:
    """Versions, read from the installed distributions; None for what is not installed."""

    vllm: str | None
    torch: str | None
    pytest: str
    python: str
    platform: str


@dataclass(frozen=True)
class PartialReason:
    """One reason why the run says less than a whole one."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class TestCounts:
    """How many tests there were."""

    collected: int
    ran: int
    skipped: int
    not_run: int
    deselected: int


@dataclass(frozen=True)
class BaselineUse:
    """The baseline of a run."""

    #: As it was given.
    file: str
    #: Entries that do not fit the run; they fail it.
    problems: tuple[str, ...]
    #: Entries that the run says nothing about, because their tests or connectors were left out.
    not_tried: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One pytest session."""

    #: UTC, "2026-01-31T12:00:00Z".
    started: str
    #: Seconds.
    duration: float
    command: tuple[str, ...]
    #: pytest's exit status.
    exit_status: int
    tests: TestCounts
    partial: bool
    partial_reasons: tuple[PartialReason, ...]
    #: None for a run without one.
    baseline: BaselineUse | None = None


@dataclass(frozen=True)
class Unusable:
    """A connector that could not be tested at all."""

    target: str
    sentence: str


@dataclass(frozen=True)
class ChapterInfo:
    """A chapter of the catalogue."""

    id: str
    title: str


@dataclass(frozen=True)
class RuleInfo:
    """What the catalogue says about a rule, kept so that a report can be read without the kit that wrote it."""

    id: str
    chapter: str
    level: str
    capability: str
    sentence: str
    consequence: str
    fix: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Excuse:
    """What the baseline says about a rule, and the verdict that it excuses."""

    verdict: str
    reason: str
    link: str


@dataclass(frozen=True)
class RuleEntry:
    """One rule with its verdict."""

    id: str
    #: None for a rule that the catalogue does not have.
    level: str | None
    #: One of :data:`VERDICTS`.
    verdict: str
    #: Why there is no verdict, for "unchecked" and "not run"; otherwise empty.
    reason: str
    #: How often each thing was seen that the verdict rests on.
    witnesses: Mapping[str, int]
    #: What the tests say that decided the verdict: failure texts, or what was missing.
    messages: tuple[str, ...]
    #: How many more messages there were.
    messages_cut: int
    #: pytest ids of the tests that spoke about the rule.
    tests: tuple[str, ...]
    #: pytest ids of tests that check the rule and did not run.
    missing_tests: tuple[str, ...]
    #: Seconds that ``tests`` took; a test that checks several rules counts for each of them.
    duration: float
    #: For "known failure" and "flaky"; otherwise None.
    baseline: Excuse | None = None
    #: Block tables of findings with wrong bytes.
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Distribution:
    """An installed distribution."""

    name: str
    version: str


#: The engine that needs no vLLM, by its name among the options.
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Options:
    """What decided the run; secrets are masked."""

    kv_role: str
    engine: str
    device: str
    budget: str
    seed: int
    #: Seconds for one scenario.
    timeout: float
    capabilities: tuple[str, ...]
    kv_connector_extra_config: Mapping[str, Any]
    env: Mapping[str, Any]


@dataclass(frozen=True)
class TargetEntry:
    """One connector."""

    id: str
    #: Target id of the preset that filled in options, or None.
    preset: str | None
    #: The distribution that the connector's module belongs to; None when it belongs to none.
    distribution: Distribution | None
    options: Options
    #: Every rule that holds for the vLLM release, in the catalogue's order.
    rules: tuple[RuleEntry, ...]
    #: Verdicts on other rules: of another release, or a vendor's own.
    other_rules: tuple[RuleEntry, ...]
    #: What the connector declares, has the hooks for, and was seen to do.
    capabilities: tuple[Capability, ...] = ()
    #: What trials have shown of its store, in sentences whose subject it is.
    trials: tuple[str, ...] = ()
    #: What it has earned over all rules that the release requires, see :func:`level_of`.
    level: Level = NOTHING_EARNED
    #: What was measured of the connector's lines; None where nothing was.
    coverage: CoverageEntry | None = None
    #: How fast it is; None where nothing was measured.
    bench: Measurement | None = None

    @property
    def entries(self) -> tuple[RuleEntry, ...]:
        """All rules."""
        return (*self.rules, *self.other_rules)

    @property
    def not_set_up(self) -> str:
        """Why the connector did not start at all, in its own words; empty if it did."""
        messages = (message for entry in self.entries for message in entry.messages)
        return next((message for message in messages if message.startswith(NOT_SET_UP)), "")

    def counts(self) -> dict[str, int]:
        """How many rules have each verdict, in the order of :data:`VERDICTS`; without zeros."""
        return count_verdicts(self.entries)


def level_of(rules: Iterable[RuleEntry], capability_of: Mapping[str, str], shown: tuple[Capability, ...]) -> Level:
    """The level that follows from a target's entries: every rule that some test of the suites checks is required.

    Args:
        rules: of the vLLM release, see :attr:`TargetEntry.rules`.
        capability_of: rule id -> capability, of the catalogue.
        shown: see :attr:`TargetEntry.capabilities`.
    """
    required = [
        Judged(entry.id, entry.level or "MUST", capability_of.get(entry.id, "base"), entry.verdict)
        for entry in rules
        if entry.verdict != UNCHECKED
    ]
    return assess(required, shown)


@dataclass(frozen=True)
class Document:
    """A whole report, without its digest."""

    kit: Kit
    environment: Environment
    run: Run
    unusable: tuple[Unusable, ...]
    chapters: tuple[ChapterInfo, ...]
    rules: tuple[RuleInfo, ...]
    targets: tuple[TargetEntry, ...]
    #: Verdicts of tests that ran against no connector.
    without_target: tuple[RuleEntry, ...]
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def embedded(self) -> bool:
        """Whether connectors were driven by the kit's own engine, without vLLM."""
        return any(target.options.engine == EMBEDDED for target in self.targets)

    @property
    def driven_by(self) -> str:
        """What drove the connectors, in words."""
        if self.embedded:
            return f"the engine '{EMBEDDED}' instead of vLLM (it follows {self.environment.vllm})"
        return f"vLLM {self.environment.vllm or '(not installed)'}"

    def counts(self) -> dict[str, int]:
        """As :meth:`TargetEntry.counts`, over the whole run."""
        entries = [entry for target in self.targets for entry in target.entries]
        return count_verdicts((*entries, *self.without_target))


def count_verdicts(entries: tuple[RuleEntry, ...]) -> dict[str, int]:
    """How many entries have each verdict, in the order of :data:`VERDICTS`; without zeros."""
    counter = Counter(entry.verdict for entry in entries)
    return {verdict: counter[verdict] for verdict in VERDICTS if counter[verdict]}


def plural(count: int, noun: str) -> str:
    """``"1 rule"``, ``"2 rules"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def headline(counts: Mapping[str, int]) -> str:
    """One sentence on verdict counts, the bad news first, e.g. ``"2 rules broken (fail)"``."""
    bad = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in BAD and counts.get(verdict)]
    passed, warned = counts.get("pass", 0), counts.get("warn", 0)
    known, flaky = counts.get(KNOWN, 0), counts.get(FLAKY, 0)
    mild = [plural(known, KNOWN)] * bool(known) + [f"{flaky} {FLAKY}"] * bool(flaky)
    mild += [plural(warned, "warning")] * bool(warned)
    if bad:
        excused = [f"; {', '.join(mild[: bool(known) + bool(flaky)])}"] * bool(known or flaky)
        return "".join([f"{', '.join(bad)}; {plural(passed, 'rule')} kept", *excused])
    if not passed and not mild:
        return "Nothing was shown: no rule passed, none was broken"
    kept = f"{plural(passed, 'rule')} kept" + (", none broken" if not known else "")
    return "; ".join([kept, ", ".join(mild)]) if mild else kept
