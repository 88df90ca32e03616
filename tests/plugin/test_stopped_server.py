"""A server that falls silent, for vendors of stores that are one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvconform.faults import Setting, load_faults

STOPPED = "kvconform.testing.stopped_server:StoppedServer"
#: Answers every connection, in a child of the process that has started it.
SERVER = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
if os.fork():
    print(listening.getsockname()[1], flush=True)
    os.wait()
while True:
    connection, _ = listening.accept()
    connection.sendall(b"x")
    connection.close()
"""


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.3)
        try:
            return connection.recv(1) == b"x"
        except TimeoutError:
            return False


def setting(**extra: Any) -> Setting:
    return Setting(Path(), extra, tuple)


@pytest.mark.parametrize(
    "named",
    [
        lambda port: {"port": port},
        lambda port: {"lmcache.mp.Port": str(port)},
        lambda port: {"ports": [port]},
        lambda port: {"server": {"urls": ["tcp://127.0.0.1:1", f"tcp://127.0.0.1:{port}"]}},
        lambda port: {"url": f"http://localhost:{port}/v1"},
    ],
    ids=["number", "digits", "one of several", "in a list", "within a URL"],
)
def test_the_server_on_a_port_that_the_configuration_names_falls_silent_and_is_woken_up(
    server: int, named: Callable[[int], dict[str, Any]]
) -> None:
    faults = load_faults(STOPPED, Path())(setting(on=True, none=None, **named(server)))
    assert list(faults.faults) == ["silent"]
    assert answers(server)
    assert faults.damage("silent", 1) > 0
    assert not answers(server)
    assert faults.damage("silent", 3) > 0, "a second time changes nothing"
    faults.mend()
    assert answers(server)
    faults.mend()


def test_nothing_is_broken_where_no_process_of_this_machine_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        faults = load_faults(STOPPED, Path())(setting(port=port, size=1 << 20, share=0.5, name="a:b"))
        assert faults.damage("silent", 1) == 0, "this very process is no server"
        faults.mend()


def test_a_number_that_is_no_port_stops_nobody(server: int) -> None:
    faults = load_faults(STOPPED, Path())(setting(chunk_size=server, sizes=[server], name=str(server)))
    assert faults.damage("silent", 1) == 0
    assert answers(server)


def test_a_server_is_woken_up_when_the_process_that_stopped_it_is_killed(server: int) -> None:
    text = f"""
import os, signal
from pathlib import Path
from kvconform.faults import Setting
from kvconform.testing.stopped_server import StoppedServer
assert StoppedServer(Setting(Path(), {{"port": {server}}}, tuple)).damage("silent", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    until = time.monotonic() + 10
    while not answers(server):
        assert time.monotonic() < until
