"""Breaking a connector's store from outside: whatever lies in the scenario's directory.

Files are replaced, never changed in place: a file that the connector holds open or mapped stays what it is for that
connector, as it does when an administrator cleans up or a disk is swapped. Permissions are left alone, because they
mean nothing to root.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from kvconform.scenario.program import StoreFault

# Bytes that a file may still have on a "full" disk: enough for a header, so that writes fail half-way.
ROOM_LEFT = 200


class FaultyDisk:
    """Faults of one scenario's directory. Without a directory there is nothing to break.

    Args:
        directory: what ``{dir}`` stands for in the connector's options.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._limit: tuple[int, int] | None = None
        self._aside: Path | None = None

    def damage(self, fault: StoreFault, every: int) -> int:
        """Break every n-th file, in the order of their names; how many were broken. Files can't be silent."""
        if fault == "silent":
            return 0
        chosen = self._files()[::every]
        with self._room_for_ourselves():
            for path in chosen:
                _replace(path, fault)
        return len(chosen)

    @contextlib.contextmanager
    def _room_for_ourselves(self) -> Iterator[None]:
        """A full disk is full for the connector: what breaks its files has to write all the same."""
        if self._limit is None:
            yield
            return
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limited)

    def refuse_writes(self, how: Literal["full", "no folder"]) -> int:
        """Make every write of a new file fail; how many files the connector had by then."""
        files = len(self._files())
        if how == "full" and self._limit is None:
            self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            # Python ignores SIGXFSZ: a write beyond the limit fails with EFBIG (or is short, up to the limit).
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_LEFT, self._limit[1]))
        elif how == "no folder" and self.directory is not None and self._aside is None:
            self._aside = self.directory.with_name(f"{self.directory.name}-aside")
            self.directory.rename(self._aside)
            self.directory.write_bytes(b"")
        return files

    def mend(self) -> None:
        """Undo :meth:`refuse_writes`."""
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
            self._limit = None
        if self._aside is not None and self.directory is not None:
            if self.directory.is_dir():
                # The connector has put a folder of its own there, which holds what it stored since.
                shutil.rmtree(self._aside, ignore_errors=True)
            else:
                self.directory.unlink(missing_ok=True)
                self._aside.rename(self.directory)
            self._aside = None

    def _files(self) -> list[Path]:
        """Regular files below the directory; sockets, pipes and links are no store."""
        if self.directory is None:
            return []
        found = []
        for folder, _, names in os.walk(self.directory):
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(path.lstat().st_mode):
                        found.append(path)
        return sorted(found)


def _replace(path: Path, fault: StoreFault) -> None:
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes() if fault == "truncated" else b""
        path.unlink()
        if fault in ("truncated", "emptied"):
            path.write_bytes(content[: len(content) // 2])
        elif fault == "folders":
            path.mkdir()
        elif fault == "unreadable":
            path.symlink_to(path.name)
