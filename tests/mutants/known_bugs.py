"""Reported bugs of real connectors, and the mutants that plant them.

    python tests/mutants/known_bugs.py            say whether docs/known_bugs.md is as the data says
    python tests/mutants/known_bugs.py --write    write docs/known_bugs.md

The data is ``tests/known_bugs.toml``.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "known_bugs.toml"
DOC = ROOT / "docs" / "known_bugs.md"


@dataclass(frozen=True)
class Bug:
    """A bug that was reported, and either the mutants that have it or why there is none."""

    number: int
    title: str
    source: str
    rules: tuple[str, ...]
    mutants: tuple[str, ...] = ()
    uncovered: str = ""


@dataclass(frozen=True)
class KnownBugs:
    """``unused`` are the numbers that stand for no bug, ``rules`` what R1 and the others are about."""

    bugs: tuple[Bug, ...]
    rules: Mapping[str, str]
    unused: tuple[int, ...]

    @property
    def covered(self) -> tuple[Bug, ...]:
        """Bugs that some mutant has."""
        return tuple(bug for bug in self.bugs if bug.mutants)


def read(path: Path = DATA) -> KnownBugs:
    """Read the data. Raises TypeError for an unknown or a missing key of a bug."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    bugs = tuple(Bug(**{key: _frozen(value) for key, value in item.items()}) for item in data["bug"])
    return KnownBugs(bugs, data["rules"], tuple(data["unused"]))


def render(known: KnownBugs) -> str:
    """The Markdown: how many there are, then a table per rule; a bug of several rules stands in several tables."""
    covered, total = len(known.covered), len(known.bugs)
    lines = [
        "# Known bugs", "",
        "Bugs of real KV connectors, as reported in public, and the mutants that plant them. Written from",
        "`tests/known_bugs.toml` by `python tests/mutants/known_bugs.py --write`. What the suites say of each mutant",
        "is in its entry in `tests/mutants`, and tried by `tests/mutants/kill_matrix.py`. The numbers are those",
        "that the entries cite; the list is a selection, so some stand for nothing.", "",
        f"**{covered} of {total} bugs are planted by a mutant; for the other {total - covered} the reason is given.**",
        "A bug that breaks several rules stands in several tables.",
    ]  # fmt: skip
    for rule, subject in known.rules.items():
        bugs = [bug for bug in known.bugs if rule in bug.rules]
        lines += ["", f"## {rule}: {subject}", ""]
        if not bugs:
            lines.append("No bug of the list is of this kind.")
            continue
        lines += ["| bug | what happens | reported as | mutants, or why there is none |", "|---|---|---|---|"]
        for bug in bugs:
            mutants = ", ".join(f"`{mutant}`" for mutant in bug.mutants)
            lines.append(f"| {bug.number} | {bug.title} | {bug.source} | {mutants or f'none: {bug.uncovered}'} |")
    return "\n".join([*lines, ""])


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@click.command()
@click.option("--write", is_flag=True, help="Write docs/known_bugs.md.")
def main(write: bool) -> None:
    """Check or write the list of known bugs in the docs."""
    known = read()
    if write:
        DOC.write_text(render(known), encoding="utf-8")
    up_to_date = DOC.exists() and DOC.read_text(encoding="utf-8") == render(known)
    click.echo(f"{len(known.covered)} of {len(known.bugs)} known bugs are planted by a mutant.")
    if not up_to_date:
        click.echo("docs/known_bugs.md is out of date: python tests/mutants/known_bugs.py --write", err=True)
    sys.exit(not up_to_date)


if __name__ == "__main__":
    main()
