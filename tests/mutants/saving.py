"""Connectors that get one thing wrong in what they save, or in when it can be found."""

from __future__ import annotations

from typing import Any, ClassVar

import stepwise
import torch

from kvconform.reference._file_store_messages import BlockSave, FileStoreMetadata
from kvconform.reference._host_scheduler import HostSchedulerSide
from kvconform.reference.file_store import FileStoreConnector
from kvconform.reference.host_offload import HostOffloadConnector


class ExpectsLayers(FileStoreConnector):
    """R23: the end of a step collects what the layer hooks have brought, and there is always something."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._layers: list[str] = []

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        self._layers.append(layer_name)

    def wait_for_save(self) -> None:
        assert self._layers, "no layer was saved in this step"
        self._layers.clear()
        super().wait_for_save()


class PairsNewKeysWithOldBlocks(FileStoreConnector):
    """unified-cache-management#1007, bugs 43 (R8): keys that are stored already are left out, their blocks are not."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        scheduler = self._scheduler_side()
        metadata = super().build_connector_meta(scheduler_output)
        saves: list[BlockSave] = []
        for save in metadata.saves:
            pending = scheduler._steps[metadata.step].saves[save.save_id]
            index = pending.table.index(save.block_id)
            tracked = next(t for t in scheduler._requests.values() if t.table is pending.table)
            skipped = sum(
                scheduler._is_stored(scheduler._granularity.block_hash(tracked.request, earlier))
                for earlier in range(index)
                if tracked.request.skip_reading_prefix_cache
            )
            saves.append(BlockSave(save.save_id, pending.table[index - skipped], save.block_hash))
        return FileStoreMetadata(metadata.step, metadata.blocks, metadata.staging, metadata.loads, tuple(saves))


class IsVisibleBeforeItIsThere(stepwise.SlowSaves):
    """R19: the object is created under its key when the save begins, and filled when it ends."""

    def wait_for_save(self) -> None:
        super().wait_for_save()
        metadata, worker = self._step_metadata(), self._worker_side()
        empty = torch.zeros(worker._require_files().pages.block_bytes, dtype=torch.uint8)
        for save in metadata.saves:
            worker._require_files().stage(metadata.staging + "-early", save, empty)
            early = worker._store.staged_path(metadata.staging + "-early", save.save_id, 0)
            target = worker._store.block_path(
                metadata.staging.rpartition("/engines/")[0] + "/generation-0", save.block_hash, 0
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            early.replace(target)


class _KeepsAnswers(HostSchedulerSide):
    """Gives back only what a load was planned for."""

    def _release_promise(self, request_id: str) -> None:
        if request_id in self._planned_loads:
            super()._release_promise(request_id)


class PinsWhatItAnswers(HostOffloadConnector):
    """Pins of a match are given back with its load, which may never come (bugs 31 and 32, R1, R4)."""

    side: ClassVar[type[HostSchedulerSide]] = _KeepsAnswers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            self._scheduler.__class__ = self.side


class _KeepsLoads(HostSchedulerSide):
    """Forgets which step's loads have pins."""

    def build_host_metadata(self, output: Any) -> Any:
        metadata = super().build_host_metadata(output)
        self._loading.clear()
        return metadata


class PinsWhatItLoads(PinsWhatItAnswers):
    """Pins of a load are never given back (R4)."""

    side = _KeepsLoads


class TakesWhatFits(HostOffloadConnector):
    """A pool that is full takes nothing more, whatever is in it (bug 139, R18)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            pool = self._pool
            reserve = pool.reserve
            pool.reserve = lambda save_id, story: reserve(save_id, story) if pool._free else None  # type: ignore[method-assign]
