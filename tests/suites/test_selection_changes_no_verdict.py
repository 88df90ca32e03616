"""A test says the same of a connector alone, among others, and in any order."""

from __future__ import annotations

from pathlib import Path

from kill_matrix import run_pytest
from matrix_entries import Entry

from kvconform.verdicts import Verdict

#: One that holds short requests only, and dies of it in the plainest scenario; one that is slow by steps, and one that
#: loads within a step. None of them depends on the speed of this machine.
CONNECTORS = tuple(
    Entry(kind, connector, suites=("test_asynchronous.py",))
    for kind, connector in (
        ("mutant", "asynchronous:ReportsWhateverFinished"),
        ("odd", "stepwise:Stepwise"),
        ("reference", "kvconform.reference.file_store:FileStoreConnector"),
    )
)
#: Asked of connectors with a capability, each with another one.
SEVERAL = ("test_id_used_again", "test_held_request")
BACKWARDS = "def pytest_collection_modifyitems(items):\n    items.reverse()\n"

Verdicts = dict[tuple[str, str], Verdict]


def _verdicts(folder: Path, tests: tuple[str, ...], *options: str) -> Verdicts:
    """(test, rule) -> verdict."""
    folder.mkdir()
    (folder / "backwards.py").write_text(BACKWARDS, encoding="utf-8")
    chosen = ("-k", " or ".join(tests), *options)
    # The engine without vLLM, because importing vLLM is what costs.
    output, results = run_pytest(
        CONNECTORS, folder, engine="embedded", options=chosen, environment={"PYTHONPATH": str(folder)}
    )
    assert results, output
    return {(result.nodeid.rpartition("::")[2], result.rule): result.verdict for result in results}


def test_alone_and_backwards_every_test_says_what_it_says_among_others(tmp_path: Path) -> None:
    among_others = _verdicts(tmp_path / "others", SEVERAL)
    assert {Verdict.PASS, Verdict.FAIL, Verdict.NOT_APPLICABLE} <= set(among_others.values())
    assert _verdicts(tmp_path / "backwards", SEVERAL, "-p", "backwards") == among_others
    alone = _verdicts(tmp_path / "alone", SEVERAL[1:])
    assert alone == {key: verdict for key, verdict in among_others.items() if key[0].startswith(SEVERAL[1:])}
