"""Mutation testing: the kit's checks and oracle are broken one thing at a time, and their unit tests must fail.

    python tests/mutation/mutate.py                        all files: minutes
    python tests/mutation/mutate.py --changed main         the files that differ from a commit
    python tests/mutation/mutate.py kvconform/checks/match.py
    python tests/mutation/mutate.py --book FILE            write the figures as Markdown, too

A mutation that no test notices survives. Each survivor gets a test that kills it, or stands in ``survivors.toml``: as
``[[equivalent]]`` with the reason why no test can notice it, or in the count of its module under ``[open]``, which may
only fall; none survives in a module without a count. The exit code is 1 if more survive than the file says, if it
names survivors that there are not, or if a mutation could not be tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import hypothesis
import pytest
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SURVIVORS = HERE / "survivors.toml"
#: What is mutated, and the tests that must notice. They take hand-made histories, so they are quick.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "kvconform/checks/*.py": ("tests/checks",),
    "kvconform/judgement.py": ("tests/checks",),
    "kvconform/kvcache/oracle.py": ("tests/kvcache",),
    "kvconform/kvcache/memory.py": ("tests/kvcache",),
    "kvconform/kvcache/provenance.py": ("tests/kvcache",),
    "kvconform/kvcache/comparison.py": ("tests/kvcache",),
    "kvconform/kvcache/head_rows.py": ("tests/kvcache",),
    "kvconform/kvcache/kept_contents.py": ("tests/kvcache",),
}
#: hypothesis need not make a failing example smaller here, nor keep it.
_PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
hypothesis.settings.register_profile("mutations", phases=_PHASES, database=None)
#: Seconds of processor time; a slower test is left out, since every survivor would pay for it.
SLOW_TEST = 3.0


@dataclass(frozen=True)
class Known:
    """What ``survivors.toml`` says."""

    equivalent: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    open: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Figures:
    """Of one module."""

    tried: int = 0
    killed: int = 0
    equivalent: int = 0
    survivors: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        numbers = (self.tried, self.killed, self.equivalent, len(self.survivors), len(self.untried))
        return tuple(map(str, numbers))


def read_known(file: Path = SURVIVORS) -> Known:
    """Read the data file. Raises KeyError for an entry without a place or a reason."""
    data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    entries = data.get("equivalent", [])
    return Known(
        {(entry["where"], entry["before"], entry["after"]): entry["reason"] for entry in entries}, data.get("open", {})
    )


def files_to_mutate(chosen: Sequence[str], changed: str | None) -> list[tuple[Path, str]]:
    """The files and their modules' names. Raises click.UsageError for a file that is none of the targets."""
    all_files = {str(file.relative_to(ROOT)) for pattern in TARGETS for file in ROOT.glob(pattern)}
    wanted = set(chosen) or all_files
    if changed is not None:
        command = ["git", "diff", "--name-only", changed, "--", "kvconform"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        wanted &= set(done.stdout.split())
    if unknown := sorted(wanted - all_files):
        raise click.UsageError(f"not among the files to mutate ({', '.join(TARGETS)}): {', '.join(unknown)}")
    return [(ROOT / name, name.removesuffix(".py").replace("/", ".")) for name in sorted(wanted)]


def run(files: Sequence[tuple[Path, str]], jobs: int) -> dict[str, list[tuple[tuple[str, str, str], int, str]]]:
    """Key, line and result of every mutation, by module. Raises click.ClickException if the tests fail as they are."""
    from trial import Trial, lines_of

    names = {str(file.relative_to(ROOT)) for file, _ in files}
    tests = {test for pattern, of in TARGETS.items() for test in of if any(map(_matcher(pattern), names))}
    with tempfile.TemporaryDirectory(prefix="kvconform-mutate-") as folder:
        output = Path(folder) / "results"
        # pytest rewrites the asserts of plugins, too, of which the kit is one: such code can't be exchanged.
        options = ["-q", "--no-header", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
        arguments = [
            *options,
            "--hypothesis-seed=0",
            "--hypothesis-profile=mutations",
            f"--rootdir={ROOT}",
            *(str(ROOT / test) for test in sorted(tests)),
        ]
        status = pytest.main(arguments, plugins=[Trial(files, jobs, SLOW_TEST, output)])
        if status != pytest.ExitCode.OK:
            raise click.ClickException("the tests do not pass without a mutation")
        found: dict[str, list[tuple[tuple[str, str, str], int, str]]] = {module: [] for _, module in files}
        for module, key, line, result in lines_of(output):
            found[module].append((key, line, result))
    return found


def _matcher(pattern: str) -> Any:
    return lambda name: Path(name).match(pattern)


def judge(
    found: Mapping[str, Sequence[tuple[tuple[str, str, str], int, str]]], known: Known
) -> tuple[dict[str, Figures], list[str]]:
    """Figures by module, and what is not as the data file says."""
    figures: dict[str, Figures] = {}
    complaints: list[str] = []
    for module, results in found.items():
        numbers = figures[module] = Figures()
        for key, line, result in results:
            told = f"{module}:{line} {key[0].removeprefix(module + '.')}: {key[1]}  ->  {key[2]}"
            numbers.tried += 1
            if result in ("killed", "endless"):
                numbers.killed += 1
                if key in known.equivalent:
                    complaints.append(f"is killed, although said to be equivalent: {told}")
            elif key in known.equivalent:
                numbers.equivalent += 1
            elif result == "untried":
                numbers.untried.append(told)
                complaints.append(f"could not be tried: {told}")
            else:
                numbers.survivors.append(f"{result}: {told}")
        allowed = known.open.get(module, 0)
        if len(numbers.survivors) != allowed:
            word = "survive" if len(numbers.survivors) > allowed else "survive only: lower the number"
            complaints.append(f"{module}: {len(numbers.survivors)} {word} (survivors.toml allows {allowed})")
        there = Counter(key for key, _, _ in results)
        gone = [key for key in known.equivalent if key[0].startswith(module + ".") and key not in there]
        complaints += [f"no such mutation any more: {' | '.join(key)}" for key in gone]
    return figures, complaints


HEADINGS = ("module", "mutations", "killed", "equivalent", "surviving", "not tried")


def total(figures: Mapping[str, Figures]) -> tuple[str, ...]:
    """The last row."""
    columns = zip(*(map(int, numbers.row()) for numbers in figures.values()), strict=True)
    return tuple(str(sum(column)) for column in columns)


def book(figures: Mapping[str, Figures]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Mutating the kit", "",
        "Written by `make mutate`. The kit's checks and its oracle are broken one thing at a time, and their unit",
        "tests have to fail. What survives stands in `tests/mutation/survivors.toml`, with the reason where no test",
        "can tell.",
        "", "| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1),
    ]  # fmt: skip
    lines += [f"| `{module}` | " + " | ".join(numbers.row()) + " |" for module, numbers in figures.items()]
    lines += ["| all | " + " | ".join(total(figures)) + " |", ""]
    return "\n".join(lines)


@click.command()
@click.argument("files", nargs=-1)
@click.option("--changed", metavar="COMMIT", help="Only files that differ from this commit.")
@click.option("--jobs", default=2, show_default=True, help="Mutations at a time.")
@click.option("--book", "book_file", type=click.Path(path_type=Path), help="Write the figures to this Markdown file.")
def main(files: tuple[str, ...], changed: str | None, jobs: int, book_file: Path | None) -> None:
    """Break the kit's checks and its oracle, and see whether their tests notice."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    chosen = files_to_mutate(files, changed)
    if not chosen:
        console.print(f"nothing to mutate differs from {changed}")
        return
    # Threads of torch do not survive a fork.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    figures, complaints = judge(run(chosen, jobs), read_known())
    table = Table(*HEADINGS)
    for module, numbers in figures.items():
        table.add_row(module, *numbers.row())
        for survivor in numbers.survivors:
            console.print(survivor, soft_wrap=True)
    table.add_row("all", *total(figures))
    console.print(table)
    for complaint in complaints:
        console.print(complaint, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s")
    if book_file is not None:
        book_file.write_text(book(figures), encoding="utf-8")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
