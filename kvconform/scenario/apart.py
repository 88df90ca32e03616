"""Parts of a scenario whose process ends without any clean-up, or falls silent for good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvconform.isolation.orphans import die_with_parent
from kvconform.scenario.program import Program

#: Seconds for a part that is killed; it is killed then at the latest.
PATIENCE = 20.0


@dataclass(frozen=True)
class Part:
    """What another process is to do of a program.

    Args:
        program: the whole of it.
        directory: where the connector was told to keep its store, if anywhere.
        work: the part, for a copy of this process; what it returns are plain data.
    """

    program: Program
    directory: Path | None
    work: Callable[[], Mapping[str, Any]]


class Silent(Protocol):
    """A process that is stopped, so that its peers wait in vain."""

    #: What its part returned; empty if that failed.
    answer: dict[str, Any]

    def kill(self) -> None:
        """Nothing is left of it after this."""


class Apart(Protocol):
    """Where such parts are played."""

    def kill(self, part: Part) -> None:
        """Play a part in a process of its own and kill that, whatever came of the part."""

    def silence(self, part: Part) -> Silent:
        """Play a part in a process of its own and stop that."""


class CopiesOfThisProcess:
    """In copies of this process as it is now, in which threads of earlier engines are missing."""

    def kill(self, part: Part) -> None:
        """As in the protocol."""
        run_and_kill(part.work)

    def silence(self, part: Part) -> Silent:
        """As in the protocol."""
        return SilentProcess(part.work)


def run_and_kill(work: Callable[[], object]) -> None:
    """Do ``work`` in a child process and kill that, whatever came of the work."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            die_with_parent()
            work()
        os.kill(os.getpid(), signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class SilentProcess:
    """A child process that does ``work``, passes on its result, and is stopped."""

    def __init__(self, work: Callable[[], Mapping[str, Any]]) -> None:
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                # A stopped process would outlive a test run that is killed.
                die_with_parent()
                os.close(reader)
                os.write(writer, json.dumps(as_json(dict(work())) or {}).encode())
                os.close(writer)
                os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read()
        self.answer: dict[str, Any] = json.loads(text) if text else {}
        # It stops itself, or has ended because its work failed.
        _, status = os.waitpid(self._pid, os.WUNTRACED)
        self._stopped = os.WIFSTOPPED(status)

    def kill(self) -> None:
        """Nothing is left of it after this."""
        if self._stopped:
            self._stopped = False
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def as_json(params: Any) -> Any:
    """Parameters as they arrive at another process; None if they can't travel (a finding of its own)."""
    try:
        return json.loads(json.dumps(params))
    except (TypeError, ValueError):
        return None
