"""The kill matrix: every mutant must break exactly its rules, every odd or reference connector none.

    python tests/mutants/kill_matrix.py                 quick: each connector on the suites that its entry names
    python tests/mutants/kill_matrix.py --cover         as few mutants as break every rule once, each on the tests of
                                                        its rules only; odd connectors on one suite each
    python tests/mutants/kill_matrix.py --narrow        each mutant on the tests of its rules only
    python tests/mutants/kill_matrix.py --full          each connector on all suites
    python tests/mutants/kill_matrix.py --only REGEX    some connectors
    python tests/mutants/kill_matrix.py --device cuda   only what needs a GPU
    python tests/mutants/kill_matrix.py --share 1/2     the first of two shares of what is chosen otherwise
    python tests/mutants/kill_matrix.py --book FILE     write the matrix as Markdown, too
    python tests/mutants/kill_matrix.py --resume FILE   keep what each connector gave in FILE, and go on from there
    python tests/mutants/kill_matrix.py --again         try a mutant that was not caught as it should be once more

Entries stand in ``tests/mutants/*.toml``: ``[[mutant]]`` with ``connector`` ("file:Class", a file of this folder),
``breaks`` (rule ids), ``bug`` and ``suites``; ``[[odd]]`` with a file of ``tests/odd``; ``[[reference]]`` with a SPEC,
on all suites unless it names some.
``settings`` is kv_connector_extra_config, ``capabilities`` what the run declares, ``device`` where the KV caches are,
``until`` the last release on which a mutant breaks its rules.
Entries for a device that is not there are listed as not run, and count for nothing. The exit code is 1 if anything is
not as the entries say: a mutant not caught, or caught by too few or too many rules, or an innocent one accused.
With ``--again`` a mutant may be right at the second try, and what was said at the first is printed: the races of some
mutants go one way nearly always. Nobody innocent is tried again: no accusation is excused.
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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
from matrix_book import book, figures
from matrix_entries import HERE, ODD, ROOT, SUITES, Entry, Outcome, read_entries
from rich.console import Console
from rich.table import Table

from kvconform.config import RunConfig
from kvconform.rules import load_catalogue
from kvconform.verdicts import RuleResult, aggregate

#: Seconds for one scenario: a mutant that hangs is caught by this.
SCENARIO_LIMIT = 15
#: Seconds for one batch.
BATCH_LIMIT = 3600
#: More mutants than these are no accident.
MOST_TRIED_AGAIN = 3
#: Of what was said of a connector, if it should not have been.
LINES_OF_A_MESSAGE = 40
#: Connectors of one pytest process where results are kept: so many at most are lost when the run is interrupted.
BATCH_SIZE = 20


def cover(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """As few mutants as break, by their entries, every rule that any of them breaks; odd connectors on a suite each.

    An odd connector gets the one of its suites that fewest have got. References are left out: each has all suites.
    Mutants for a device that is not there stay in, to be listed: they take no other mutant's place.
    """
    elsewhere = [entry for entry in entries if entry.kind == "mutant" and not is_here(entry.device)]
    mutants = [entry for entry in entries if entry.kind == "mutant" and entry not in elsewhere]
    # Asked once: the catalogue and the installed release have to be read for it.
    expected = [(entry, entry.expected) for entry in mutants]
    lacking = {rule for _, rules in expected for rule in rules}
    chosen: list[Entry] = []
    while lacking:
        # The first of those that break most: greedy, and the same every time.
        best, rules = max(expected, key=lambda pair: len(lacking & pair[1]))
        chosen.append(best)
        lacking -= rules
    used: Counter[str] = Counter()
    for entry in entries:
        if entry.kind == "odd":
            suite = min(entry.suites, key=lambda name: (used[name], name))
            used[suite] += 1
            chosen.append(replace(entry, suites=(suite,)))
    return (*chosen, *elsewhere)


def share(entries: Sequence[Entry], which: str) -> tuple[Entry, ...]:
    """The k-th of n shares, "k/n": every n-th entry, so that all shares hold some of each chapter.

    Raises:
        click.UsageError: it is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", which)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.UsageError(f"--share is {which!r}: it has to be k/n with k from 1 to n, such as 1/2.")
    return tuple(entries[int(found[1]) - 1 :: int(found[2])])


def complaints(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """What is not as the entries say, or was not at first, and what was said of each rule in question, shortened."""
    for outcome in outcomes:
        if outcome.before is not None:
            yield from complaints([outcome.before])
            yield "  (tried again: " + ("not right either)" if outcome.complaint else "right this time)")
        if not outcome.complaint:
            continue
        entry = outcome.entry
        yield f"NOT RIGHT: {entry.kind} {entry.connector} on {', '.join(entry.suites)}: {outcome.complaint}"
        for rule in sorted(outcome.broken ^ entry.expected) if not outcome.trouble else ():
            verdict = outcome.verdicts.get(rule)
            yield f"  {rule}: {verdict.verdict.value if verdict is not None else 'no test of it was run'}"
            for message in verdict.messages if verdict is not None else ():
                lines = message.splitlines()
                left_out = len(lines) - LINES_OF_A_MESSAGE
                yield from (f"    {line}" for line in lines[:LINES_OF_A_MESSAGE])
                if left_out > 0:
                    yield f"    ({left_out} more lines)"


@cache
def is_here(device: str) -> bool:
    """Whether KV caches can be on this device here."""
    return device == "cpu" or RunConfig().resolved_device == device


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
            with writing:
                keep(kept, done)
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


def try_again(outcomes: Sequence[Outcome], attempt: Callable[[Entry], Outcome]) -> list[Outcome]:
    """The outcomes, those of the few mutants that were not caught as they should be from a second attempt."""
    doubtful = [outcome for outcome in outcomes if outcome.entry.kind == "mutant" and outcome.complaint]
    if len(doubtful) > MOST_TRIED_AGAIN:
        return list(outcomes)
    return [replace(attempt(outcome.entry), before=outcome) if outcome in doubtful else outcome for outcome in outcomes]


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


def keep(file: Path, done: Iterable[tuple[Entry, Sequence[RuleResult], str]]) -> None:
    """Append what connectors gave to a file for ``--resume``."""
    with file.open("a", encoding="utf-8") as stream:
        for entry, results, trouble in done:
            stream.write(json.dumps([_kept_name(entry), [result.to_dict() for result in results], trouble]) + "\n")


def _read_kept(file: Path) -> dict[str, tuple[list[RuleResult], str]]:
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {name: ([RuleResult.from_dict(one) for one in results], trouble) for name, results, trouble in lines}


def _run_batch(batch: Sequence[Entry], full: bool, narrow: bool) -> list[tuple[Entry, list[RuleResult], str]]:
    with tempfile.TemporaryDirectory(prefix="kvconform-matrix-") as folder:
        output, results = run_pytest(batch, Path(folder), full=full, narrow=narrow)
    return by_entry(batch, output, results)


def by_entry(
    batch: Sequence[Entry], output: str, results: Sequence[RuleResult]
) -> list[tuple[Entry, list[RuleResult], str]]:
    """What a run says of each of its connectors, and what is wrong where it says nothing."""
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
    if batch[0].faults:
        lines.append(f'faults = "{batch[0].faults}"')
    extra = [f"{json.dumps(key)} = {_toml(value)}" for key, value in batch[0].settings.items()]
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


def _toml(value: Any) -> str:
    """A setting as TOML, which writes all but tables as JSON does."""
    if not isinstance(value, Mapping):
        return json.dumps(value)
    return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"


@click.command()
@click.option("--only", default="", help="Only connectors that match this regular expression.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Only connectors whose KV caches are there.")
@click.option("--cover", "covering", is_flag=True, help="Only as many mutants as break every rule once.")
@click.option("--narrow", is_flag=True, help="Mutants on the tests of their rules only, as with --cover.")
@click.option("--full", is_flag=True, help="All suites for every connector.")
@click.option("--share", "which", default="1/1", help="Only the k-th of n shares of them: k/n.")
@click.option("--again", is_flag=True, help="Try a mutant that was not caught as it should be once more.")
@click.option("--jobs", default=2, show_default=True, help="pytest processes at a time.")
@click.option("--book", "book_file", type=click.Path(path_type=Path), help="Write the matrix to this Markdown file.")
@click.option("--resume", type=click.Path(path_type=Path), help="Keep results in this file, and use those in it.")
def main(
    only: str,
    device: str | None,
    covering: bool,
    narrow: bool,
    full: bool,
    which: str,
    again: bool,
    jobs: int,
    book_file: Path | None,
    resume: Path | None,
) -> None:
    """Run the kill matrix."""
    if full and (narrow or covering):
        raise click.UsageError("--full is all suites for every connector: without --narrow and --cover.")
    if again and book_file is not None:
        raise click.UsageError("--book tells of mutants that are caught every time: without --again.")
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    entries = tuple(entry for entry in read_entries() if re.search(only, f"{entry.kind} {entry.connector}"))
    entries = tuple(entry for entry in entries if device in (None, entry.device))
    if device is not None and not is_here(device):
        raise click.UsageError(f"there is no {device} device here: nothing can be tried.")
    entries = share(cover(entries) if covering else entries, which)
    started = time.monotonic()
    outcomes = run(entries, full=full, narrow=narrow or covering, jobs=jobs, kept=resume)
    if again:
        outcomes = try_again(outcomes, lambda entry: run([entry], full=full, narrow=narrow or covering)[0])
    table = Table("connector", "kind", "found to break", "")
    for outcome in outcomes:
        if outcome.not_run:
            table.add_row(outcome.entry.connector, outcome.entry.kind, "-", f"[yellow]not run: {outcome.not_run}")
            continue
        right = "[red]" + outcome.complaint.replace("[", r"\[") if outcome.complaint else "[green]right"
        right += "" if outcome.before is None else " when tried again"
        broken = ", ".join(sorted(outcome.broken)) or "-"
        table.add_row(outcome.entry.connector, outcome.entry.kind, broken, right)
    console.print(table)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = f"{time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time"
    console.print(f"{figures(outcomes)} ({spent})")
    # Last, where whoever reads the end of a log finds it.
    for line in complaints(outcomes):
        console.print(line, markup=False)
    if book_file is not None:
        book_file.write_text(book(outcomes, narrow=narrow or covering), encoding="utf-8")
    sys.exit(any(outcome.complaint for outcome in outcomes))


if __name__ == "__main__":
    main()
