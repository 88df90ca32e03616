"""A rule that the installed release does not have yet is not applicable, whichever test names it."""

from __future__ import annotations

from pathlib import Path

from kill_matrix import run_pytest
from matrix_entries import Entry

from kvconform.rules import load_catalogue
from kvconform.verdicts import Verdict

ASYNC = Entry(
    "reference",
    "kvconform.reference.async_file_store:AsyncFileStoreConnector",
    suites=("test_preemption.py", "test_failures.py"),
)
#: The kit's process takes the engine's release for this one; what is played does not change.
OLDER = """
import kvconform.examiner

kvconform.examiner.release_of = lambda engine: "0.29.0"
"""


def _verdicts(folder: Path, *options: str) -> dict[str, set[Verdict]]:
    folder.mkdir()
    (folder / "older.py").write_text(OLDER, encoding="utf-8")
    output, results = run_pytest(
        [ASYNC], folder, engine="embedded", options=options, environment={"PYTHONPATH": str(folder)}
    )
    assert results, output
    verdicts: dict[str, set[Verdict]] = {}
    for result in results:
        verdicts.setdefault(result.rule, set()).add(result.verdict)
    return verdicts


def test_a_later_rule_is_not_applicable_among_others_that_are_judged(tmp_path: Path) -> None:
    rules = load_catalogue()
    later = {rule.id for rule in rules if rule.applies_to("0.32.0") and not rule.applies_to("0.29.0")}
    installed = _verdicts(tmp_path / "installed")
    older = _verdicts(tmp_path / "older", "-p", "older")
    assert older.keys() == installed.keys()
    there = later & older.keys()
    assert there
    assert all(older[rule] == {Verdict.NOT_APPLICABLE} for rule in there)
    assert {rule: found for rule, found in older.items() if rule not in later} == {
        rule: found for rule, found in installed.items() if rule not in later
    }
