"""Processes that end when the one that started them does."""

from __future__ import annotations

import signal
import sys


def die_with_parent() -> None:
    """Linux: end when the process that started this one ends, however it ends (prctl PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
