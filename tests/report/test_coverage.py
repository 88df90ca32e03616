"""``--kvconform-coverage``: what was measured is read back, and shown in every form of the report."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import coverage
import pytest
from making import TARGET, as_data, facts_of, sealed

from kvconform.coverage_child import Measuring, folder_name
from kvconform.coverage_report import (
    MISSING,
    CoverageEntry,
    CoveragePlugin,
    FileUse,
    HookUse,
    _ranges,
    coverage_lines,
    read_coverage,
)
from kvconform.report import html
from kvconform.report.building import build_document
from kvconform.report.document import Document
from kvconform.report.json_report import dumps, from_data, read
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue

if TYPE_CHECKING:
    from conftest import Project

ENTRY = CoverageEntry(
    (HookUse("start_load_kv", True, ("LOAD", "META")), HookUse("reset_cache", False, ())),
    (FileUse("mine/<b>.py", 20, 5, ((3, 4), (9, 9))), FileUse("mine/whole.py", 4, 0, ())),
)

SOURCE = """
class Connector:
    def start_load_kv(self):
        one = 1
        if one > 1:
            return None

            # a comment between lines that do not run
        return one

    def reset_cache(self):
        return True


def helper():
    return 1
"""


def measured() -> Document:
    facts = facts_of()
    (target,) = facts.targets
    known = {**vars(facts), "targets": (target.__class__(**{**vars(target), "coverage": ENTRY}),)}
    return build_document(facts.__class__(**known), load_catalogue())


def measure(folder: Path, source: Path, calls: dict[str, str]) -> None:
    """In a process of its own, as a connector's is: whoever measures this one would go on without it.

    Args:
        folder: where the data go.
        source: the connector's.
        calls: chapter -> method that runs for it.
    """
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(folder, source, calls))
    process.start()
    process.join()
    assert process.exitcode == 0


def _measure(folder: Path, source: Path, calls: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    measurement = coverage.Coverage(
        data_file=str(folder / "data"), data_suffix=True, config_file=False, include=[str(source)], messages=False
    )
    measuring = Measuring(folder, measurement, (str(source),))
    spec = importlib.util.spec_from_file_location("measured_connector", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    measurement.start()
    try:
        spec.loader.exec_module(module)
        hooks = [
            {"name": "start_load_kv", "file": str(source), "first": 3, "last": 9},
            {"name": "reset_cache", "file": str(source), "first": 11, "last": 12},
        ]
        (folder / "hooks-1.json").write_text(json.dumps({"module": str(source), "hooks": hooks}))
        for chapter, method in calls.items():
            measuring.enter(chapter)
            getattr(module.Connector(), method)()
            measuring.save()
    finally:
        measurement.stop()


def test_hooks_and_lines_that_no_rule_exercised_are_found_over_all_processes(tmp_path: Path) -> None:
    source = tmp_path / "connector.py"
    source.write_text(SOURCE)
    folder = tmp_path / folder_name(TARGET)
    measure(folder, source, {"LOAD": "start_load_kv"})
    measure(folder, source, {"META": "start_load_kv"})
    found = read_coverage(folder)
    assert found is not None
    assert found.hooks == (HookUse("start_load_kv", True, ("LOAD", "META")), HookUse("reset_cache", False, ()))
    (file,) = found.files
    assert Path(file.file).name == "connector.py"
    assert (file.statements, file.missing_statements) == (10, 3)
    assert file.missing == ((6, 6), (12, 12), (16, 16))
    assert read_coverage(folder) == found


def test_nothing_measured_is_nothing_claimed(tmp_path: Path) -> None:
    assert read_coverage(tmp_path / "none") is None


def test_lines_with_only_blanks_between_them_are_one_range() -> None:
    assert list(_ranges([3, 5, 9, 10], {1, 3, 5, 7, 9, 10})) == [(3, 5), (9, 10)]
    assert list(_ranges([], {1})) == []


def test_the_lines_tell_hooks_first_and_what_did_not_run() -> None:
    assert list(coverage_lines(ENTRY)) == [
        "1 of 2 hooks of the connector were exercised",
        "not exercised by any rule: reset_cache",
        "mine/<b>.py: 75% of 20 statements; not run: 3-4, 9",
        "mine/whole.py: 100% of 4 statements",
    ]


def test_json_and_html_have_it_and_it_reads_back(tmp_path: Path) -> None:
    document = measured()
    (tmp_path / "r.json").write_text(dumps(document))
    assert read(tmp_path / "r.json") == document
    page = html.render(document)
    assert "not exercised by any rule: reset_cache" in page
    assert "mine/&lt;b&gt;.py: 75% of 20 statements; not run: 3-4, 9" in page
    assert verify(as_data(document), load_catalogue(), frozenset()).problems == ()


@pytest.mark.parametrize("change", [{"hooks": 1}, {"files": [{"file": "x"}]}, {"extra": 1}])
def test_the_schema_knows_what_a_measurement_is(change: dict[str, Any]) -> None:
    data = as_data(measured())
    data["targets"][0]["coverage"].update(change)
    assert verify(sealed(data), load_catalogue(), frozenset()).problems
    data["targets"][0]["coverage"] = None
    assert from_data(data).targets[0].coverage is None


def test_without_coverage_py_the_option_gives_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvconform.coverage_report.importlib.util.find_spec", lambda name: None)
    with pytest.raises(pytest.UsageError) as caught:
        CoveragePlugin(SimpleNamespace())  # type: ignore[arg-type]
    assert str(caught.value) == MISSING
    assert "pip install 'kvconform[coverage]'" in MISSING


def test_a_run_in_which_nothing_was_measured_says_nothing_of_it(project: Project) -> None:
    code, output = project.run("--kvconform-coverage", FIXED="1")
    assert code == 0, output
    assert project.report().targets[0].coverage is None
    assert "Coverage of the connector" not in output
