"""For the kill matrix: runs only the wanted suites of each connector, and writes down every result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvconform.outcomes import results_in, rules_of, target_of

_RESULTS: dict[str, list[dict[str, object]]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what the connector's entry does not name."""
    text = os.environ.get("KVCONFORM_MATRIX_WANTED", "")
    if not text:
        return
    wanted = json.loads(text)
    kept = [item for item in items if _is_wanted(item, wanted.get(target_of(item), {}))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _is_wanted(item: pytest.Item, entry: dict[str, list[str]]) -> bool:
    """Of the wanted suites, and about one of the wanted rules if rules are named."""
    rules = entry.get("rules", [])
    return item.path.name in entry.get("suites", ()) and (not rules or bool(set(rules).intersection(rules_of(item))))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A later report of a test repeats what an earlier one said."""
    results = results_in(report.user_properties)
    if results:
        _RESULTS[report.nodeid] = [result.to_dict() for result in results]


def pytest_sessionfinish() -> None:
    """Write them."""
    flat = [result for results in _RESULTS.values() for result in results]
    Path(os.environ["KVCONFORM_MATRIX_VERDICTS"]).write_text(json.dumps(flat), encoding="utf-8")
