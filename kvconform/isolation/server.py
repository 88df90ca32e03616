"""The nursery's own loop: orders from one pytest process, or from the several of one run, answered one after another.

The process that started the nursery orders over a socket that it inherited. Where pytest-xdist plays with several
processes, these connect to a socket in a folder that only the user can enter, so that all share one import of torch and
vLLM. Processes that were forked for somebody who is gone are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvconform.isolation.codec import to_bytes

CHUNK = 1 << 16
# Where a process answers, and what it prints to.
DESCRIPTORS = 2
SOCKET_NAME = "orders"
STACKS_SUFFIX = ".stacks"

Import = Callable[[dict[str, Any]], dict[str, Any]]
Run = Callable[[int, dict[str, Any], Path], None]


class Server:
    """Answers orders until the process that started it is gone.

    Args:
        control: connected to that process.
        listener: where other processes of the run connect, if they may.
        folder: for the socket and the stacks of processes; only the user may enter it.
        imports: what "preload" and "prepare" do; each is done once, whoever asks.
        run: what a forked process does with the descriptor to answer on, its set-up and the file for its stacks; it
            does not return.
    """

    def __init__(
        self,
        control: socket.socket,
        listener: socket.socket | None,
        folder: Path,
        imports: Mapping[str, Import],
        run: Run,
    ) -> None:
        self._control = control
        self._folder = folder
        self._imports = imports
        self._run = run
        self._imported: dict[str, dict[str, Any]] = {}
        self._environment: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        #: By connection, the processes that were forked for it and have not been seen to end.
        self._forked: dict[socket.socket, set[int]] = {control: set()}
        self._listener = listener
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer until the other end of ``control`` is closed."""
        while True:
            for key, _ in self._selector.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                if client is self._listener:
                    self._welcome()
                elif not self._answer(client):
                    if client is self._control:
                        return
                    self._farewell(client)

    def _welcome(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        self._forked[client] = set()
        self._selector.register(client, selectors.EVENT_READ)

    def _farewell(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        client.close()
        for pid in self._forked.pop(client):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _answer(self, client: socket.socket) -> bool:
        """Whether there was anybody to answer."""
        try:
            order, descriptors, _, _ = socket.recv_fds(client, CHUNK, DESCRIPTORS)
            more = order
            while more and not order.endswith(b"\n"):
                order += (more := client.recv(CHUNK))
        except ConnectionError:
            return False
        if not more:
            return False
        request = json.loads(order)
        name = request["order"]
        if name == "start":
            answer = self._start(client, request, descriptors)
        elif name == "reap":
            answer = {"ended": self._reap(client, request["pid"])}
        else:
            if name not in self._imported:
                self._environment = self._environment or request.get("environment", {})
                self._imported[name] = self._imports[name](request)
            answer = self._imported[name]
        with contextlib.suppress(ConnectionError):  # who asked may have been killed; noticed when reading next
            client.sendall(to_bytes(answer) + b"\n")
        return True

    def _start(self, client: socket.socket, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        pid = os.fork()
        if pid:
            for descriptor in descriptors:
                os.close(descriptor)
            self._forked[client].add(pid)
            return {"pid": pid, "stacks": str(self._stacks(pid))}
        try:
            self._selector.close()
            for connection in filter(None, (*self._forked, self._listener)):
                connection.close()
            answers, output = descriptors
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            _update_environment(self._environment, request["environment"])
            self._run(answers, request, self._stacks(os.getpid()))
        finally:
            os._exit(1)

    def _stacks(self, pid: int) -> Path:
        return self._folder / f"{pid}{STACKS_SUFFIX}"

    def _reap(self, client: socket.socket, pid: int) -> int | None:
        """The exit code of a process that was forked here, negative for a signal, None while it runs."""
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 0  # asked again after it was collected
        if not ended:
            return None
        self._forked[client].discard(pid)
        return os.waitstatus_to_exitcode(status)


def _update_environment(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """What has changed since vLLM was imported; what vLLM has set itself stays."""
    for name in before.keys() - now.keys():
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in now.items() if before.get(name) != value})
