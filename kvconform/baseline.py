"""The baseline: failures that a project knows of and lives with for now, each with a reason and a link.

A rule of ``[[known]]`` is expected to fail, one of ``[[flaky]]`` may fail or pass. Neither fails the run, and both make
its result partial. An entry that does not fit the run is an error: a baseline that nobody keeps is worse than none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
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

    def problems(
        self, verdicts: Mapping[tuple[str, str], Verdict], targets: Collection[str], known_rules: Collection[str]
    ) -> tuple[str, ...]:
        """Entries that do not fit a run, one sentence each; they fail it.

        Args:
            verdicts: (target id, rule id) -> verdict, without those of rules none of whose tests ran.
            targets: ids of the connectors of the run.
            known_rules: ids of all rules that there are.
        """
        return tuple(
            f"{self.file}: {entry}: {problem}."
            for entry in self.entries
            for problem in _problem(entry, verdicts, targets, known_rules)
        )


def _problem(
    entry: Entry,
    verdicts: Mapping[tuple[str, str], Verdict],
    targets: Collection[str],
    known_rules: Collection[str],
) -> Iterator[str]:
    if entry.target and entry.target not in targets:
        yield f"this run has no connector {entry.target}, its connectors are {', '.join(targets)}"
        return
    found = {target: verdict for (target, rule), verdict in verdicts.items() if entry.concerns(target, rule)}
    if not found:
        if entry.rule not in known_rules:
            yield f"there is no rule {entry.rule}; 'kvconform rules' lists them all"
        else:
            yield "nothing was found out about the rule, because none of its tests ran"
    elif entry.kind == "flaky" or any(verdict in EXCUSABLE for verdict in found.values()):
        return
    elif Verdict.KIT_ERROR in found.values():
        return  # fails the run by itself, and says nothing about the connector
    elif Verdict.PASS in found.values():
        yield "the rule passes now, so the entry is stale: remove it"
    else:
        words = " and ".join(sorted({verdict.value for verdict in found.values()}))
        yield f"the rule is {words} now, so nothing shows that it still fails: remove the entry, or find out why"


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
