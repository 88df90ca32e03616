"""How busy the machine is with other things: figures of a busy machine are to be read with care. Linux only."""

from __future__ import annotations

import os
import time
from pathlib import Path


def machine_seconds() -> float:
    """Processor seconds that everything on this machine has taken since it was started, all cores together."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Busyness:
    """Cores that other processes take on average from now on."""

    def __init__(self) -> None:
        self._start = time.monotonic(), machine_seconds(), own_seconds()

    def others(self) -> float:
        since, machine, own = self._start
        taken = (machine_seconds() - machine) - (own_seconds() - own)
        return max(0.0, taken / (time.monotonic() - since))


def memory_gib() -> float:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
