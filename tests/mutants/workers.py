"""Connectors that are right with one worker and wrong with several; each is a reference connector with one defect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from kvconform.reference._block_store import block_label
from kvconform.reference._file_store_messages import FileStoreReport
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector


class LoadsRankZero(FileStoreConnector):
    """Every worker loads the shard of rank 0 (bugs 119 and 121, vllm#55191, R20)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        worker = self._worker_side()
        rank, worker._rank = worker._rank, 0
        super().start_load_kv(forward_context, **kwargs)
        worker._rank = rank


class CountsOneWorker(AsyncFileStoreConnector):
    """get_finished_count says 1, and every worker reports (bugs 83 and 85, R14)."""

    def get_finished_count(self) -> int | None:
        return 1


class _Stats(KVConnectorStats):
    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        return self

    def reduce(self) -> dict[str, int | float]:
        return {}

    def is_empty(self) -> bool:
        return not self.data


class _OtherStats(_Stats):
    pass


class StatsByRank(FileStoreConnector):
    """Each rank has a class of statistics of its own (R28)."""

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        if self._worker is None or not self.has_connector_metadata():
            return None
        kind = _OtherStats if self._worker._rank else _Stats
        return kind(data={"loads": 1})

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return _Stats(data=data or {})


@dataclass(frozen=True)
class _Unmerged(FileStoreReport):
    def aggregate(self, other: Any) -> Any:
        self.steps.update(other.steps)


class MergesInPlace(FileStoreConnector):
    """aggregate changes its own object and returns nothing (R26)."""

    def build_connector_worker_meta(self) -> FileStoreReport | None:
        report = super().build_connector_worker_meta()
        return None if report is None else _Unmerged(report.steps)


@dataclass(frozen=True)
class _Silent(FileStoreReport):
    def __len__(self) -> int:
        return 0


class FalseReport(FileStoreConnector):
    """What the workers report counts as false, because its length is 0 (contract TP-10)."""

    def build_connector_worker_meta(self) -> FileStoreReport | None:
        report = super().build_connector_worker_meta()
        return None if report is None else _Silent(report.steps)


class AsksRankZero(FileStoreConnector):
    """The lookup asks for the shard of rank 0 only, and what the others miss is not reported (bug 121, R3)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            store, ranks = self._scheduler._store, self._scheduler._world_size
            everywhere = store.contains
            store.contains = lambda blocks, block, size: (
                any(  # type: ignore[method-assign]
                    store.block_path(blocks, block, rank).is_file() for rank in range(ranks)
                )
                if ranks > 1
                else everywhere(blocks, block, size)
            )

    def get_block_ids_with_load_errors(self) -> set[int]:
        errors = super().get_block_ids_with_load_errors()
        return errors if self._worker_side()._world_size == 1 else set()


class SharesOneName(FileStoreConnector):
    """All ranks store under one name, so that the last one's part stays (bug 122, pegaflow#206, R20)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        store = self._scheduler_side()._store if self._worker is None else self._worker._store
        path = store.block_path
        store.block_path = lambda directory, block_hash, rank: path(directory, block_hash, 0)  # type: ignore[method-assign]
        if (worker := self._worker) is not None:
            worker._label = lambda block_hash: block_label(block_hash, 0, 1, worker._require_pages().fingerprint)  # type: ignore[method-assign]


class SilentRank(AsyncFileStoreConnector):
    """Rank 0 speaks for all; the others report no completion (R14)."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        done = super().get_finished(finished_req_ids)
        return (None, None) if self._vllm_config.parallel_config.rank else done
