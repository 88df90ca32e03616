"""The baseline: failures that a project knows of and lives with for now, each with a reason and a link.

A rule of ``[[known]]`` is expected to fail, one of ``[[flaky]]`` may fail or pass. Neither fails the run, and both make
its result partial. An entry that does not fit the run is an error: a baseline that nobody keeps is worse than none. One
whose tests were left out of the run, or whose connector was, is told as not tried.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kvconform.errors import UsageError
from kvconform.verdicts import Verdict

Kind = Literal["known failure", "flaky"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Tables of the file.
TABLES: dict[str, Kind] = {"known": "known failure", "flaky": "flaky"}
_KEYS = ("rule", "target", "reason", "link")
MAX_BYTES = 1 << 20

#: What a connector can do wrong. A failure of the kit itself is never excused.
EXCUSABLE = frozenset({Verdict.FAIL, Verdict.WARN, Verdict.TIMEOUT, Verdict.CRASH})


@dataclass(frozen=True)
class Entry:
    """One excused rule."""

    kind: Kind
    rule: str
    #: Target id; empty for every connector of the run.
    target: str
    reason: str
    link: str

    def __str__(self) -> str:
        return f"{self.kind} {self.rule}" + (f" of {self.target}" if self.target else "")

    def concerns(self, target: str, rule: str) -> bool:
        """Whether the entry is about a rule of a connector."""
        return self.rule == rule and self.target in ("", target)

    def excuses(self, verdict: Verdict) -> bool:
        """Whether a verdict on the rule is the entry's; a flaky rule is flaky when it passes, too."""
        return verdict in EXCUSABLE or (self.kind == "flaky" and verdict is Verdict.PASS)


@dataclass(frozen=True)
class Baseline:
    """All entries of a file; without a file there are none."""

    #: As it was given.
    file: str = ""
    entries: tuple[Entry, ...] = ()

    def excuse(self, target: str, rule: str, verdict: Verdict) -> Entry | None:
        """The entry that excuses a verdict; one for this connector goes before one for all."""
        found = [entry for entry in self.entries if entry.concerns(target, rule) and entry.excuses(verdict)]
        return max(found, key=lambda entry: bool(entry.target), default=None)

    def fit(self, tried: Tried) -> Fit:
        """Which entries do not fit a run, and which the run says nothing about."""
        problems: list[str] = []
        not_tried: list[str] = []
        for entry in self.entries:
            problem = _problem(entry, tried)
            why_not = "" if problem else _not_tried(entry, tried)
            problems += [f"{self.file}: {entry}: {problem}."] if problem else []
            not_tried += [f"{self.file}: {entry}: {why_not}."] if why_not else []
        return Fit(tuple(problems), tuple(not_tried))


@dataclass(frozen=True)
class Tried:
    """What a run has tried, as far as a baseline is concerned."""

    #: (target id, rule id) -> verdict, without those of rules none of whose tests ran.
    verdicts: Mapping[tuple[str, str], Verdict]
    #: Ids of the connectors of the run.
    targets: Collection[str]
    #: Ids of all rules that there are.
    known_rules: Collection[str]
    #: Ids of the rules that some test checks, whether it ran or not.
    checked_rules: Collection[str]
    #: (target id, rule id) of rules some of whose tests did not run: deselected, not collected, stopped before.
    incomplete: Collection[tuple[str, str]] = ()
    #: Why no connector of some id can exist; None where nothing speaks against it.
    no_such_target: Callable[[str], str | None] = lambda _: None


@dataclass(frozen=True)
class Fit:
    """How a baseline fits a run; one sentence each."""

    #: They fail the run.
    problems: tuple[str, ...] = ()
    #: Entries that this run can neither confirm nor call stale.
    not_tried: tuple[str, ...] = ()


def _problem(entry: Entry, tried: Tried) -> str:
    """Why an entry does not fit; empty if it does, or if the run cannot tell."""
    if entry.rule not in tried.known_rules:
        return f"there is no rule {entry.rule}; 'kvconform rules' lists them all"
    if entry.target and entry.target not in tried.targets:
        why = tried.no_such_target(entry.target)
        return f"there is no such connector: {why.rstrip('.')}" if why else ""
    found = _found(entry, tried)
    if not found:
        if entry.rule in tried.checked_rules:
            return ""
        return "no test checks the rule, so nothing can show that it fails: remove the entry"
    if entry.kind == "flaky" or any(verdict in EXCUSABLE for verdict in found.values()):
        return ""
    if Verdict.KIT_ERROR in found.values():
        return ""  # fails the run by itself, and says nothing about the connector
    if _incomplete(entry, tried):
        return ""
    if Verdict.PASS in found.values():
        return "the rule passes now, so the entry is stale: remove it"
    words = " and ".join(sorted({verdict.value for verdict in found.values()}))
    return f"the rule is {words} now, so nothing shows that it still fails: remove the entry, or find out why"


def _not_tried(entry: Entry, tried: Tried) -> str:
    """Why the run says nothing about an entry without a problem; empty if it does."""
    if entry.target and entry.target not in tried.targets:
        return f"not tried, because this run has no connector {entry.target}"
    found = _found(entry, tried)
    if not found:
        return "not tried, because none of the rule's tests ran"
    if entry.kind == "flaky" or any(verdict in EXCUSABLE for verdict in found.values()):
        return ""
    if Verdict.KIT_ERROR not in found.values() and _incomplete(entry, tried):
        words = " and ".join(sorted({verdict.value for verdict in found.values()}))
        return f"not tried in full: the rule is {words}, but some of its tests did not run"
    return ""


def _found(entry: Entry, tried: Tried) -> dict[str, Verdict]:
    """Target id -> verdict on the rules that an entry is about."""
    return {target: verdict for (target, rule), verdict in tried.verdicts.items() if entry.concerns(target, rule)}


def _incomplete(entry: Entry, tried: Tried) -> bool:
    return any(entry.concerns(target, rule) for target, rule in tried.incomplete)


def read_baseline(path: Path, given: str) -> Baseline:
    """The baseline in a TOML file.

    Args:
        path: of the file.
        given: how messages name it.

    Raises:
        UsageError: the file cannot be read, or is no baseline.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{given}: it is larger than {MAX_BYTES // 2**20} MiB, which no baseline is.")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{given}: there is no such file; give the path of a baseline, a TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{given}: it cannot be read: {error}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{given}: it is not valid TOML: {error}.") from None
    unknown = sorted(set(data) - set(TABLES))
    if unknown:
        raise UsageError(f"{given}: unknown key '{unknown[0]}'; expected are the tables [[known]] and [[flaky]].")
    entries = tuple(
        entry for table, kind in TABLES.items() for entry in _entries(data.get(table, []), table, kind, given)
    )
    _demand_unique(entries, given)
    return Baseline(given, entries)


def _entries(tables: Any, name: str, kind: Kind, given: str) -> Iterator[Entry]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{given}: {name} is not a list of tables: write [[{name}]] above each entry.")
    for number, table in enumerate(tables, 1):
        where = f"{given}: entry {number} of [[{name}]]"
        for key, value in table.items():
            if key not in _KEYS:
                raise UsageError(f"{where} has the unknown key '{key}'; the keys are {', '.join(_KEYS)}.")
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f"{where}: {key} = {value!r}, but expected is a text that is not empty.")
        lacking = [key for key in ("rule", "reason", "link") if key not in table]
        if lacking:
            raise UsageError(f"{where} lacks the key '{lacking[0]}'.")
        texts = {key: " ".join(value.split()) for key, value in table.items()}
        yield Entry(kind, texts["rule"], texts.get("target", ""), texts["reason"], texts["link"])


def _demand_unique(entries: Iterable[Entry], given: str) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.rule, entry.target) in seen:
            of = f" of {entry.target}" if entry.target else ""
            raise UsageError(f"{given}: {entry.rule}{of} is there twice.")
        seen.add((entry.rule, entry.target))
