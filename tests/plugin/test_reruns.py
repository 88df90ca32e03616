"""Tests that are run again because they failed, as pytest-rerunfailures does it: what was seen stays seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Project

# What pytest-rerunfailures comes down to, which is not installed here.
RERUNS = """
    import pytest
    from _pytest.runner import runtestprotocol

    def pytest_runtest_protocol(item, nextitem):
        for attempt in (1, 2):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            again = attempt == 1 and any(report.failed for report in reports)
            for report in reports:
                report.outcome = "rerun" if again and report.failed else report.outcome
                item.ihook.pytest_runtest_logreport(report=report)
            if not again:
                return True

    def pytest_report_teststatus(report):
        return ("rerun", "R", "RERUN") if report.outcome == "rerun" else None
    """

TESTS = """
    import pytest
    from kvconform.outcomes import ConformanceFailure, record
    pytestmark = pytest.mark.usefixtures("kvconform_target")
    seen = []

    @pytest.mark.kvconform_rules("MATCH-05")
    def test_fails_once(request):
        seen.append(request)
        if len(seen) == 1:
            raise ConformanceFailure("MATCH-05: another request's KV")
        record(request, "MATCH-05", witnesses={"hits": 2})

    @pytest.mark.kvconform_rules("MATCH-06")
    def test_passes(request):
        record(request, "MATCH-06", witnesses={"hits": 1})
    """


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_rule_that_was_broken_once_stays_broken(project: Project, workers: str) -> None:
    project.write({"conftest.py": RERUNS, "test_kit.py": TESTS})
    ended = project.run("--kvconform=connector:MyConnector", "test_kit.py", "-n", workers)
    assert ended.ret == pytest.ExitCode.TESTS_FAILED
    assert ended.parseoutcomes() == {"passed": 2, "rerun": 1}
    ended.stdout.re_match_lines([r"FAIL +MATCH-05 ", r" +MATCH-05: another request's KV", r"PASS +MATCH-06 "])
