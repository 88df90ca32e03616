"""The differential test: every connector of the kill matrix on vLLM and on the engine 'embedded', and what differs.

    python tests/embedded/differential.py                each connector on the suites that its entry names
    python tests/embedded/differential.py --sample 9     every ninth connector, on the tests of its rules only
    python tests/embedded/differential.py --only REGEX   some connectors
    python tests/embedded/differential.py --narrow       mutants on the tests of their rules only
    python tests/embedded/differential.py --kept FILE    keep what vLLM gave, for kill_matrix.py --resume FILE, or with
                                                         --narrow for kill_matrix.py --narrow --resume FILE

Both engines have to give the same verdict on each rule in each test and, for every program that the suites play, drawn
ones included, the same findings and the same history: connector calls with the essentials of their arguments, what was
scheduled, blocks, bytes. What is known to differ stands in ``differences.toml`` with the reason, and so does what the
engine 'embedded' has not got at all: its verdict is then "not applicable", in the words that stand there. The exit code
is 1 for a difference that does not stand there, and for one that stands there and is gone.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from comparing import Job, differences, play

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "mutants"))

from kill_matrix import BATCH_LIMIT, by_entry, groups_of, keep, run_pytest  # noqa: E402
from matrix_entries import Entry, read_entries  # noqa: E402

from kvconform.api import vllm_version  # noqa: E402
from kvconform.api.runtime import STANDIN_RELEASE  # noqa: E402
from kvconform.isolation.codec import load_program  # noqa: E402
from kvconform.rules import load_catalogue  # noqa: E402
from kvconform.verdicts import RuleResult, Verdict, judge  # noqa: E402

LISTED = HERE / "differences.toml"
ENGINES = ("vllm", "embedded")
#: Connectors that one pytest process tries.
BATCH = 8
#: Of a connector's programs whose histories differ, so many are played again to see in what.
LOOKED_AT = 4
#: How often, and in how many rounds at most: a connector with threads takes another way each time.
AGAIN = 2
ROUNDS = 4
_WRITING = threading.Lock()


@dataclass(frozen=True)
class Difference:
    """``rule`` is empty where a program went another way without another verdict."""

    connector: str
    rule: str
    where: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """What a listed difference names."""
        return self.connector, self.rule


@dataclass
class Compared:
    """One connector on both engines."""

    entry: Entry
    rules: set[str] = field(default_factory=set)
    verdicts: int = 0
    programs: int = 0
    #: Programs that took another way on vLLM as well when played again: transfers in threads.
    timed: int = 0
    found: list[Difference] = field(default_factory=list)

    def add(self, rule: str, where: str, text: str) -> None:
        """Note a difference."""
        self.found.append(Difference(self.entry.connector, rule, where, text))


@dataclass(frozen=True)
class Said:
    """What one engine's run says: by connector the verdict per test and rule, and what came of each program."""

    verdicts: Mapping[str, Mapping[tuple[str, str], str]]
    programs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    output: str
    results: Sequence[RuleResult] = ()


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Connectors that one pytest process can try, not too many."""
    for group in groups_of(entries):
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def ask(engine: str, batch: Sequence[Entry], narrow: bool) -> Said:
    """Run the suites on one engine."""
    with tempfile.TemporaryDirectory(prefix="kvconform-differential-") as folder:
        played = Path(folder) / "played.json"
        output, results = run_pytest(
            batch,
            Path(folder),
            narrow=narrow,
            engine=engine,
            options=("-p", "recording_plugin"),
            environment={"KVCONFORM_PLAYED": str(played), "PYTHONPATH": str(HERE)},
        )
        programs = json.loads(played.read_text(encoding="utf-8")) if played.exists() else {}
    verdicts: dict[str, dict[tuple[str, str], str]] = {}
    for result in results:
        verdicts.setdefault(result.target, {})[_test(result), result.rule] = _verdict(result)
    return Said(verdicts, programs, output, results)


def _test(result: RuleResult) -> str:
    return result.nodeid.rpartition("/")[2].replace(f"[{result.target}]", "").replace(f"{result.target}-", "")


def _verdict(result: RuleResult) -> str:
    return judge(result, load_catalogue().rule(result.rule).level).verdict.value


def compare(
    batch: Sequence[Entry], narrow: bool, kept: Path | None = None, absent: Sequence[Absent] = ()
) -> list[Compared]:
    """Both engines on connectors of one group; what vLLM gave is added to ``kept``."""
    real, own = (ask(engine, batch, narrow) for engine in ENGINES)
    if kept is not None:
        with _WRITING:
            keep(kept, by_entry(batch, real.output, real.results))
    done, doubtful = [], []
    for entry in batch:
        compared = Compared(entry)
        _compare_verdicts(compared, real, own, absent)
        programs = [said.programs.get(entry.connector, {}) for said in (real, own)]
        doubtful.append(_compare_programs(compared, programs[0], programs[1], absent))
        done.append(compared)
    _ask_again(done, (real, own), narrow)
    _look_again([(compared, key) for compared, keys in zip(done, doubtful, strict=True) for key in keys[:LOOKED_AT]])
    for compared, keys in zip(done, doubtful, strict=True):
        compared.timed = 0 if any(not found.rule for found in compared.found) else len(keys)
    return done


def _compare_verdicts(compared: Compared, real: Said, own: Said, absent: Sequence[Absent]) -> None:
    lacking = {
        (_test(result), result.rule)
        for result in own.results
        if result.target == compared.entry.connector and any(each.words in result.message for each in absent)
    }
    theirs, mine = (said.verdicts.get(compared.entry.connector, {}) for said in (real, own))
    for engine, verdicts, said in (("vllm", theirs, real), ("embedded", mine, own)):
        if not verdicts:
            compared.add("", engine, f"no verdict at all; pytest said:\n{said.output[-2000:]}")
    for test, rule in sorted({*mine, *theirs}):
        one, other = theirs.get((test, rule), "none"), mine.get((test, rule), "none")
        # A rule that the test names nowhere has no verdict where the test could not be tried.
        untried = other == "none" and any(test == name for name, _ in lacking)
        if one != other and not untried and not (other == Verdict.NOT_APPLICABLE.value and (test, rule) in lacking):
            compared.add(rule, test, f"{one} on vllm, {other} on embedded")
    for engine, verdicts in (("vllm", theirs), ("embedded", mine)):
        for (test, rule), verdict in sorted(verdicts.items()):
            if verdict == Verdict.KIT_ERROR.value:
                compared.add("", test, f"{rule}: the kit itself failed on {engine}")
    compared.rules = {rule for _, rule in theirs}
    compared.verdicts = len(theirs)


def _ask_again(done: Sequence[Compared], first: tuple[Said, Said], narrow: bool) -> None:
    """Try connectors with other verdicts once more: threads and a busy machine make situations come and go.

    What is left are verdicts that one engine gave and the other did not in either run.
    """
    suspects = [compared for compared in done if any(found.rule for found in compared.found)]
    for group in groups_of(compared.entry for compared in suspects):
        second = [ask(engine, group, narrow) for engine in ENGINES]
        for compared in suspects:
            if compared.entry in group:
                compared.found = [
                    found
                    for found in compared.found
                    if not found.rule
                    or _given(found, first[0], second[0]).isdisjoint(_given(found, first[1], second[1]))
                ]


def _given(found: Difference, *said: Said) -> set[str]:
    """What runs of one engine said of this test and rule."""
    return {each.verdicts.get(found.connector, {}).get((found.where, found.rule), "none") for each in said}


def _compare_programs(
    compared: Compared,
    real: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Mapping[str, Any]],
    absent: Sequence[Absent],
) -> list[str]:
    """Note what differs for certain; the programs whose findings or histories differ, for a closer look."""
    both = [key for key in real if key in own]
    compared.programs = len(both)
    doubtful: list[str] = []
    for key in both:
        one, other = real[key], own[key]
        if any(each.words in other["error"] for each in absent):
            continue
        if one["error"] != other["error"]:
            compared.add("", _name(key), f"{one['error'] or 'ran'} on vllm, {other['error'] or 'ran'} on embedded")
        elif one != other:
            doubtful.append(key)
    return sorted(doubtful, key=lambda key: real[key]["findings"] == own[key]["findings"])


def _look_again(doubtful: Sequence[tuple[Compared, str]]) -> None:
    """Play programs again, and note in what the engines differ; nothing if vLLM differs from itself so, too.

    A thread may take the same way twice by chance: what seems to differ is played a few times more.
    """
    open_ones = [_Doubt(compared, key) for compared, key in doubtful]
    for _ in range(ROUNDS):
        jobs = [_job(doubt.compared.entry, doubt.key) for doubt in open_ones for _ in range(AGAIN)]
        if not jobs:
            return
        try:
            theirs, mine = (play(engine, jobs, timeout=BATCH_LIMIT) for engine in ENGINES)
        except Exception as error:
            for doubt in open_ones:
                doubt.compared.add("", _name(doubt.key), f"differs, and cannot be played again: {error}")
            return
        for number, doubt in enumerate(open_ones):
            part = slice(number * AGAIN, (number + 1) * AGAIN)
            doubt.theirs += theirs[part]
            doubt.mine += mine[part]
        open_ones = [doubt for doubt in open_ones if doubt.differences()]
    for doubt in open_ones:
        for text in doubt.differences():
            doubt.compared.add("", _name(doubt.key), text)


@dataclass
class _Doubt:
    """A program whose histories differed, and what the engines gave when it was played again."""

    compared: Compared
    key: str
    theirs: list[dict[str, Any]] = field(default_factory=list)
    mine: list[dict[str, Any]] = field(default_factory=list)

    def differences(self) -> list[str]:
        """In words, of the two runs that are most alike."""
        timed = any(differences(self.theirs[0], other) for other in self.theirs[1:])
        pairs = [(one, other) for one in self.theirs for other in self.mine]
        return min((differences(one, other, timed=timed) for one, other in pairs), key=len)


def _job(entry: Entry, key: str) -> Job:
    program = load_program(json.loads(key))
    return Job(_name(key), entry.spec, program, tuple(entry.settings.items()), entry.peer_timeout, entry.faults)


def _name(key: str) -> str:
    return str(json.loads(key)["name"])


@dataclass(frozen=True)
class Listed:
    """An entry of ``differences.toml``: this connector's verdicts on these rules, or its histories (no rules)."""

    connector: str
    rules: tuple[str, ...]
    reason: str

    @property
    def keys(self) -> set[tuple[str, str]]:
        """As in :class:`Difference`."""
        return {(self.connector, rule) for rule in self.rules or ("",)}


@dataclass(frozen=True)
class Absent:
    """What the engine 'embedded' has not got; ``words`` are those of its refusal, which name the part of vLLM."""

    what: str
    words: str


def read_absent(file: Path = LISTED) -> tuple[Absent, ...]:
    """What is known to be missing."""
    entries = tomllib.loads(file.read_text(encoding="utf-8")).get("absent", [])
    return tuple(Absent(entry["what"], entry["words"]) for entry in entries)


def read_listed(file: Path = LISTED) -> tuple[Listed, ...]:
    """The differences that are known."""
    entries = tomllib.loads(file.read_text(encoding="utf-8")).get("difference", [])
    return tuple(Listed(entry["connector"], tuple(entry.get("rules", ())), entry["reason"]) for entry in entries)


def complaints(done: Sequence[Compared], listed: Sequence[Listed]) -> list[str]:
    """Differences that are not listed, and listed ones that are gone."""
    known = {key for entry in listed for key in entry.keys}
    found = {difference.key for compared in done for difference in compared.found}
    tried = {(compared.entry.connector, rule) for compared in done for rule in (*compared.rules, "")}
    new = [
        f"{difference.connector} {difference.rule} in {difference.where}: {difference.text}"
        for compared in done
        for difference in compared.found
        if difference.key not in known
    ]
    gone = sorted((known & tried) - found)
    return [*new, *(f"{connector} {rule}: listed in {LISTED.name}, but there is none" for connector, rule in gone)]


@click.command()
@click.option("--only", default="", help="Only connectors that match this regular expression.")
@click.option("--sample", default=0, help="Only every so many-th connector, on the tests of its rules.")
@click.option("--narrow", is_flag=True, help="Mutants on the tests of their rules only.")
@click.option("--kept", type=click.Path(path_type=Path), help="Keep what vLLM gave in this file.")
@click.option("--jobs", default=1, show_default=True, help="pytest processes at a time.")
def main(only: str, sample: int, narrow: bool, kept: Path | None, jobs: int) -> None:
    """Run the differential test."""
    if kept is not None and sample:
        raise click.UsageError("--kept is for all connectors: without --sample.")
    if not str(vllm_version()).startswith(STANDIN_RELEASE):
        raise click.UsageError(f"the engine 'embedded' follows vLLM {STANDIN_RELEASE}; installed is {vllm_version()}.")
    entries = [
        entry
        for entry in read_entries()
        if entry.device == "cpu" and re.search(only, f"{entry.kind} {entry.connector}")
    ]
    if sample:
        entries = [entry for entry in entries if entry.kind == "mutant"][::sample]
    absent = read_absent()
    started = time.monotonic()
    done: list[Compared] = []
    with ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(lambda batch: compare(batch, narrow or bool(sample), kept, absent), batches(entries)):
            done += results
            for compared in results:
                timed = f", {compared.timed} timed" if compared.timed else ""
                click.echo(
                    f"{compared.entry.connector}: {compared.verdicts} verdicts, {compared.programs} programs{timed}, "
                    f"{len(compared.found)} differences ({time.monotonic() - started:.0f} s)"
                )
                for difference in compared.found:
                    click.echo(f"    {difference.rule or 'program'} in {difference.where}: {difference.text[:1500]}")
    wrong = complaints(done, read_listed())
    click.echo(
        f"{len(done)} connectors, {sum(c.verdicts for c in done)} verdicts, {sum(c.programs for c in done)} programs: "
        f"{sum(len(c.found) for c in done)} differences, {len(wrong)} of them not as {LISTED.name} says"
    )
    for text in wrong:
        click.echo(text[:1500])
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
