"""Worker role of FileStoreConnector: moves bytes between the KV cache and files, and decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from vllm.logger import init_logger

from ._block_store import BlockFileError, BlockStore, block_label, read_block_file, write_block_file
from ._file_store_messages import BlockLoad, BlockSave, FileStoreMetadata, FileStoreReport, StepResult
from ._kv_pages import KVPages

logger = init_logger(__name__)

_Item = TypeVar("_Item")

# Blocks moved at a time: few copies, bounded host and device memory.
_BLOCKS_PER_COPY = 64


class WorkerSide:
    """One rank's loads and saves, synchronous and block by block.

    All work happens on the registered tensors in ``load`` (before the forward) and ``save`` (after it). The layer hooks
    are not needed, so full CUDA graphs, which never call them, are fine.
    """

    def __init__(self, store: BlockStore, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._pages: KVPages | None = None
        self._load_errors: set[int] = set()
        self._results: dict[int, StepResult] = {}
        self._unfinished: FileStoreMetadata | None = None

    def register(self, pages: KVPages) -> None:
        self._pages = pages

    def load(self, metadata: FileStoreMetadata) -> None:
        """Begin a step: fill the blocks that this step's forward counts as computed.

        A block that can't be read is left as it is and reported; the scheduler then recomputes it (or fails the
        request, as configured). Its file goes, or the same block would match again and fail for ever.
        """
        self._begin(metadata)
        for loads in _portions(metadata.loads):
            host = torch.empty((len(loads), self._require_pages().block_bytes), dtype=torch.uint8)
            good = [row for row, load in enumerate(loads) if self._read(metadata, load, host[row])]
            if good:
                self._require_pages().write([loads[row].block_id for row in good], host[good])

    def save(self, metadata: FileStoreMetadata) -> None:
        """End a step: stage the blocks that its forward has completed.

        The engine may give the blocks to somebody else as soon as this returns, so everything has left them by then.
        A save that fails is dropped: it costs a later hit and must not cost this step.
        """
        failed: list[int] = []
        for saves in _portions(metadata.saves):
            host = self._require_pages().read([save.block_id for save in saves])
            failed += self._stage(metadata, saves, host)
        self._end(metadata, failed)

    def take_load_errors(self) -> set[int]:
        """Ids of the blocks that could not be loaded since the last call."""
        errors, self._load_errors = self._load_errors, set()
        return errors

    def take_report(self) -> FileStoreReport | None:
        """Results of the steps finished since the last call.

        With speculative decoding vLLM asks before it calls ``wait_for_save``; the result then goes with the next step.
        """
        if not self._results:
            return None
        results, self._results = self._results, {}
        return FileStoreReport(results)

    def close(self) -> None:
        self._pages = None

    def _begin(self, metadata: FileStoreMetadata) -> None:
        self._abandon_unfinished_step()
        if metadata.has_work:
            self._unfinished = metadata

    def _end(self, metadata: FileStoreMetadata, failed: Sequence[int]) -> None:
        if metadata.has_work:
            self._results[metadata.step] = StepResult(votes=1, failed=frozenset(failed))
        self._unfinished = None

    def _stage(self, metadata: FileStoreMetadata, saves: Sequence[BlockSave], host: torch.Tensor) -> list[int]:
        """Write blocks from ``host`` to files; the save ids of those that could not be written."""
        return [save.save_id for row, save in enumerate(saves) if not self._write(metadata, save, host[row])]

    def _abandon_unfinished_step(self) -> None:
        """Vote for a step that vLLM never ended, because its forward raised or this pipeline stage ends early."""
        if self._unfinished is not None:
            failed = frozenset(save.save_id for save in self._unfinished.saves)
            self._results[self._unfinished.step] = StepResult(votes=1, failed=failed)
            self._unfinished = None

    def _read(self, metadata: FileStoreMetadata, load: BlockLoad, row: torch.Tensor) -> bool:
        path = self._store.block_path(metadata.blocks, load.block_hash, self._rank)
        try:
            read_block_file(path, self._label(load.block_hash), row.numpy().data)
        except (OSError, BlockFileError) as error:
            logger.warning("KV block %d could not be loaded: %s", load.block_id, error)
            self._store.remove(metadata.blocks, load.block_hash, self._rank)
            self._load_errors.add(load.block_id)
            return False
        return True

    def _write(self, metadata: FileStoreMetadata, save: BlockSave, row: torch.Tensor) -> bool:
        path = self._store.staged_path(metadata.staging, save.save_id, self._rank)
        try:
            write_block_file(path, self._label(save.block_hash), row.numpy().data)
        except OSError as error:
            logger.warning("KV block %d could not be stored: %s", save.block_id, error)
            return False
        return True

    def _label(self, block_hash: bytes) -> bytes:
        return block_label(block_hash, self._rank, self._world_size, self._require_pages().fingerprint)

    def _require_pages(self) -> KVPages:
        if self._pages is None:
            raise RuntimeError("FileStoreConnector has work but no KV cache; register_kv_caches must be called first.")
        return self._pages


def _portions(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _BLOCKS_PER_COPY):
        yield items[start : start + _BLOCKS_PER_COPY]
