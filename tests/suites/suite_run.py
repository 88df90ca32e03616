"""Running shipped suites against connectors, all in one pytest process, because importing vLLM is what costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kill_matrix import run
from matrix_entries import HERE, Entry

from kvconform.verdicts import RuleVerdict, Verdict


@dataclass(frozen=True)
class SuiteRun:
    """The verdicts of a run: connector name -> rule id -> verdict."""

    verdicts: Mapping[str, Mapping[str, RuleVerdict]]

    def text(self, connector: str, rule: str) -> str:
        """What the verdict's results say."""
        return "\n".join(self.verdicts[connector][rule].messages)

    def verdict(self, connector: str, rule: str) -> Verdict:
        """The verdict on one rule."""
        return self.verdicts[connector][rule].verdict


def run_suite(suite: str, connectors: Sequence[str]) -> SuiteRun:
    """Run one suite file against connectors given as "file:Class" of tests/mutants or tests/odd."""
    entries = [Entry(_kind(connector), connector, suites=(suite,)) for connector in connectors]
    outcomes = run(entries, jobs=1)
    assert not [outcome.trouble for outcome in outcomes if outcome.trouble]
    return SuiteRun({outcome.entry.connector.partition(":")[2]: outcome.verdicts for outcome in outcomes})


def _kind(connector: str) -> str:
    return "mutant" if (HERE / f"{connector.partition(':')[0]}.py").is_file() else "odd"
