"""Adds to the results what the machine is and how busy it was with other things."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kvconform.bench.busy import Busyness, memory_gib

_BEGUN: pytest.StashKey[tuple[float, Busyness]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_BEGUN] = os.getloadavg()[0], Busyness()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    import torch

    load, busyness = config.stash[_BEGUN]
    output_json["machine"] = {
        "load": load,
        "others": busyness.others(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "cuda": torch.cuda.is_available(),
    }
