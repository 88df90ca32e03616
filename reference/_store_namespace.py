"""Which directories of a store an engine reads and writes, and how a reset empties them.

    <root>/<identity digest>/identity.json             what the digest stands for, for people
    <root>/<identity digest>/generation                name of the current generation; absent: "0"
    <root>/<identity digest>/generation-<name>/        blocks that all engines of this identity share
    <root>/<identity digest>/engines/<engine life>/    staged parts and private blocks of one running engine

**Reset.** vLLM resets a connector when cached KV may no longer fit the weights (weight update, sleep), without saying
which weights come next. So a reset does two things. It starts a new, empty generation for engines that start later with
the configured weights. And it moves this engine to a private directory: what it computes from now on may belong to
weights that its identity does not name, and must never be found under that identity.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path

from vllm.logger import init_logger

from ._kv_identity import KVIdentity

logger = init_logger(__name__)

_FIRST_GENERATION = "0"
# A running engine touches its directory whenever it publishes a block; one that was idle for longer loses nothing but
# private blocks, which it then misses.
_ABANDONED_AFTER_S = 7 * 24 * 3600.0


class StoreNamespace:
    """The scheduler's view of where blocks are; workers get the resulting directories with each step.

    ``blocks`` and ``staging`` are directories relative to the root. Nothing here raises OSError: a store that can't be
    reached is an empty store.
    """

    def __init__(self, root: Path, identity: KVIdentity) -> None:
        self._root = root
        self._home = root / identity.digest
        self._engine = self._home / "engines" / uuid.uuid4().hex
        self._private_count = 0
        self._retired: list[Path] = []
        self.staging = self._relative(self._engine / "staging")
        self.blocks = self._relative(self._generation_folder(self._current_generation()))
        if not identity.shareable:
            self._move_to_private()
        self._write_description(identity)
        self._remove_abandoned_engines()

    def reset(self) -> bool:
        """Make sure that no block stored so far is ever found again; False if later engines could still find some.

        Files stay until :meth:`purge`, so that loads already on their way to the workers don't fail.
        """
        self._retired.append(self._root / self.blocks)
        self._move_to_private()
        name = uuid.uuid4().hex
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            _replace_text(self._home / "generation", name)
            self._retired += [p for p in self._home.glob("generation-*") if p != self._generation_folder(name)]
        except OSError as error:
            logger.error("The KV store %s could not be reset for engines that start later: %s", self._home, error)
            return False
        return True

    def purge(self) -> None:
        """Delete the files of former resets."""
        for folder in self._retired:
            shutil.rmtree(folder, ignore_errors=True)
        self._retired.clear()

    def touch(self) -> None:
        """Show that this engine is alive."""
        with contextlib.suppress(OSError):
            os.utime(self._engine)

    def close(self) -> None:
        """Delete everything that only this engine life could use."""
        self.purge()
        shutil.rmtree(self._engine, ignore_errors=True)

    def _move_to_private(self) -> None:
        self._private_count += 1
        self.blocks = self._relative(self._engine / f"blocks-{self._private_count}")

    def _current_generation(self) -> str:
        try:
            return (self._home / "generation").read_text().strip() or _FIRST_GENERATION
        except OSError:
            return _FIRST_GENERATION

    def _generation_folder(self, name: str) -> Path:
        return self._home / f"generation-{name}"

    def _relative(self, folder: Path) -> str:
        return str(folder.relative_to(self._root))

    def _write_description(self, identity: KVIdentity) -> None:
        path = self._home / "identity.json"
        try:
            if not path.exists():
                self._home.mkdir(parents=True, exist_ok=True)
                _replace_text(path, json.dumps(identity.description, indent=2, sort_keys=True))
        except OSError as error:
            logger.warning("The KV store %s is not writable: %s", self._home, error)

    def _remove_abandoned_engines(self) -> None:
        """Clean up after engines that were killed before they could."""
        with contextlib.suppress(OSError):
            for folder in (self._home / "engines").iterdir():
                if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(folder, ignore_errors=True)


def _replace_text(path: Path, text: str) -> None:
    """Write a small file atomically. Raises OSError."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with staged.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
