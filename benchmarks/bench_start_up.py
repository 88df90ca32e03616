"""What the plugin costs a run that has nothing to do with connectors, and one that only collects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from subjects import label, run_python

FIGURE = "Start-up"
ROUNDS = 15
HEAVY = """
import sys

def pytest_unconfigure(config):
    print("heavy:", sorted({"torch", "vllm", "numpy"} & set(sys.modules)))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    (tmp_path / "conftest.py").write_text(HEAVY)
    return tmp_path


def _pytest(benchmark: Any, project: Path, *options: str) -> str:
    arguments = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *options)
    return str(benchmark.pedantic(run_python, args=arguments, kwargs={"cwd": project}, rounds=ROUNDS, warmup_rounds=1))


@pytest.fixture
def without_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the plugin that is measured: other installed ones cost far more, with and without it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.mark.usefixtures("without_other_plugins")
def measure_with_plugin(benchmark: Any, project: Path) -> None:
    label(benchmark, FIGURE, "kit", "plugin installed, no --kvconform")
    assert "heavy: []" in _pytest(benchmark, project, "-p", "kvconform.plugin")


@pytest.mark.usefixtures("without_other_plugins")
def measure_bare_pytest(benchmark: Any, project: Path) -> None:
    label(benchmark, FIGURE, "bare pytest", "the same run without the plugin")
    assert "heavy: []" in _pytest(benchmark, project)
