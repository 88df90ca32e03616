"""Worker role of HostOffloadConnector: moves blocks between the KV cache and host memory, and decides nothing."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.logger import init_logger

from ._file_store_messages import FileStoreReport, StepResult
from ._host_stats import LOAD_FAILURES, LOADED, SAVED, StatsCollector
from ._kv_pages import KVPages

logger = init_logger(__name__)


@dataclass(frozen=True)
class HostMetadata(KVConnectorMetadata):
    """The work of one step. ``loads`` are (GPU block, slot), ``saves`` (save id, GPU block, slot)."""

    step: int
    loads: tuple[tuple[int, int], ...] = ()
    saves: tuple[tuple[int, int, int], ...] = ()


class HealthFile:
    """Makes loads fail, for tests: while the file is missing or damaged, nothing can be loaded.

    One failed step repairs it, as if a device had been reset. Without a path all is well for ever.
    """

    _CONTENT = b"loads work"

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._write()

    def check(self) -> bool:
        """Whether loads work now; if not, they will in the next step."""
        if self._path is None:
            return True
        with contextlib.suppress(OSError):
            if self._path.read_bytes() == self._CONTENT:
                return True
        self._write()
        return False

    def _write(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            if self._path.is_dir() and not self._path.is_symlink():
                shutil.rmtree(self._path)
            self._path.unlink(missing_ok=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(self._CONTENT)


class HostWorkerSide:
    """One rank's slots: as many blocks of host memory as the scheduler's pool has slots."""

    def __init__(self, capacity: int, health: HealthFile) -> None:
        self._capacity = capacity
        self._health = health
        self._pages: KVPages | None = None
        self._slots = torch.empty(0, dtype=torch.uint8)
        self._errors: set[int] = set()
        self._results: dict[int, StepResult] = {}
        self._unfinished: HostMetadata | None = None
        self.stats = StatsCollector()

    def register(self, pages: KVPages) -> None:
        self._pages = pages
        self._slots = torch.empty((self._capacity, pages.block_bytes), dtype=torch.uint8)

    def load(self, metadata: HostMetadata) -> None:
        """Fill the blocks that this step's forward counts as computed, or report all of them as failed."""
        self._abandon_unfinished_step()
        if metadata.loads or metadata.saves:
            self._unfinished = metadata
        if not metadata.loads:
            return
        blocks = [block for block, _ in metadata.loads]
        if not self._health.check():
            logger.warning("KV blocks %s could not be loaded.", blocks)
            self._errors.update(blocks)
            self.stats.count(LOAD_FAILURES, len(blocks))
            return
        self._require_pages().write(blocks, self._slots[[slot for _, slot in metadata.loads]])
        self.stats.count(LOADED, len(blocks))

    def save(self, metadata: HostMetadata) -> None:
        """Copy the blocks that this step's forward has completed; they have left the KV cache when this returns."""
        if metadata.saves:
            _, blocks, slots = zip(*metadata.saves, strict=True)
            self._slots[list(slots)] = self._require_pages().read(blocks)
            self.stats.count(SAVED, len(blocks))
        if self._unfinished is not None:
            self._results[metadata.step] = StepResult(votes=1)
        self._unfinished = None

    def take_load_errors(self) -> set[int]:
        errors, self._errors = self._errors, set()
        return errors

    def take_report(self) -> FileStoreReport | None:
        """Results of the steps that ended since the last call, in the form that all stores here share."""
        if not self._results:
            return None
        results, self._results = self._results, {}
        return FileStoreReport(results)

    def close(self) -> None:
        self._pages = None
        self._slots = torch.empty(0, dtype=torch.uint8)

    def _abandon_unfinished_step(self) -> None:
        """Vote for a step that vLLM never ended, because its forward raised."""
        if self._unfinished is not None:
            failed = frozenset(save_id for save_id, _, _ in self._unfinished.saves)
            self._results[self._unfinished.step] = StepResult(votes=1, failed=failed)
            self._unfinished = None

    def _require_pages(self) -> KVPages:
        if self._pages is None:
            raise RuntimeError("HostOffloadConnector has work but no KV cache; register_kv_caches must come first.")
        return self._pages
