"""The words of the catalogue: chapter, rule, evidence.

Pure data. Nothing here reads files, and nothing imports torch or vllm.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

Level = Literal["MUST", "SHOULD", "MAY"]

LEVELS: tuple[Level, ...] = ("MUST", "SHOULD", "MAY")
#: Why a rule is unchecked where it does not say so itself.
NO_TEST = "no test of the suites checks this rule yet"

#: Chapter ids in reading order: from loading the class to shutting it down.
CHAPTERS: tuple[str, ...] = (
    "SIG", "ROLE", "ORDER", "MATCH", "ALLOC", "META", "LOAD", "SAVE", "ASYNC", "FAIL", "PRE",
    "FIN", "HMA", "LAY", "TP", "STAT", "EVT", "CFG", "RST", "SHUT", "MUL", "LIVE", "CAP",
)  # fmt: skip

#: What a connector can claim to do. "base" is what every connector does.
CAPABILITIES: tuple[str, ...] = (
    "base", "sync-load", "async-load", "layerwise", "delayed-free", "async-save", "failure-report",
    "hma", "mamba", "handshake", "multi-worker", "pp", "stats", "prom", "events", "worker-meta",
    "push", "cross-layer", "pd", "producer", "spec-decode", "async-scheduling", "multi-connector",
    "persistence", "sleep",
)  # fmt: skip

#: Longest rule sentence, in characters: it has to fit on a failure's first lines.
MAX_SENTENCE = 240


class UnknownRuleError(KeyError):
    """No rule of the catalogue has this id. ``str()`` is one sentence, with the closest ids."""

    def __init__(self, rule_id: str, suggestions: tuple[str, ...]) -> None:
        super().__init__(rule_id)
        self.rule_id = rule_id
        self.suggestions = suggestions

    def __str__(self) -> str:
        # KeyError's own str() would show the repr of the key only.
        if not self.suggestions:
            return f"There is no rule {self.rule_id!r}; 'kvconform rules' lists them all."
        *others, last = self.suggestions
        names = f"{', '.join(others)} or {last}" if others else last
        return f"There is no rule {self.rule_id!r}; did you mean {names}?"


def rule_section(rule_id: str) -> str:
    """Where the rule book has a rule, from the top of the kit's repository: "docs/rules/match.md#match-05"."""
    rule_id = rule_id.lower()
    return f"docs/rules/{rule_id.rpartition('-')[0]}.md#{rule_id}"


def release_key(release: str) -> tuple[int, int, int]:
    """Key that orders vLLM releases, ignoring dev, rc, post and local parts.

    A build of a release's branch ("0.33.0rc1", "0.32.1.dev3+gabc") follows the contract of the release it leads to.

    Raises:
        ValueError: not a version number.
    """
    try:
        numbers = Version(release).release
    except InvalidVersion as error:
        raise ValueError(f"{release!r} is not a vLLM release number such as '0.32.0'") from error
    major, minor, patch = (*numbers, 0, 0)[:3]
    return major, minor, patch


@dataclass(frozen=True)
class Evidence:
    """Where a rule comes from: a symbol of one file of one vLLM release."""

    release: str
    file: str
    symbol: str
    note: str = ""

    def __str__(self) -> str:
        where = f"vLLM {self.release}, {self.file}: {self.symbol}"
        return f"{where} ({self.note})" if self.note else where


@dataclass(frozen=True)
class Rule:
    """One rule that a connector can keep or break."""

    id: str
    level: Level
    sentence: str
    consequence: str
    since: str
    capability: str
    fix: str
    evidence: tuple[Evidence, ...]
    until: str | None = None
    related: tuple[str, ...] = ()
    notes: str = ""
    #: Why no suite checks the rule yet; None when one does.
    unchecked: str | None = None

    @property
    def chapter(self) -> str:
        """Id of the chapter, e.g. "MATCH"."""
        return self.id.rpartition("-")[0]

    def applies_to(self, release: str) -> bool:
        """Whether the rule holds for a vLLM release. Both ends of since..until are included.

        Raises:
            ValueError: not a version number.
        """
        key = release_key(release)
        return release_key(self.since) <= key and (self.until is None or key <= release_key(self.until))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; keys as in the TOML file, absent options left out."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "", ())}


@dataclass(frozen=True)
class Chapter:
    """The rules about one subject."""

    id: str
    title: str
    about: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Catalogue:
    """All chapters, in the order of :data:`CHAPTERS`."""

    chapters: tuple[Chapter, ...]

    @cached_property
    def _by_id(self) -> dict[str, Rule]:
        return {rule.id: rule for rule in self.rules}

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, chapter by chapter."""
        return tuple(rule for chapter in self.chapters for rule in chapter.rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __contains__(self, rule_id: object) -> bool:
        return rule_id in self._by_id

    def rule(self, rule_id: str) -> Rule:
        """The rule with this id; letter case and a missing leading zero don't matter ("match-5").

        Raises:
            UnknownRuleError: no such rule.
        """
        chapter, dash, number = rule_id.strip().upper().rpartition("-")
        wanted = f"{chapter}{dash}{number.zfill(2)}"
        if wanted in self._by_id:
            return self._by_id[wanted]
        raise UnknownRuleError(rule_id, tuple(difflib.get_close_matches(wanted, self._by_id, n=3, cutoff=0.7)))

    def chapter(self, chapter_id: str) -> Chapter:
        """The chapter with this id, in any letter case.

        Raises:
            KeyError: no such chapter.
        """
        for chapter in self.chapters:
            if chapter.id == chapter_id.strip().upper():
                return chapter
        raise KeyError(chapter_id)

    def applicable(self, release: str) -> tuple[Rule, ...]:
        """The rules that hold for a vLLM release, e.g. "0.32.0".

        Raises:
            ValueError: not a version number.
        """
        return tuple(rule for rule in self.rules if rule.applies_to(release))

    def digest(self) -> str:
        """sha256 (hex) of the content. Independent of file formatting and key order; reports carry it."""
        content = [
            {"id": c.id, "title": c.title, "about": c.about, "rules": [r.to_dict() for r in c.rules]}
            for c in self.chapters
        ]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
