"""Worker role of AsyncFileStoreConnector: starts transfers, and reports each of them once when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import torch

from ._async_messages import AsyncStoreMetadata, AsyncStoreReport, Hold, SaveVotes
from ._async_transfers import BLOCKS_PER_COPY, BlockFiles, Load, Save, StreamOrder, TransferPool
from ._block_store import BlockStore
from ._file_store_messages import BlockSave
from ._kv_pages import KVPages


class AsyncWorkerSide:
    """One rank's transfers.

    All methods run in the engine's thread, and only they touch this object; the transfers themselves run in the pool.
    A transfer ends when its future is done, and nothing is said of it before.
    """

    def __init__(self, store: BlockStore, rank: int, world_size: int, make_pool: Callable[[], TransferPool]) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._make_pool = make_pool
        self._pool: TransferPool | None = None
        self._files: BlockFiles | None = None
        self._device = torch.device("cpu")
        self._loads: dict[int, tuple[Load, Future[None]]] = {}
        self._saves: list[tuple[Save, Future[None]]] = []
        self._unsubmitted: tuple[BlockSave, ...] = ()
        self._holds: list[Hold] = []
        self._load_errors: set[int] = set()
        self._votes: dict[int, SaveVotes] = {}

    def register(self, pages: KVPages, device: torch.device) -> None:
        self._files = BlockFiles(self._store, pages, self._rank, self._world_size)
        self._device = device

    def fence(self, metadata: AsyncStoreMetadata) -> None:
        """Let saves let go of blocks that somebody else is about to write.

        It happens to blocks of preempted requests, and to those of requests that finished when there was nothing left
        to hold for. Blocks of a held request stay where they are, in vLLM's hands.
        """
        if metadata.fences:
            for save, _ in self._saves:
                if any(each.save_id in metadata.fences for each in save.saves):
                    save.take_out()

    def begin(self, metadata: AsyncStoreMetadata) -> None:
        """Begin a step: start its loads, and take note of who has ended."""
        self._give_up(self._unsubmitted)
        self._unsubmitted = metadata.saves
        for job in metadata.loads:
            load = Load(job, self._require_files(), StreamOrder(self._device))
            self._loads[job.load_id] = (load, self._require_pool().submit(load.run))
        for load_id in metadata.cancels:
            # It may have ended in the meantime.
            if load_id in self._loads:
                self._loads[load_id][0].cancel()
        self._holds += metadata.holds

    def save(self, metadata: AsyncStoreMetadata) -> None:
        """End a step: start to save the blocks that its forward has completed."""
        self._unsubmitted = ()
        for start in range(0, len(metadata.saves), BLOCKS_PER_COPY):
            portion = metadata.saves[start : start + BLOCKS_PER_COPY]
            save = Save(portion, metadata.staging, self._require_files(), StreamOrder(self._device))
            self._saves.append((save, self._require_pool().submit(save.run)))

    def collect(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks are not needed any more, and requests whose load has ended, each of them once."""
        running: list[tuple[Save, Future[None]]] = []
        for save, future in self._saves:
            if future.done():
                self._vote(save)
            else:
                running.append((save, future))
        self._saves = running

        received: set[str] = set()
        for load_id, (load, future) in list(self._loads.items()):
            if future.done():
                del self._loads[load_id]
                self._load_errors |= load.errors
                received.add(load.job.request_id)

        busy = {each.save_id for save, _ in running for each in save.saves}
        released = {hold.request_id for hold in self._holds if hold.save_ids.isdisjoint(busy)}
        self._holds = [hold for hold in self._holds if not hold.save_ids.isdisjoint(busy)]
        return released, received

    def take_load_errors(self) -> set[int]:
        """Ids of blocks that could not be loaded.

        vLLM asks right after it has collected the completions, so no completion arrives ahead of its errors.
        """
        errors, self._load_errors = self._load_errors, set()
        return errors

    def take_report(self) -> AsyncStoreReport | None:
        if not self._votes:
            return None
        votes, self._votes = self._votes, {}
        return AsyncStoreReport(votes)

    def close(self) -> None:
        """Wait for what is being moved, since the memory goes next, and drop the rest."""
        if self._pool is not None:
            for load, _ in self._loads.values():
                load.cancel()
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._files = None
        self._loads.clear()
        self._saves.clear()
        self._holds.clear()
        self._unsubmitted = ()

    def _vote(self, save: Save) -> None:
        for each in save.saves:
            self._votes[each.save_id] = SaveVotes(votes=1, failures=int(each.save_id in save.failed))

    def _give_up(self, saves: tuple[BlockSave, ...]) -> None:
        """Vote for saves of a step that vLLM never ended, because its forward raised."""
        for save in saves:
            self._votes[save.save_id] = SaveVotes(votes=1, failures=1)

    def _require_files(self) -> BlockFiles:
        if self._files is None:
            raise RuntimeError("AsyncFileStoreConnector has work but no KV cache; call register_kv_caches first.")
        return self._files

    def _require_pool(self) -> TransferPool:
        if self._pool is None:
            self._pool = self._make_pool()
        return self._pool
