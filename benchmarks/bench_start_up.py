"""What the plugin costs a run that has nothing to do with connectors, and how long a first look at one takes."""

from __future__ import annotations

import statistics
import time
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
STATIC = """
import sys

from kvconform.cli import main

try:
    main()
finally:
    print("heavy:", sorted({"torch", "vllm"} & set(sys.modules)))
"""
CONNECTOR = "kvconform.reference.file_store:FileStoreConnector"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    (tmp_path / "conftest.py").write_text(HEAVY)
    return tmp_path


def _arguments(*options: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *options)


def measure_with_plugin(benchmark: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn by turn with a run without the plugin, so that both meet the same machine, busy or not."""
    # Only the plugin that is measured: other installed ones cost far more, with and without it.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    bare: list[float] = []

    def run_without() -> None:
        started = time.perf_counter()
        printed = run_python(*_arguments(), cwd=project)
        bare.append(time.perf_counter() - started)
        assert "heavy: []" in printed

    printed = benchmark.pedantic(
        run_python,
        args=_arguments("-p", "kvconform.plugin"),
        kwargs={"cwd": project},
        setup=run_without,
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    assert "heavy: []" in printed
    # The first run without the plugin was before the warm-up.
    more = [own - other for own, other in zip(benchmark.stats.stats.data, bare[1:], strict=True)]
    label(
        benchmark,
        FIGURE,
        "kit",
        "plugin installed, no --kvconform",
        beside={"bare pytest": bare[1:]},
        more=statistics.median(more),
    )


def measure_static_answer(benchmark: Any, tmp_path: Path) -> None:
    """The whole process: kvconform inspect on a connector of nine modules."""
    label(benchmark, "Static answer", "kit", "kvconform inspect")
    printed = benchmark.pedantic(
        run_python, args=("-c", STATIC, "inspect", CONNECTOR), kwargs={"cwd": tmp_path}, rounds=5, warmup_rounds=1
    )
    assert "0 findings. Looked at: 1 constructor" in printed
    assert "heavy: []" in printed
