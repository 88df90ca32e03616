"""A pytest plugin that writes what every test found out to the file named by KVCONFORM_TEST_VERDICTS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvconform.outcomes import results_in

_results: dict[str, list[dict[str, object]]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found = [result.to_dict() for result in results_in(report.user_properties)]
    if found:
        _results[report.nodeid] = found


def pytest_sessionfinish() -> None:
    every = [result for results in _results.values() for result in results]
    Path(os.environ["KVCONFORM_TEST_VERDICTS"]).write_text(json.dumps(every))
