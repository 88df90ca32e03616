"""Entries of the kill matrix: connectors, what must be said of them, and what was."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvconform.api import vllm_version
from kvconform.rules import load_catalogue
from kvconform.rules.model import release_key
from kvconform.verdicts import RuleVerdict, Verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ODD = HERE.parent / "odd"
SUITES = ROOT / "suites"
BROKEN = (Verdict.FAIL, Verdict.WARN, Verdict.CRASH, Verdict.TIMEOUT, Verdict.KIT_ERROR)
KINDS = ("mutant", "odd", "reference")


class EntryError(Exception):
    """An entry that makes no sense, in one sentence."""


@dataclass(frozen=True)
class Entry:
    """One connector of the matrix and what must be said of it."""

    kind: str
    connector: str
    breaks: frozenset[str] = frozenset()
    bug: str = ""
    suites: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=lambda: {"path": "{dir}"})
    capabilities: tuple[str, ...] = ()
    peer_timeout: float = 0.0
    #: A class of the connector's file that breaks its store.
    faults: str = ""
    device: str = "cpu"
    #: The last release on which it breaks its rules, if vLLM takes it from then on.
    until: str | None = None

    @property
    def expected(self) -> frozenset[str]:
        """The rules that it breaks on the installed vLLM."""
        late = self.until is not None and release_key(vllm_version() or "0") > release_key(self.until)
        return frozenset() if late else of_this_release(self.breaks)

    @property
    def spec(self) -> str:
        """What ``--kvconform`` takes."""
        if self.kind == "reference":
            return self.connector
        file, _, name = self.connector.partition(":")
        return f"{(HERE if self.kind == 'mutant' else ODD) / file}.py:{name}"

    @property
    def group(self) -> str:
        """Connectors of one group can be tried by one pytest process."""
        decisive = [self.settings, self.capabilities, self.peer_timeout, self.faults, self.device]
        return json.dumps(decisive, sort_keys=True)


@dataclass(frozen=True)
class Outcome:
    """What the suites said about one connector."""

    entry: Entry
    verdicts: Mapping[str, RuleVerdict]
    trouble: str = ""
    #: Why it was not tried at all.
    not_run: str = ""
    #: What was said of it before it was tried again.
    before: Outcome | None = None

    @property
    def broken(self) -> frozenset[str]:
        """The rules that it was found to break."""
        return frozenset(rule for rule, verdict in self.verdicts.items() if verdict.verdict in BROKEN)

    @property
    def complaint(self) -> str:
        """What is not as the entry says; empty if all is."""
        if self.trouble or self.not_run:
            return self.trouble
        expected = self.entry.expected
        missing, extra = expected - self.broken, self.broken - expected
        parts = [f"not caught by {', '.join(sorted(missing))}"] if missing else []
        parts += [f"also accused of {', '.join(sorted(extra))}"] if extra else []
        return "; ".join(parts)


def of_this_release(rules: Iterable[str]) -> frozenset[str]:
    """The rules that hold for the installed vLLM."""
    version = vllm_version() or ""
    return frozenset(rule for rule in rules if load_catalogue().rule(rule).applies_to(version))


def read_entries(folder: Path = HERE) -> tuple[Entry, ...]:
    """All entries of a folder's TOML files.

    Raises:
        EntryError: unknown keys, rules, suites or classes, or the same connector twice.
    """
    catalogue = load_catalogue()
    entries: list[Entry] = []
    for file in sorted(folder.glob("*.toml")):
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        for kind, items in data.items():
            if kind not in KINDS:
                raise EntryError(f"{file.name}: unknown table [[{kind}]]: expected {', '.join(KINDS)}")
            entries += [_entry(file.name, kind, item) for item in items]
    for entry in entries:
        unknown = sorted(rule for rule in entry.breaks if rule not in catalogue)
        lacking = sorted(suite for suite in entry.suites if not (SUITES / suite).is_file())
        if unknown or lacking:
            raise EntryError(f"{entry.connector}: there is no {', '.join([*unknown, *lacking])}")
        if (entry.kind == "mutant") != bool(entry.breaks):
            raise EntryError(f"{entry.connector}: a mutant breaks at least one rule, and only a mutant does")
    names = [(entry.spec, entry.group) for entry in entries]
    twice = sorted({name[0] for name in names if names.count(name) > 1})
    if twice:
        raise EntryError(f"two entries for {', '.join(twice)}")
    return tuple(entries)


def _entry(file: str, kind: str, item: Mapping[str, Any]) -> Entry:
    values = dict(item)
    if kind == "reference":
        values.setdefault("suites", [suite.name for suite in sorted(SUITES.glob("test_*.py"))])
    try:
        for name in ("suites", "capabilities"):
            values[name] = tuple(values.get(name, ()))
        return Entry(kind, **{**values, "breaks": frozenset(values.get("breaks", ()))})
    except TypeError as error:
        raise EntryError(f"{file}: {item.get('connector')}: {error}") from None
