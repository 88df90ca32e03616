"""The report as it is kept: plain data with a published schema, from which every other form is made.

Field names are the keys of the JSON form, see ``report.schema.json``. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvconform.verdicts import NOT_SET_UP, PRECEDENCE, Verdict

FORMAT = "kvconform-report"
FORMAT_VERSION = 1

#: No test of the suites checks the rule: nothing could have been shown.
UNCHECKED = "unchecked"
#: Tests check the rule, and none of them ran.
NOT_RUN = "not run"

#: Every verdict of a report, the most alarming first.
VERDICTS: tuple[str, ...] = (*(verdict.value for verdict in PRECEDENCE), NOT_RUN, UNCHECKED)
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


@dataclass(frozen=True)
class Distribution:
    """An installed distribution."""

    name: str
    version: str


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
    if bad:
        return f"{', '.join(bad)}; {plural(passed, 'rule')} kept"
    if not passed and not warned:
        return "Nothing was shown: no rule passed, none was broken"
    kept = f"{plural(passed, 'rule')} kept, none broken"
    return f"{kept}; {plural(warned, 'warning')}" if warned else kept
