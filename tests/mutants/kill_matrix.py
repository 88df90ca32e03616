"""The kill matrix: every mutant must break exactly its rules, every odd or reference connector none.

    python tests/mutants/kill_matrix.py                 quick: each connector on the suites that its entry names
    python tests/mutants/kill_matrix.py --cover         as few mutants as break every rule once, each on the tests of
                                                        its rules only; odd connectors on one suite each
    python tests/mutants/kill_matrix.py --full          each connector on all suites
    python tests/mutants/kill_matrix.py --only REGEX    some connectors
    python tests/mutants/kill_matrix.py --device cuda   only what needs a GPU
    python tests/mutants/kill_matrix.py --book FILE     write the matrix as Markdown, too
    python tests/mutants/kill_matrix.py --resume FILE   keep what each connector gave in FILE, and go on from there

Entries stand in ``tests/mutants/*.toml``: ``[[mutant]]`` with ``connector`` ("file:Class", a file of this folder),
``breaks`` (rule ids), ``bug`` and ``suites``; ``[[odd]]`` with a file of ``tests/odd``; ``[[reference]]`` with a SPEC,
on all suites unless it names some.
``settings`` is kv_connector_extra_config, ``capabilities`` what the run declares, ``device`` where the KV caches are.
Entries for a device that is not there are listed as not run, and count for nothing. The exit code is 1 if anything is
not as the entries say: a mutant not caught, or caught by too few or too many rules, or an innocent one accused.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from kvconform.api import vllm_version
from kvconform.config import RunConfig
from kvconform.rules import load_catalogue
from kvconform.verdicts import RuleResult, RuleVerdict, Verdict, aggregate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ODD = HERE.parent / "odd"
SUITES = ROOT / "suites"
BROKEN = (Verdict.FAIL, Verdict.WARN, Verdict.CRASH, Verdict.TIMEOUT, Verdict.KIT_ERROR)
KINDS = ("mutant", "odd", "reference")
#: Seconds for one scenario: a mutant that hangs is caught by this.
SCENARIO_LIMIT = 15
#: Seconds for one batch.
BATCH_LIMIT = 3600
#: Connectors of one pytest process where results are kept: so many at most are lost when the run is interrupted.
BATCH_SIZE = 20


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
    device: str = "cpu"

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
        return json.dumps([self.settings, self.capabilities, self.peer_timeout, self.device], sort_keys=True)


@dataclass(frozen=True)
class Outcome:
    """What the suites said about one connector."""

    entry: Entry
    verdicts: Mapping[str, RuleVerdict]
    trouble: str = ""
    #: Why it was not tried at all.
    not_run: str = ""

    @property
    def broken(self) -> frozenset[str]:
        """The rules that it was found to break."""
        return frozenset(rule for rule, verdict in self.verdicts.items() if verdict.verdict in BROKEN)

    @property
    def complaint(self) -> str:
        """What is not as the entry says; empty if all is."""
        if self.trouble or self.not_run:
            return self.trouble
        expected = of_this_release(self.entry.breaks)
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


def cover(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """As few mutants as break, by their entries, every rule that any of them breaks; odd connectors on a suite each.

    An odd connector gets the one of its suites that fewest have got. References are left out: each has all suites.
    Mutants for a device that is not there stay in, to be listed: they take no other mutant's place.
    """
    elsewhere = [entry for entry in entries if entry.kind == "mutant" and not is_here(entry.device)]
    mutants = [entry for entry in entries if entry.kind == "mutant" and entry not in elsewhere]
    lacking = {rule for entry in mutants for rule in of_this_release(entry.breaks)}
    chosen: list[Entry] = []
    while lacking:
        # The first of those that break most: greedy, and the same every time.
        best = max(mutants, key=lambda entry: len(lacking & entry.breaks))
        chosen.append(best)
        lacking -= best.breaks
    used: Counter[str] = Counter()
    for entry in entries:
        if entry.kind == "odd":
            suite = min(entry.suites, key=lambda name: (used[name], name))
            used[suite] += 1
            chosen.append(replace(entry, suites=(suite,)))
    return (*chosen, *elsewhere)


@cache
def is_here(device: str) -> bool:
    """Whether KV caches can be on this device here."""
    return device == "cpu" or RunConfig().resolved_device == device


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


def run(
    entries: Sequence[Entry], *, full: bool = False, narrow: bool = False, jobs: int = 2, kept: Path | None = None
) -> list[Outcome]:
    """Try all entries, in ``jobs`` pytest processes at a time; those of which ``kept`` tells are not tried again."""
    known = _read_kept(kept) if kept is not None else {}
    batches: list[list[Entry]] = []
    for group in groups_of(e for e in entries if is_here(e.device) and _kept_name(e) not in known):
        parts = min(jobs, len(group)) if len(group) > 3 else 1
        if kept is not None:
            parts = max(parts, -(-len(group) // BATCH_SIZE))
        batches += [group[number::parts] for number in range(parts)]
    writing = threading.Lock()

    def one(batch: Sequence[Entry]) -> list[tuple[Entry, list[RuleResult], str]]:
        done = _run_batch(batch, full, narrow)
        if kept is not None:
            with writing, kept.open("a", encoding="utf-8") as stream:
                for entry, results, trouble in done:
                    told = [result.to_dict() for result in results]
                    stream.write(json.dumps([_kept_name(entry), told, trouble]) + "\n")
        return done

    with ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(one, sorted(batches, key=len, reverse=True)):
            known |= {_kept_name(entry): (results, trouble) for entry, results, trouble in done}
    levels = {rule.id: rule.level for rule in load_catalogue()}
    return [
        _outcome(entry, *known[_kept_name(entry)], levels)
        if _kept_name(entry) in known
        else Outcome(entry, {}, not_run=f"needs {entry.device}")
        for entry in entries
    ]


def groups_of(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Those that one pytest process can try together."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    return list(groups.values())


def _outcome(entry: Entry, results: Sequence[RuleResult], trouble: str, levels: Mapping[str, str]) -> Outcome:
    return Outcome(entry, {rule: verdict for (_, rule), verdict in aggregate(results, levels).items()}, trouble)


def _kept_name(entry: Entry) -> str:
    return f"{entry.connector} {entry.group} {' '.join(entry.suites)}"


def _read_kept(file: Path) -> dict[str, tuple[list[RuleResult], str]]:
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {name: ([RuleResult.from_dict(one) for one in results], trouble) for name, results, trouble in lines}


def _run_batch(batch: Sequence[Entry], full: bool, narrow: bool) -> list[tuple[Entry, list[RuleResult], str]]:
    with tempfile.TemporaryDirectory(prefix="kvconform-matrix-") as folder:
        output, results = run_pytest(batch, Path(folder), full=full, narrow=narrow)
    tried = []
    for entry in batch:
        own = [result for result in results if result.target == _target_id(entry)]
        tried.append((entry, own, "" if own else f"no verdict at all; pytest said:\n{output[-3000:]}"))
    return tried


def _rules(entry: Entry) -> list[str]:
    """The rules whose tests are enough to catch a mutant; none (all tests) unless its suites have tests of each."""
    from kvconform.report.suite_tests import rules_by_test

    named = {
        rule
        for test, rules in rules_by_test(SUITES).items()
        for rule in rules
        if test.partition("::")[0] in entry.suites
    }
    return sorted(entry.breaks) if entry.breaks <= named else []


def _target_id(entry: Entry) -> str:
    return entry.connector


def run_pytest(
    batch: Sequence[Entry],
    folder: Path,
    *,
    full: bool = False,
    narrow: bool = False,
    engine: str = "auto",
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[str, list[RuleResult]]:
    """What pytest prints and what its tests say of the connectors of one group.

    ``options`` and ``environment`` are given to pytest besides; the environment's PYTHONPATH comes first.
    """
    settings = folder / "kvconform.toml"
    lines = [
        f"timeout = {SCENARIO_LIMIT}",
        f'device = "{batch[0].device}"',
        f"capabilities = {json.dumps(batch[0].capabilities)}",
    ]
    # No mutant is slow, many never end.
    lines.append("transfer_timeout = 3.0")
    if batch[0].peer_timeout:
        lines.append(f"peer_timeout = {batch[0].peer_timeout}")
    extra = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in batch[0].settings.items()]
    settings.write_text("\n".join([*lines, "[kv_connector_extra_config]", *extra, ""]), encoding="utf-8")
    verdicts = folder / "verdicts.json"
    wanted = {
        _target_id(entry): {"suites": sorted(entry.suites), "rules": _rules(entry) if narrow else []} for entry in batch
    }
    suites = sorted(SUITES.glob("test_*.py"))
    if not full:
        named = {suite for entry in batch for suite in entry.suites}
        suites = [suite for suite in suites if suite.name in named]
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "matrix_plugin",
        "--rootdir", str(folder), f"--kvconform-config={settings}",
        *(f"--kvconform={entry.spec}" for entry in batch), f"--kvconform-engine={engine}", *options,
        *map(str, suites),
    ]  # fmt: skip
    given = {**os.environ, **(environment or {})}
    environment = {
        **given,
        "KVCONFORM_MATRIX_VERDICTS": str(verdicts),
        "KVCONFORM_MATRIX_WANTED": "" if full else json.dumps(wanted),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), str(ODD), str(ROOT), given.get("PYTHONPATH")])),
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=BATCH_LIMIT
        )
    except subprocess.TimeoutExpired as error:
        return f"not done within {BATCH_LIMIT} s: {error.stdout!r}", []
    output = done.stdout + done.stderr
    data = json.loads(verdicts.read_text(encoding="utf-8")) if verdicts.exists() else []
    return output, [RuleResult.from_dict(entry) for entry in data]


# -- showing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What the matrix is read for."""

    mutants: int
    caught: int
    exact: int
    innocent: int
    accused: int
    rules_killed: int
    rules_checked: int
    rules_without_mutant: tuple[str, ...]
    #: Connectors for a device that is not here, and the rules that only such mutants break.
    not_run: int = 0
    rules_elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.caught} of {self.mutants} mutants caught, {self.exact} by exactly their rules; "
            f"{self.accused} of {self.innocent} legal connectors accused; "
            f"{self.rules_killed} of {self.rules_checked} checked rules are killed by a mutant"
            + (f"; not run, for want of the device: {self.not_run} connectors" if self.not_run else "")
        )


def figures(outcomes: Iterable[Outcome]) -> Figures:
    """Count."""
    from kvconform.report.suite_tests import rules_by_test

    everything = list(outcomes)
    done = [outcome for outcome in everything if not outcome.not_run]
    mutants = [outcome for outcome in done if of_this_release(outcome.entry.breaks)]
    innocent = [outcome for outcome in done if outcome.entry.kind != "mutant"]
    killed = {rule for outcome in mutants for rule in outcome.broken & outcome.entry.breaks}
    checked = {rule for rules in rules_by_test(SUITES).values() for rule in rules}
    elsewhere = {rule for outcome in everything if outcome.not_run for rule in outcome.entry.breaks} & checked - killed
    return Figures(
        mutants=len(mutants),
        caught=sum(bool(outcome.broken & outcome.entry.breaks) for outcome in mutants),
        exact=sum(not outcome.complaint for outcome in mutants),
        innocent=len(innocent),
        accused=sum(bool(outcome.complaint) for outcome in innocent),
        rules_killed=len(killed & checked),
        rules_checked=len(checked),
        rules_without_mutant=tuple(sorted(checked - killed - elsewhere)),
        not_run=len(everything) - len(done),
        rules_elsewhere=tuple(sorted(elsewhere)),
    )


def book(outcomes: Sequence[Outcome]) -> str:
    """The matrix as Markdown: a row per connector, then the rules with the mutants that kill them."""
    numbers = figures(outcomes)
    lines = [
        "# Kill matrix", "",
        "Written by `make matrix-all`. Every mutant is a connector with one defect; the suites have to find exactly",
        "the rules that it breaks, and nothing against a legal connector.", "",
        "| figure | |", "|---|---|",
        f"| mutants caught | {numbers.caught} of {numbers.mutants} ({_share(numbers.caught, numbers.mutants)}) |",
        f"| by exactly their rules | {numbers.exact} of {numbers.mutants} ({_share(numbers.exact, numbers.mutants)}) |",
        f"| legal connectors accused | {numbers.accused} of {numbers.innocent} |",
        f"| checked rules that a mutant breaks | {numbers.rules_killed} of {numbers.rules_checked} |", "",
        "| connector | kind | found to break | stems from |", "|---|---|---|---|",
    ]  # fmt: skip
    for outcome in outcomes:
        entry = outcome.entry
        found = ", ".join(sorted(outcome.broken)) or "nothing"
        if outcome.not_run:
            found = f"not run: {outcome.not_run}" + (
                f", to break {', '.join(sorted(entry.breaks))}" if entry.breaks else ""
            )
        wrong = f" **({outcome.complaint.splitlines()[0]})**" if outcome.complaint else ""
        lines.append(f"| `{entry.connector}` | {entry.kind} | {found}{wrong} | {entry.bug} |")
    lines += ["", "## Rules and the mutants that break them", "", "| rule | mutants |", "|---|---|"]
    by_rule: dict[str, list[str]] = {}
    for outcome in outcomes:
        for rule in outcome.broken & outcome.entry.breaks:
            by_rule.setdefault(rule, []).append(f"`{outcome.entry.connector.partition(':')[2]}`")
    lines += [f"| {rule.id} | {', '.join(by_rule[rule.id])} |" for rule in load_catalogue() if rule.id in by_rule]
    lines += ["", f"Checked, and killed by no mutant yet: {', '.join(numbers.rules_without_mutant) or 'none'}.", ""]
    if numbers.rules_elsewhere:
        lines += [f"Only by mutants that were not run here: {', '.join(numbers.rules_elsewhere)}.", ""]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


@click.command()
@click.option("--only", default="", help="Only connectors that match this regular expression.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Only connectors whose KV caches are there.")
@click.option("--cover", "covering", is_flag=True, help="Only as many mutants as break every rule once.")
@click.option("--full", is_flag=True, help="All suites for every connector.")
@click.option("--jobs", default=2, show_default=True, help="pytest processes at a time.")
@click.option("--book", "book_file", type=click.Path(path_type=Path), help="Write the matrix to this Markdown file.")
@click.option("--resume", type=click.Path(path_type=Path), help="Keep results in this file, and use those in it.")
@click.option("--texts", is_flag=True, help="Show what was said of connectors that are not as they should be.")
def main(
    only: str,
    device: str | None,
    covering: bool,
    full: bool,
    jobs: int,
    book_file: Path | None,
    resume: Path | None,
    texts: bool,
) -> None:
    """Run the kill matrix."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    entries = tuple(entry for entry in read_entries() if re.search(only, f"{entry.kind} {entry.connector}"))
    entries = tuple(entry for entry in entries if device in (None, entry.device))
    if device is not None and not is_here(device):
        raise click.UsageError(f"there is no {device} device here: nothing can be tried.")
    entries = cover(entries) if covering else entries
    started = time.monotonic()
    outcomes = run(entries, full=full, narrow=covering, jobs=jobs, kept=resume)
    table = Table("connector", "kind", "found to break", "")
    for outcome in outcomes:
        if outcome.not_run:
            table.add_row(outcome.entry.connector, outcome.entry.kind, "-", f"[yellow]not run: {outcome.not_run}")
            continue
        right = "[red]" + outcome.complaint.replace("[", r"\[") if outcome.complaint else "[green]right"
        broken = ", ".join(sorted(outcome.broken)) or "-"
        table.add_row(outcome.entry.connector, outcome.entry.kind, broken, right)
    console.print(table)
    for outcome in outcomes:
        if texts and outcome.complaint:
            for rule in sorted(outcome.broken ^ outcome.entry.breaks):
                messages = outcome.verdicts[rule].messages if rule in outcome.verdicts else ("(no verdict)",)
                console.print(f"--- {outcome.entry.connector} {rule}\n" + "\n".join(messages), markup=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = f"{time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time"
    console.print(f"{figures(outcomes)} ({spent})")
    if book_file is not None:
        book_file.write_text(book(outcomes), encoding="utf-8")
    sys.exit(any(outcome.complaint for outcome in outcomes))


if __name__ == "__main__":
    main()
