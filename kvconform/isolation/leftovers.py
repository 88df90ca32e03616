"""What engines leave behind in their process after shutdown: threads, descriptors, shared memory, files, processes.

Only what grows counts: the same scenario is played several times, and something is left behind if every round leaves
one more of it. What a library keeps for the life of the process, made once, is no leak.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Rounds before the first one that counts, and rounds that count.
WARM_UP, ROUNDS = 1, 3
#: Seconds that a thread or a process may take to end after its connector's shutdown has returned.
GRACE = 2.0

_FD = Path("/proc/self/fd")
_TASKS = Path("/proc/self/task")
_SHM = Path("/dev/shm")
# Made by the kit itself, see kvconform.examiner.
_OWN_PREFIX = "kvconform-"


@dataclass(frozen=True)
class Leftover:
    """Something that every round left one more of. ``examples`` are from the last round."""

    kind: str
    per_round: float
    examples: tuple[str, ...]


@dataclass
class Made:
    """Shared memory and temporary files that were made in this process, whoever made them."""

    names: set[tuple[str, str]] = field(default_factory=set)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, what is made is noted. An audit hook stays for the life of the process."""
        from multiprocessing import shared_memory

        made = shared_memory.SharedMemory.__init__
        active = [True]

        def noted(segment: Any, name: str | None = None, create: bool = False, size: int = 0, **options: Any) -> None:
            made(segment, name, create, size, **options)
            if create:
                self.names.add(("shared memory segment", str(_SHM / segment.name.lstrip("/"))))

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if active[0] and event in ("tempfile.mkstemp", "tempfile.mkdtemp"):
                self.names.add(("temporary file", str(arguments[0])))

        sys.addaudithook(audit)
        shared_memory.SharedMemory.__init__ = noted  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            active[0] = False
            shared_memory.SharedMemory.__init__ = made  # type: ignore[method-assign]

    def left(self) -> set[tuple[str, str]]:
        """(kind, path) of what still exists; what the kit made itself is left out."""
        own = str(Path(tempfile.gettempdir()) / _OWN_PREFIX)
        return {entry for entry in self.names if not entry[1].startswith(own) and os.path.exists(entry[1])}  # noqa: PTH110


def leftovers(play: Callable[[], object], rounds: int = ROUNDS) -> tuple[Leftover, ...]:
    """Call ``play``, which runs engines and shuts them down, several times and see what grows every time."""
    made = Made()
    with made.watching():
        for _ in range(WARM_UP):
            play()
        known = _settled(made, None)
        steps: list[dict[str, list[str]]] = []
        for _ in range(rounds):
            play()
            now = _settled(made, known)
            grown = {kind: [now[kind][key] for key in _new(now, known, kind)] for kind in now}
            steps.append({kind: sorted(texts) for kind, texts in grown.items() if texts})
            known = now
    kinds = set.intersection(*(set(step) for step in steps))
    return tuple(
        Leftover(kind, sum(len(step[kind]) for step in steps) / rounds, tuple(steps[-1][kind][:5]))
        for kind in sorted(kinds)
    )


# Kind -> what identifies one -> its description.
_Snapshot = dict[str, dict[str, str]]


def _new(now: _Snapshot, before: _Snapshot, kind: str) -> list[str]:
    """What there is more of: identifiers are used again, so only as many as the number has grown by."""
    fresh = [key for key in now[kind] if key not in before.get(kind, {})]
    return fresh[: max(0, len(now[kind]) - len(before.get(kind, {})))]


def _settled(made: Made, before: _Snapshot | None) -> _Snapshot:
    """A snapshot once nothing is more than before, or once the grace is over."""
    deadline = time.monotonic() + GRACE
    gc.collect()
    while True:
        now = _snapshot(made)
        grown = before is not None and any(_new(now, before, kind) for kind in now)
        if not grown or time.monotonic() > deadline:
            return now
        time.sleep(0.05)


def _snapshot(made: Made) -> _Snapshot:
    snapshot: _Snapshot = {"thread": {}, "open file": {}, "socket": {}, "child process": {}}
    python_threads = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in sorted(_TASKS.iterdir()) if _TASKS.is_dir() else ():
        native = int(task.name)
        snapshot["thread"][task.name] = python_threads.get(native) or _text(task / "comm")
        for child in _text(task / "children").split():
            snapshot["child process"][child] = f"pid {child} ({_text(Path(f'/proc/{child}/comm'))})"
    for link in sorted(_FD.iterdir()) if _FD.is_dir() else ():
        target = _target(link)
        if target and str(_FD) not in target and not re.fullmatch(r"/proc/\d+/fd", target):
            kind = "socket" if target.startswith("socket:") else "open file"
            snapshot[kind][f"{link.name} {target}"] = target
    for kind, path in made.left():
        snapshot.setdefault(kind, {})[path] = path
    for kind in ("shared memory segment", "temporary file"):
        snapshot.setdefault(kind, {})
    return snapshot


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115
    except OSError:
        return ""
