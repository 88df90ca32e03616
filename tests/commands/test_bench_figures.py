"""The table of docs/performance.md: written from measurements only, and only between its two marks."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "benchmarks" / "figures.py"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_figures", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measurement(role: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"stats": {"min": seconds}, "extra_info": {"figure": "Engine step", "role": role, **more}}


def results(folder: Path, *benchmarks: dict[str, Any], others: float = 0.0) -> Path:
    machine = {"cores": 2, "memory_gib": 23.6, "cuda": False, "load": 0.4, "others": others}
    info = {"python_version": "3.11.7", "cpu": {"brand_raw": "A processor"}}
    file = folder / "results.json"
    file.write_text(json.dumps({"machine_info": info, "machine": machine, "benchmarks": benchmarks}))
    return file


@pytest.fixture
def document(tmp_path: Path, figures: ModuleType) -> Path:
    file = tmp_path / "performance.md"
    file.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")
    return file


def test_table_replaces_the_old_one_and_nothing_else(figures: ModuleType, document: Path, tmp_path: Path) -> None:
    found = results(tmp_path, measurement("kit", 0.64, per=64), measurement("bare scheduler", 0.032, per=64))
    figures.main(found, document)
    once = document.read_text()
    figures.main(found, document)
    assert document.read_text() == once
    assert once.startswith(f"before\n{figures.BEGIN}\n")
    assert once.endswith(f"{figures.END}\nafter\n")
    assert "old" not in once
    assert "| 20.0 x | kit 10 ms, bare scheduler 500 us | at most 3 x | **no** |" in once
    assert "without a CUDA device" in once
    assert "busy" not in once


def test_figure_without_its_measurements_is_said_to_be_missing(
    figures: ModuleType, document: Path, tmp_path: Path
) -> None:
    figures.main(results(tmp_path, measurement("kit", 0.64)), document)
    step = "| One engine step with the oracle, over the bare"
    rows = [line for line in document.read_text().splitlines() if line.startswith(step)]
    assert len(rows) == 1
    assert f"| {figures.NOT_MEASURED} |" in rows[0]


def test_peers_that_took_turns_with_the_kit_are_measurements_of_their_own(
    figures: ModuleType, document: Path, tmp_path: Path
) -> None:
    turns = {"figure": "Start-up", "role": "kit", "beside": {"bare pytest": [0.5, 0.4, 0.9]}, "more": 0.021}
    figures.main(results(tmp_path, {"stats": {"min": 0.42}, "extra_info": turns}), document)
    assert "| 21.0 ms | kit 420 ms, bare pytest 400 ms | at most 50 ms | yes |" in document.read_text()


def test_table_of_a_busy_machine_warns(figures: ModuleType, document: Path, tmp_path: Path) -> None:
    figures.main(results(tmp_path, others=0.8), document)
    assert "Other processes took 0.80 cores on average." in document.read_text()
    assert "The machine was busy" in document.read_text()


def test_document_without_marks_is_refused_and_left_alone(figures: ModuleType, tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("nothing here\n")
    with pytest.raises(SystemExit, match=r"other\.md has no place for the figures"):
        figures.main(results(tmp_path), document)
    assert document.read_text() == "nothing here\n"
