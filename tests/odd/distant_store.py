"""Connectors whose store has a server that can fail or fall silent, and the class by which a test makes it do so.

The server is simulated: blocks lie in files all the same, but who reads or writes one asks :data:`SERVERS` first.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stepwise
import torch

from kvconform.faults import Fault, Setting
from kvconform.reference._async_transfers import Load
from kvconform.reference._file_store_messages import BlockLoad, BlockSave, FileStoreMetadata
from kvconform.reference._file_store_worker import WorkerSide
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector

#: Seconds after which a read that was not answered has failed, and the same in engine steps.
TIME_OUT = 0.05
STEPS = 6


@dataclass
class Server:
    """What the server of one store does at the moment."""

    silent: bool = False
    failing: bool = False
    refusing: bool = False

    def read(self) -> None:
        """Raises OSError if there is no answer, or none that helps."""
        if self.silent:
            time.sleep(TIME_OUT)
            raise TimeoutError("the server does not answer")
        if self.failing:
            raise ConnectionError("the server is not well")


#: By the store's path.
SERVERS: defaultdict[str, Server] = defaultdict(Server)


class DistantStoreFaults:
    """What the configuration names under ``faults``."""

    faults: tuple[Fault, ...] = ("missing", "failing", "silent", "unwritable")

    def __init__(self, setting: Setting) -> None:
        self._path = Path(setting.extra_config["path"])
        kinds = (FileStoreConnector, AsyncFileStoreConnector)
        assert all(isinstance(connector, kinds) for connector in setting.connectors())

    def damage(self, fault: Fault, every: int) -> int:
        entries = sorted(path for path in self._path.rglob("*") if path.is_file())[::every]
        if fault == "missing":
            for path in entries:
                path.unlink()
        server = SERVERS[str(self._path)]
        server.silent |= fault == "silent"
        server.failing |= fault == "failing"
        server.refusing |= fault == "unwritable"
        return len(entries)

    def mend(self) -> None:
        SERVERS[str(self._path)] = Server()


class _Worker(WorkerSide):
    @property
    def server(self) -> Server:
        return SERVERS[str(self._store.root)]

    def _read(self, metadata: FileStoreMetadata, load: BlockLoad, row: torch.Tensor) -> bool:
        try:
            self.server.read()
        except OSError:
            self._load_errors.add(load.block_id)
            # An entry that can't be had is given up: else it would be promised again and again.
            self._store.remove(metadata.blocks, load.block_hash, self._rank)
            return False
        return super()._read(metadata, load, row)

    def _write(self, metadata: FileStoreMetadata, save: BlockSave, row: torch.Tensor) -> bool:
        return not self.server.refusing and super()._write(metadata, save, row)


class DistantStore(FileStoreConnector):
    """Reads of its server have a time-out, and then the block counts as failed."""

    _worker_class = _Worker


class DistantPool(stepwise.StepwisePool):
    """Loads of a silent server wait, and are given up after :data:`STEPS` steps."""

    def __init__(self, server: Callable[[], Server]) -> None:
        super().__init__(load_steps=2, save_steps=2)
        self.server = server
        self.waited: defaultdict[int, int] = defaultdict(int)

    def tick(self) -> None:
        if self.server().silent:
            for queued in self.queue:
                if isinstance(load := getattr(queued.run, "__self__", None), Load):
                    queued.steps += 1
                    self.waited[id(queued)] += 1
                    if self.waited[id(queued)] == STEPS:
                        self.give_up(queued, load)
        super().tick()

    def give_up(self, queued: stepwise.Queued, load: Load) -> None:
        """End the load with an error, without its data."""
        load.errors.update(each.block_id for each in load.job.loads)
        self.queue = [other for other in self.queue if other is not queued]
        queued.future.set_result(None)


class DistantAsyncStore(stepwise.Stepwise):
    """The same, with asynchronous loads."""

    pool_class: type[DistantPool] = DistantPool

    def _make_pool(self, threads: int) -> Any:
        path = self._kv_transfer_config.kv_connector_extra_config["path"]
        self.storage = self.pool_class(lambda: SERVERS[path])
        return self.storage
