"""A store in a server on this machine that falls silent: what most vendors of such stores would write themselves.

``faults = "kvconform.testing.stopped_server:StoppedServer"`` in the configuration; see "Faults of your own store" in
docs/guide.md. Needs psutil, which vLLM needs as well.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import psutil

from kvconform.faults import Fault, Setting

_PORT = re.compile(r":(\d{1,5})(?:\D|$)")
#: Wakes processes up as soon as whoever has started it is gone, even if that was killed.
_WAKE = """
import contextlib, os, signal, sys
sys.stdin.read()
for pid in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGCONT)
"""


class StoppedServer:
    """Stops the processes that listen on the ports that ``kv_connector_extra_config`` names, and their children.

    A port is a number under a key with "port" in its name, or what stands behind a colon, as in
    ``"tcp://127.0.0.1:5555"``. A stopped server accepts
    connections and answers nothing, as one on a machine that hangs. It is woken up by ``mend``, and if the connector's
    process is killed meanwhile.
    """

    faults: ClassVar[tuple[Fault, ...]] = ("silent",)

    def __init__(self, setting: Setting) -> None:
        self._ports = frozenset(_ports(setting.extra_config))
        self._waker: subprocess.Popen[bytes] | None = None

    def damage(self, fault: Fault, every: int) -> int:
        """Stop the servers.

        Returns:
            How many processes listen on a port that the configuration names; 0 where there is none on this machine.
        """
        servers = self._servers()
        family = [pid for server in servers for pid in (server, *_children(server))]
        if family and self._waker is None:
            command = [sys.executable, "-c", _WAKE, *map(str, family)]
            # In a session of its own, so that it outlives whoever ends the connector's process and its group.
            self._waker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
        return len(servers)

    def mend(self) -> None:
        """Wake them up; returns when that is done."""
        waker, self._waker = self._waker, None
        if waker is not None:
            waker.communicate()

    def _servers(self) -> list[int]:
        listening = (found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN)
        pids = {found.pid for found in listening if found.laddr.port in self._ports and found.pid is not None}
        # Whoever plays the scenarios, and pytest, are no servers.
        ours = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
        return sorted(pids - ours)


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _ports(value: Any, key: str = "") -> Iterator[int]:
    """Ports of a configuration value that stands under ``key``; a size or a number of seconds is none."""
    match value:
        case bool():
            return
        case int() if 0 < value < 1 << 16 and "port" in key.lower():
            yield value
        case str():
            text = f":{value}" if value.isdigit() and "port" in key.lower() else value
            yield from map(int, _PORT.findall(text))
        case Mapping():
            for name, entry in value.items():
                yield from _ports(entry, name)
        case list() | tuple():
            for entry in value:
                yield from _ports(entry, key)
