"""The kill matrix as figures and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matrix_entries import SUITES, Outcome

from kvconform.report.suite_tests import rules_by_test
from kvconform.rules import load_catalogue


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
    everything = list(outcomes)
    done = [outcome for outcome in everything if not outcome.not_run]
    mutants = [outcome for outcome in done if outcome.entry.expected]
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


def book(outcomes: Sequence[Outcome], *, narrow: bool = False) -> str:
    """The matrix as Markdown: a row per connector, then the rules with the mutants that kill them.

    ``narrow`` says that each mutant was tried on the tests of its rules only.
    """
    numbers = figures(outcomes)
    lines = [
        "# Kill matrix", "",
        "Written by `make matrix-all`. Every mutant is a connector with one defect; the suites have to find exactly",
        "the rules that it breaks, and nothing against a legal connector. "
        + (_NARROW if narrow else "Each was tried on the suites of its entry."), "",
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


_NARROW = (
    "Each mutant was tried on the tests of\nthe rules that it breaks, odd connectors on the suites of their entries, "
    "references on all suites."
)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
