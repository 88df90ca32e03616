"""What the measurements share: labels, and processes that are started and watched."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """This process' own, with the checkout and this folder importable."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "kvcache"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def run_python(*arguments: str, cwd: Path) -> str:
    """Run Python to its end and return what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; a figure of a failed run would be worth nothing.
    """
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), check=True, capture_output=True, text=True).stdout


def peak_bytes() -> int:
    """The largest resident set that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def label(benchmark: Any, figure: str, role: str, what: str, **more: Any) -> None:
    """Say what a measurement is for: ``role`` is "kit" or the name of a peer; see ``figures.py``.

    ``beside`` maps the names of peers that took turns with it to the seconds of their rounds.
    """
    benchmark.group = figure
    benchmark.extra_info.update(figure=figure, role=role, what=what, **more)
