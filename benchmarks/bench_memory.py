"""Host memory of a KV cache under test: a process of its own for each pool, all of its blocks computed and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from subjects import label, run_python

MIB = 1 << 20


def _watched(blocks: int) -> tuple[int, int, int]:
    """Bytes of imports, of the pool, and of the largest resident set, in a new process."""
    printed = run_python("-m", "pool_process", str(blocks), cwd=Path.cwd()).split()
    imports, pool, peak = (int(number) for number in printed[-3:])
    return imports, pool, peak


@pytest.mark.parametrize("blocks", [1024, 4096])
def measure_pool(benchmark: Any, blocks: int) -> None:
    imports, pool, peak = benchmark.pedantic(_watched, args=(blocks,), rounds=1)
    label(benchmark, "Memory", f"{pool / MIB:.0f} MiB", "peak", imports=imports, pool=pool, peak=peak)
    assert peak > imports + pool
