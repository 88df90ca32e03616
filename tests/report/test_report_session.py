"""``--kvconform-report``: written at the end of every run, complete and honest, however the run ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from making import entry

from kvconform.report.building import with_times_removed
from kvconform.report.document import Document
from kvconform.report.suite_tests import checked_rules, rules_by_test
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue

if TYPE_CHECKING:
    from conftest import Project

RULES = frozenset({"LIVE-01", "SIG-01", "SIG-02", "SIG-05", "SIG-06", "SIG-07"})


def verdicts(document: Document) -> dict[str, str]:
    return {rule: entry(document, rule).verdict for rule in sorted(RULES)}


def reasons(document: Document) -> list[str]:
    return [reason.sentence for reason in document.run.partial_reasons]


def accepted(project: Project) -> bool:
    """Whether the report stands up to verification by whoever has the same suites."""
    return verify(project.data(), load_catalogue(), RULES).problems == ()


def test_a_whole_run_is_reported_the_same_with_and_without_xdist(project: Project) -> None:
    status, output = project.run("--kvconform-seed=3", "--kvconform-timeout=7.5")
    alone = project.report()
    assert status == 1, output
    assert alone.run.exit_status == 1
    assert verdicts(alone) == {
        "LIVE-01": "pass",
        "SIG-01": "pass",
        "SIG-02": "fail",
        "SIG-05": "inconclusive",
        "SIG-06": "not applicable",
        "SIG-07": "pass",
    }
    assert not alone.run.partial, reasons(alone)
    assert alone.run.tests.ran == alone.run.tests.collected == 7
    assert entry(alone, "SIG-01").witnesses == {"constructions": 6}
    assert len(entry(alone, "SIG-01").tests) == 3
    assert entry(alone, "SIG-01").duration > 0
    assert entry(alone, "SIG-02").messages == ("SIG-02 broken: password=*** is shown",)
    assert entry(alone, "META-07").verdict == "unchecked"
    assert alone.targets[0].options.seed == 3
    assert alone.targets[0].options.timeout == 7.5
    assert alone.targets[0].distribution is None
    assert "--kvconform-seed=3" in alone.run.command
    assert accepted(project)
    assert f"report: {project.path / 'report.json'}" in output

    status, output = project.run("--kvconform-seed=3", "--kvconform-timeout=7.5", "-n", "2")
    assert status == 1, output
    assert with_times_removed(project.report()) == with_times_removed(alone)


def test_a_selection_makes_the_run_partial(project: Project) -> None:
    status, _ = project.run("-k", "kept or shown", "-n", "1")
    document = project.report()
    assert status == 0
    assert reasons(document) == ["3 tests were deselected (-k 'kept or shown')"]
    assert entry(document, "SIG-02").verdict == "not run"
    assert entry(document, "SIG-02").reason == "its tests were deselected (-k 'kept or shown')"
    assert entry(document, "LIVE-01").verdict == "pass"
    assert len(entry(document, "LIVE-01").missing_tests) == 3
    assert accepted(project)


def test_naming_tests_makes_the_run_partial(project: Project) -> None:
    project.run("suites/test_some.py::test_kept[connector:MyConnector-1]")
    document = project.report()
    assert reasons(document) == [
        "4 of the 5 tests of the suites were not collected: tests were named on the command line"
    ]
    assert entry(document, "SIG-02").reason == "its tests were not collected: tests were named on the command line"
    assert accepted(project)


def test_stopping_early_and_skips_make_the_run_partial(project: Project) -> None:
    status, _ = project.run("-x")
    document = project.report()
    assert status == 1
    (reason,) = reasons(document)
    assert reason.endswith("did not run: stopping after 1 failures")
    assert entry(document, "SIG-07").verdict == "not run"
    assert accepted(project)

    project.run(DANGER="skip", FIXED="1")
    document = project.report()
    assert document.run.exit_status == 0
    assert reasons(document) == ["1 test was skipped: no disk"]
    assert entry(document, "SIG-07").verdict == "inconclusive"
    assert len(entry(document, "SIG-07").missing_tests) == 1
    assert accepted(project)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_still_writes_the_report(project: Project, workers: str) -> None:
    assert project.interrupt("-n", workers) == 2
    document = project.report()
    assert document.run.exit_status == 2
    (reason,) = reasons(document)
    assert "did not run: " in reason
    assert entry(document, "SIG-07").verdict == "not run"
    assert len(entry(document, "SIG-07").missing_tests) == 1
    assert document.run.tests.collected == 7
    assert accepted(project)


def test_an_interrupt_out_of_a_test_still_writes_the_report(project: Project) -> None:
    status, _ = project.run(DANGER="interrupt")
    assert status == 2
    assert entry(project.report(), "SIG-07").reason == "its tests did not run: Ctrl-C"
    assert accepted(project)


def test_a_killed_worker_costs_its_own_test_only(project: Project) -> None:
    status, _ = project.run("-n", "2", DANGER="exit")
    document = project.report()
    assert status == 1
    assert verdicts(document) == {
        "LIVE-01": "crash",
        "SIG-01": "pass",
        "SIG-02": "fail",
        "SIG-05": "inconclusive",
        "SIG-06": "not applicable",
        "SIG-07": "crash",
    }
    assert not document.run.partial
    assert accepted(project)


def test_the_last_worker_killed_leaves_the_rest_as_not_run(project: Project) -> None:
    project.run("-n", "1", "--max-worker-restart=0", "-k", "dangerous or kept", DANGER="exit")
    document = project.report()
    assert entry(document, "SIG-07").verdict == "crash"
    assert document.run.tests.collected == 4
    assert document.run.tests.ran + document.run.tests.not_run == 4
    assert document.run.tests.deselected == 3
    assert accepted(project)


def test_connectors_that_cannot_be_tested_are_reported(project: Project) -> None:
    status, _ = project.run("--kvconform=connector:NotAConnector", "--kvconform=connector:Nope", FIXED="1")
    document = project.report()
    assert status == document.run.exit_status == 4
    assert {one.target for one in document.unusable} == {"connector:NotAConnector", "connector:Nope"}
    assert [target.id for target in document.targets] == ["connector:MyConnector", "connector:NotAConnector"]
    bad = {one.id: one for one in document.targets[1].rules}["SIG-01"]
    assert (bad.verdict, bad.reason) == ("not run", "the connector could not be tested")
    assert document.run.partial
    assert accepted(project)


def test_a_suite_that_cannot_be_collected_is_named(project: Project) -> None:
    (project.path / "suites" / "test_broken.py").write_text("import nothing_of_the_kind\ndef test_x(): pass\n")
    project.run("--continue-on-collection-errors", FIXED="1")
    assert reasons(project.report()) == [
        "1 file could not be collected: suites/test_broken.py",
        "1 of the 6 tests of the suites were not collected: 1 file could not be collected",
    ]


def test_html_has_the_json_beside_it_and_old_files_go_first(project: Project) -> None:
    for name in ("report.json", "report.html"):
        (project.path / name).write_text("old")
    status, output = project.run("--kvconform-report=report.html", FIXED="1")
    assert status == 0, output
    assert project.report().run.exit_status == 0
    assert (project.path / "report.html").read_text().startswith("<!doctype html>")
    assert f"report: {project.path / 'report.json'} and {project.path / 'report.html'}" in output

    status, output = project.run(connector="connector:Nope")
    assert status == 4
    assert not (project.path / "report.json").exists(), "an old report must not pass for this run's"


def test_every_form_that_is_named_is_written(project: Project) -> None:
    wanted = {"kept/report.html": "<!doctype html>", "summary.md": "#", "badge.svg": "<svg", "again.json": "{"}
    status, output = project.run(*(f"--kvconform-report={name}" for name in wanted), FIXED="1")
    assert status == 0, output
    for name, start in wanted.items():
        assert (project.path / name).read_text().startswith(start)
    assert (project.path / "again.json").read_text() == (project.path / "report.json").read_text()


def test_collecting_only_writes_nothing(project: Project) -> None:
    (project.path / "report.json").write_text("old")
    project.run("--collect-only", "-q")
    assert (project.path / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("report.xml", "--kvconform-report=report.xml: expected FILE.json, FILE.html, FILE.md or FILE.svg (a badge)."),
        ("suites.json", "--kvconform-report=suites.json: this is a folder; give the path of a file in it."),
    ],
)
def test_a_file_that_cannot_be_meant_is_a_usage_error(project: Project, file: str, sentence: str) -> None:
    (project.path / "suites.json").mkdir()
    status, output = project.run(f"--kvconform-report={file}")
    assert status == 4
    assert sentence in output


def test_a_report_that_cannot_be_written_is_told(project: Project) -> None:
    (project.path / "file").write_text("")
    status, output = project.run("--kvconform-report=file/report.json", FIXED="1")
    assert status == 4
    assert "report.json cannot be written: " in output


def test_the_rules_of_the_suites_are_read_without_importing_them(project: Project) -> None:
    suites = project.path / "suites"
    assert set(rules_by_test(suites)) == {
        f"test_some.py::test_{name}" for name in ("kept", "broken", "not_shown", "not_applicable", "dangerous")
    }
    assert checked_rules(suites) == RULES


def test_markers_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "A = ('R-1',)\n"
        "B = [*A, 'R-2']\n"
        "pytestmark: list = [pytest.mark.kvconform_rules('R-0')]\n"
        "class TestX:\n"
        "    pytestmark = pytest.mark.kvconform_rules('R-3')\n"
        "    @pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.kvconform_rules('R-4'))])\n"
        "    def test_y(self, x): raise AssertionError\n"
        "@pytest.mark.kvconform_rules(*B, *(A + ('R-5',)))\n"
        "async def test_z(): pass\n"
        "def helper(): pass\n"
    )
    found = {test: set(rules) for test, rules in rules_by_test(tmp_path).items()}
    assert found == {
        "test_a.py::TestX::test_y": {"R-0", "R-3", "R-4"},
        "test_a.py::test_z": {"R-0", "R-1", "R-2", "R-5"},
    }
