"""The suite on round trips with one process and with two: what pytest-xdist brings on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from subjects import ROOT, label, run_python

from kvconform.bench.busy import Busyness

SUITE = str(ROOT / "suites" / "test_transfer.py")
CONNECTOR = "--kvconform=kvconform.reference.file_store:FileStoreConnector"
PROBE_SECONDS = 2.0


@pytest.fixture(scope="module", autouse=True)
def _two_idle_cores() -> None:
    """Two processes on cores that others use say nothing about scaling."""
    busyness = Busyness()
    time.sleep(PROBE_SECONDS)
    idle = (os.cpu_count() or 1) - busyness.others()
    if idle < 1.8:
        pytest.skip(f"scaling needs two idle cores: {idle:.1f} are idle")


@pytest.mark.parametrize("processes", ["0", "2"])
def measure_suite(benchmark: Any, tmp_path: Path, processes: str) -> None:
    label(benchmark, "Scaling", f"-n {processes}", "suites/test_transfer.py")
    arguments = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        CONNECTOR,
        SUITE,
        "-n",
        processes,
    )
    benchmark.pedantic(run_python, args=arguments, kwargs={"cwd": tmp_path}, rounds=1)
