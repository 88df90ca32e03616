"""The process that has vLLM imported and forks connectors' processes on demand; one per run."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from kvconform.errors import EngineUnusableError, UsageError
from kvconform.isolation.codec import to_bytes
from kvconform.isolation.server import CHUNK, SOCKET_NAME

# Importing torch and vLLM on a loaded machine.
START_LIMIT = 300.0
_SEED = "PYTHONHASHSEED"
# Seconds that a process gets to end by itself before it is killed: none, except where its lines are measured.
_GRACE = float(os.environ.get("KVCONFORM_GRACE", "0"))
_OUTPUT_KEPT = 16  # chunks of 4 KiB


class _LostError(Exception):
    """A nursery that another process had started has gone."""


class Nursery:
    """Starts processes that have vLLM imported already.

    Args:
        device: "cpu" or "cuda": the platform on which vLLM is imported.
        hash_seed: of Python's ``hash()`` in its processes; their environment is the parent's all the same, because vLLM
            derives block hashes from it.
        engine: "embedded" puts the stand-in in vLLM's place.
        shared: folders of nurseries that another process of the run has started (:meth:`share`): of one like this, and
            of one that hashes otherwise. If they cannot be reached, this one starts its own.
    """

    #: What its process runs as ``python -m``.
    module = "kvconform.isolation.child"

    def __init__(
        self, device: str, hash_seed: str | None = None, engine: str = "vllm", *, shared: Sequence[str] = ()
    ) -> None:
        self._device = device
        self._engine = engine
        self._hash_seed = hash_seed
        self._other: Nursery | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._output: collections.deque[bytes] = collections.deque(maxlen=_OUTPUT_KEPT)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shared = tuple(shared)
        self._stacks: dict[int, Path] = {}
        self._preloaded = self._prepared = False
        self._unusable = ""
        #: Seconds that somebody has waited for it to be ready.
        self.waited = 0.0
        self._warming: threading.Thread | None = None
        self._at_work = threading.RLock()

    def share(self) -> tuple[str, ...]:
        """Start it for other processes of the run as well, and another that hashes otherwise; what they need to know.

        Nothing is imported until the first of them asks. Empty if a socket cannot have so long a name here.
        """
        pair = (self, self.otherwise_hashing())
        try:
            for nursery in pair:
                nursery._spawn(shared=True)
        except OSError:
            self.close()
            return ()
        return tuple(nursery._folder.name for nursery in pair if nursery._folder is not None)

    def warm_up(self) -> None:
        """Import everything now, in the background; what goes wrong is said by the first who needs it."""
        # The process is started here and not in the thread: it ends with the thread that started it (PR_SET_PDEATHSIG).
        with self._at_work:
            self._spawn()

        def work() -> None:
            with contextlib.suppress(UsageError, OSError):
                self._ready(engine=True)

        self._warming = threading.Thread(target=work, daemon=True, name="kvconform-warm-up")
        self._warming.start()

    def start(self, setup: dict[str, Any]) -> tuple[int, Connection]:
        """Fork a process for a connector: its id, and the connection on which it will say that it is ready.

        A process that only loads a connector (``setup`` has the key "load") needs no engine, so it is forked before
        vLLM's scheduler and workers are imported.

        Raises:
            EngineUnusableError: vLLM cannot be used here; asked again, it is said at once.
            UsageError: the process that has vLLM imported has ended.
        """
        try:
            return self._start(setup)
        except _LostError:
            # The process that others had started is gone.
            self._shared = ()
            return self._start(setup)

    def _start(self, setup: dict[str, Any]) -> tuple[int, Connection]:
        began = time.monotonic()
        self._ready(engine="load" not in setup)
        self.waited += time.monotonic() - began
        ours, theirs = socket.socketpair()
        output, printed = os.pipe()
        self._keep_output(os.fdopen(output, "rb", buffering=0))
        with contextlib.ExitStack() as unless_it_starts:
            unless_it_starts.callback(ours.close)
            with theirs, os.fdopen(printed, "wb", buffering=0):
                order = {"order": "start", "sys_path": _search_path(), "environment": _environment(), **setup}
                answer = self._order(order, [theirs.fileno(), printed])
            unless_it_starts.pop_all()
        pid = int(answer["pid"])
        self._stacks[pid] = Path(answer["stacks"])
        return pid, Connection(ours.detach())

    def _ready(self, *, engine: bool) -> None:
        with self._at_work:
            if self._unusable:
                raise EngineUnusableError(self._unusable)
            if self._control is None or (self._process is not None and self._process.poll() is not None):
                self._spawn()
            if not self._preloaded:
                self._import(
                    {
                        "order": "preload",
                        "device": self._device,
                        "engine": self._engine,
                        "sys_path": _search_path(),
                        "environment": _environment(),
                    }
                )
                self._preloaded = True
            if engine and not self._prepared:
                self._import({"order": "prepare", "device": self._device})
                self._prepared = True

    def _import(self, order: dict[str, Any]) -> None:
        """What fails now fails the next time, and an import takes seconds."""
        try:
            answer = self._order(order)
        except UsageError as error:
            self._unusable = str(error)
        else:
            self._unusable = answer.get("usage", "")
        if self._unusable:
            self.give_up(self._unusable)
            raise EngineUnusableError(self._unusable)

    def give_up(self, why: str) -> None:
        """End: no engine can be had in this environment, and whoever asks for one from now on is told so."""
        self._unusable = why
        # Not close(), which waits for whoever is warming it up, who may be waiting for us.
        self._end()
        self._discard()

    @property
    def waited_in_all(self) -> float:
        """:attr:`waited`, of the one that hashes otherwise as well."""
        return self.waited + (0.0 if self._other is None else self._other.waited)

    def otherwise_hashing(self) -> Nursery:
        """A nursery whose processes have another seed of ``hash()`` and other addresses; closed with this one."""
        if self._other is None:
            seed = os.environ.get(_SEED)
            other_seed = "271828" if seed != "271828" else "314159"
            self._other = Nursery(self._device, other_seed, self._engine, shared=self._shared[1:])
        return self._other

    def ended(self, pid: int) -> int | None:
        """The exit code of a process, negative for a signal, None while it runs."""
        try:
            return self._order({"order": "reap", "pid": pid})["ended"]  # type: ignore[no-any-return]
        except _LostError:
            return -signal.SIGKILL  # see orphans.py: they end with the process that they were forked from

    def kill(self, pid: int) -> None:
        """End a process, whatever it is doing."""
        patience = time.monotonic() + _GRACE
        with contextlib.suppress(OSError, ValueError):
            while time.monotonic() < patience and self.ended(pid) is None:
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        for _ in range(100):
            with contextlib.suppress(OSError, ValueError):
                if self.ended(pid) is not None:
                    return
            time.sleep(0.02)

    def stacks(self, pid: int) -> str:
        """The stacks of all threads of a process; one that is stopped hard has none to show."""
        os.kill(pid, signal.SIGUSR1)
        text, file = "", self._stacks[pid]
        for _ in range(40):
            time.sleep(0.05)
            before, text = text, file.read_text(errors="replace") if file.exists() else ""
            if text and text == before:
                break
        return text

    def output(self, lines: int = 15) -> str:
        """The end of what the processes printed."""
        time.sleep(0.05)
        text = b"".join(self._output).decode(errors="replace").splitlines()
        cut = ["(earlier lines cut)"] if len(text) > lines else []
        return "\n".join(cut + text[-lines:])

    def close(self) -> None:
        """End the nursery; processes that it started end with it."""
        if self._other is not None:
            self._other.close()
        self._end()
        if self._warming is not None and self._warming is not threading.current_thread():
            self._warming.join()
            self._end()  # what it may have started in the meantime
        self._discard()

    def _discard(self) -> None:
        if self._control is not None:
            self._control.close()
        self._process = self._control = None
        if self._folder is not None:
            self._folder.cleanup()

    def _end(self) -> None:
        process, control = self._process, self._control
        if process is None:
            return
        if _GRACE and control is not None:
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                control.shutdown(socket.SHUT_WR)
                process.wait(_GRACE)
        # An interpreter with torch and vLLM in it takes seconds to end by itself, and has nothing to save.
        process.kill()
        process.wait()

    def _spawn(self, *, shared: bool = False) -> None:
        if self._control is not None:
            self._control.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._preloaded = self._prepared = False
        if self._shared and self._connect(Path(self._shared[0]) / SOCKET_NAME):
            return
        self._folder = tempfile.TemporaryDirectory(prefix="kvconform-room-", ignore_cleanup_errors=True)
        ours, theirs = socket.socketpair()
        self._control = ours
        with contextlib.ExitStack() as sockets:
            descriptors = [sockets.enter_context(theirs).fileno()]
            if shared:
                listener = sockets.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(Path(self._folder.name) / SOCKET_NAME))
                listener.listen()
                descriptors.append(listener.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, self._folder.name, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env=_environment() if self._hash_seed is None else {**_environment(), _SEED: self._hash_seed},
            )
        assert self._process.stdout is not None
        self._keep_output(self._process.stdout)

    def _connect(self, address: Path) -> bool:
        """Whether the process that others have started could be reached; else this one starts its own from now on."""
        self._control = socket.socket(socket.AF_UNIX)
        try:
            self._control.connect(str(address))
        except OSError:
            self._control.close()
            self._control, self._shared = None, ()
        return self._control is not None

    def _keep_output(self, stream: IO[bytes]) -> None:
        threading.Thread(target=_drain, args=(stream, self._output), daemon=True, name="kvconform-output").start()

    def _order(self, message: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
        control = self._control
        if control is None:
            raise _LostError
        answer = b""
        with contextlib.suppress(ConnectionError):  # told apart below
            order = to_bytes(message) + b"\n"
            sent = socket.send_fds(control, [order], descriptors or [])
            control.sendall(order[sent:])
            more = b"?"
            while more and not answer.endswith(b"\n"):
                readable, _, _ = select.select([control], [], [], START_LIMIT)
                answer += (more := control.recv(CHUNK) if readable else b"")
        if not answer.endswith(b"\n"):
            if self._process is not None:
                raise UsageError(f"The kit's process with vLLM has ended; the last that it printed:\n{self.output()}")
            self._control = None
            control.close()
            raise _LostError
        decoded: dict[str, Any] = json.loads(answer)
        return decoded


def _search_path() -> list[str]:
    return [folder or str(Path.cwd()) for folder in sys.path]


def _environment() -> dict[str, str]:
    """The parent's, and the kit itself importable: it may run from a checkout that is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), root]))}


def _drain(stream: IO[bytes], kept: collections.deque[bytes]) -> None:
    """Read all output, keep the end: a flood costs neither memory nor a full pipe."""
    with stream:
        while chunk := os.read(stream.fileno(), 4096):
            kept.append(chunk)
