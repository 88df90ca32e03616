"""Transfers that run in threads: what each of them does, and how it keeps clear of the engine.

A transfer never raises into its thread. What went wrong is part of its outcome, so that every transfer ends, is
collected, and is reported exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch
from vllm.logger import init_logger

from ._async_messages import LoadJob
from ._block_store import BlockFileError, BlockStore, block_label, read_block_file, write_block_file
from ._file_store_messages import BlockSave
from ._kv_pages import KVPages

logger = init_logger(__name__)

# Blocks moved at a time: few copies, bounded host and device memory.
BLOCKS_PER_COPY = 64


class TransferPool(Protocol):
    """Runs transfers in any order, each exactly once or never."""

    def submit(self, run: Callable[[], None], /) -> Future[None]:
        """Run a transfer some time; the future is done when it has ended or was dropped by ``shutdown``."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let running transfers end and drop the others."""


def thread_pool(threads: int) -> TransferPool:
    """A pool of threads that are started when they are needed."""
    return ThreadPoolExecutor(threads, thread_name_prefix="kv-transfer")


class StreamOrder:
    """The point in the engine's device stream behind which a transfer has to stay.

    The host is ahead of an accelerator: when ``wait_for_save`` is called the kernels that write the blocks may not have
    run, and when a load is submitted a kernel may still read the former content of its destination.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Work on a stream of one's own, behind that point; all of it is complete on leaving."""
        if self._event is None:
            yield
            return
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            stream.wait_event(self._event)
            yield
            stream.synchronize()


class BlockFiles:
    """One rank's parts of blocks, with the labels that tell them from anything else."""

    def __init__(self, store: BlockStore, pages: KVPages, rank: int, world_size: int) -> None:
        self.pages = pages
        self._store = store
        self._rank = rank
        self._world_size = world_size

    def read(self, directory: str, block_hash: bytes, row: torch.Tensor) -> bool:
        """Read a part. One that can't be read is removed, or the block would match again and fail for ever."""
        path = self._store.block_path(directory, block_hash, self._rank)
        try:
            read_block_file(path, self._label(block_hash), row.numpy().data)
        except (OSError, BlockFileError) as error:
            logger.warning("A KV block could not be loaded: %s", error)
            self._store.remove(directory, block_hash, self._rank)
            return False
        return True

    def stage(self, staging: str, save: BlockSave, row: torch.Tensor) -> bool:
        """Write a part under its staging name."""
        path = self._store.staged_path(staging, save.save_id, self._rank)
        try:
            write_block_file(path, self._label(save.block_hash), row.numpy().data)
        except OSError as error:
            logger.warning("KV block %d could not be stored: %s", save.block_id, error)
            return False
        return True

    def _label(self, block_hash: bytes) -> bytes:
        return block_label(block_hash, self._rank, self._world_size, self.pages.fingerprint)


class Load:
    """Fills the blocks of one request. ``errors`` are the ids of blocks that it could not fill."""

    def __init__(self, job: LoadJob, files: BlockFiles, order: StreamOrder) -> None:
        self.job = job
        self.errors: set[int] = set()
        self._files = files
        self._order = order
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop soon: the request has ended, and its blocks are kept only until this transfer is reported."""
        self._cancelled.set()

    def run(self) -> None:
        """Load portion by portion."""
        # Only what is known to be there is not an error.
        self.errors.update(load.block_id for load in self.job.loads)
        try:
            self._run()
        except Exception:
            logger.exception("Loading KV for request %s failed.", self.job.request_id)
        if self._cancelled.is_set():
            # Nobody may compute these blocks again, because nobody waits for them.
            self.errors.clear()

    def _run(self) -> None:
        for start in range(0, len(self.job.loads), BLOCKS_PER_COPY):
            if self._cancelled.is_set():
                return
            loads = self.job.loads[start : start + BLOCKS_PER_COPY]
            host = torch.empty((len(loads), self._files.pages.block_bytes), dtype=torch.uint8)
            good = [
                row for row, load in enumerate(loads) if self._files.read(self.job.blocks, load.block_hash, host[row])
            ]
            block_ids = [loads[row].block_id for row in good]
            if good:
                with self._order.behind():
                    self._files.pages.write(block_ids, host[good])
            self.errors.difference_update(block_ids)


class Save:
    """Takes blocks out of the KV cache and stages them. ``failed`` are the ids of saves that came to nothing."""

    def __init__(self, saves: Sequence[BlockSave], staging: str, files: BlockFiles, order: StreamOrder) -> None:
        self.saves = tuple(saves)
        self.failed: set[int] = {save.save_id for save in saves}
        self._staging = staging
        self._files = files
        self._order = order
        self._lock = threading.Lock()
        self._host: torch.Tensor | None = None

    def take_out(self) -> torch.Tensor:
        """The content of the blocks; they may be overwritten once this has returned, in whichever thread.

        The engine's thread calls it for blocks that are about to get a new owner: it need not wait for the queue, at
        most for the copy that is being made right now.
        """
        with self._lock:
            if self._host is None:
                with self._order.behind():
                    self._host = self._files.pages.read([save.block_id for save in self.saves])
            return self._host

    def run(self) -> None:
        """Copy, then write. A save that fails costs a later hit and nothing else."""
        try:
            host = self.take_out()
            for row, save in enumerate(self.saves):
                if self._files.stage(self._staging, save, host[row]):
                    self.failed.discard(save.save_id)
        except Exception:
            logger.exception("Storing %d KV blocks failed.", len(self.saves))
