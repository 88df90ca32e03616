"""The process that has vLLM imported and forks connectors' processes on demand; one per pytest process."""

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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from kvconform.errors import UsageError
from kvconform.isolation.codec import to_bytes

# Importing torch and vLLM on a loaded machine.
START_LIMIT = 300.0
_SEED = "PYTHONHASHSEED"
# Seconds that a process gets to end by itself before it is killed: none, except where its lines are measured.
_GRACE = float(os.environ.get("KVCONFORM_GRACE", "0"))
_OUTPUT_KEPT = 16  # chunks of 4 KiB


class Nursery:
    """Starts processes that have vLLM imported already.

    Args:
        device: "cpu" or "cuda": the platform on which vLLM is imported.
        hash_seed: of Python's ``hash()`` in its processes; their environment is the parent's all the same, because vLLM
            derives block hashes from it.
        engine: "embedded" puts the stand-in in vLLM's place.
    """

    #: What its process runs as ``python -m``.
    module = "kvconform.isolation.child"

    def __init__(self, device: str, hash_seed: str | None = None, engine: str = "vllm") -> None:
        self._device = device
        self._engine = engine
        self._hash_seed = hash_seed
        self._other: Nursery | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._output: collections.deque[bytes] = collections.deque(maxlen=_OUTPUT_KEPT)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._preloaded = self._prepared = False
        #: Seconds that somebody has waited for it to be ready.
        self.waited = 0.0
        self._warming: threading.Thread | None = None
        self._at_work = threading.RLock()

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
            UsageError: vLLM cannot be used here.
        """
        began = time.monotonic()
        self._ready(engine="load" not in setup)
        self.waited += time.monotonic() - began
        ours, theirs = socket.socketpair()
        with theirs:
            answer = self._order({"order": "start", **setup}, [theirs.fileno()])
        return int(answer["pid"]), Connection(ours.detach())

    def _ready(self, *, engine: bool) -> None:
        with self._at_work:
            if self._process is None or self._process.poll() is not None:
                self._spawn()
            if not self._preloaded:
                self._order(
                    {
                        "order": "preload",
                        "device": self._device,
                        "engine": self._engine,
                        "sys_path": _search_path(),
                        "hash_seed": os.environ.get(_SEED),
                    }
                )
                self._preloaded = True
            if engine and not self._prepared:
                answer = self._order({"order": "prepare", "device": self._device})
                if "usage" in answer:
                    self.close()
                    raise UsageError(answer["usage"])
                self._prepared = True

    @property
    def waited_in_all(self) -> float:
        """:attr:`waited`, of the one that hashes otherwise as well."""
        return self.waited + (0.0 if self._other is None else self._other.waited)

    def otherwise_hashing(self) -> Nursery:
        """A nursery whose processes have another seed of ``hash()`` and other addresses; closed with this one."""
        if self._other is None:
            seed = os.environ.get(_SEED)
            self._other = Nursery(self._device, "271828" if seed != "271828" else "314159", self._engine)
        return self._other

    def ended(self, pid: int) -> int | None:
        """The exit code of a process, negative for a signal, None while it runs."""
        return self._order({"order": "reap", "pid": pid})["ended"]  # type: ignore[no-any-return]

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
        text = ""
        for _ in range(40):
            time.sleep(0.05)
            before, text = text, self._stacks.read_text(errors="replace") if self._stacks.exists() else ""
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

    @property
    def _stacks(self) -> Path:
        assert self._folder is not None, "nothing was started"
        return Path(self._folder.name) / "stacks.txt"

    def _spawn(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = tempfile.TemporaryDirectory(prefix="kvconform-room-", ignore_cleanup_errors=True)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(theirs.fileno()), str(self._stacks)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=_environment() if self._hash_seed is None else {**_environment(), _SEED: self._hash_seed},
            )
        self._control = ours
        assert self._process.stdout is not None
        reader = threading.Thread(
            target=_drain, args=(self._process.stdout, self._output), daemon=True, name="kvconform-output"
        )
        reader.start()
        self._preloaded = self._prepared = False

    def _order(self, message: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
        control = self._control
        assert control is not None
        socket.send_fds(control, [to_bytes(message)], descriptors or [])
        answer = b""
        while not answer.endswith(b"\n"):
            readable, _, _ = select.select([control], [], [], START_LIMIT)
            chunk = control.recv(1 << 16) if readable else b""
            if not chunk:
                raise UsageError(f"The kit's process with vLLM could not be started; it printed:\n{self.output()}")
            answer += chunk
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
