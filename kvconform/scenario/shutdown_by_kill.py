"""A part of a scenario in a process that ends without any clean-up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

#: Seconds for the part that is killed; it is killed then at the latest.
PATIENCE = 20.0


def run_and_kill(work: Callable[[], None]) -> None:
    """Do ``work`` in a child process and kill that, whatever came of the work."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
        os.kill(os.getpid(), signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
