"""Connectors that are wrong about KV cache groups; each is the hybrid file store with one defect."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from kvconform.reference import hybrid_file_store
from kvconform.reference._file_store_messages import FileStoreMetadata
from kvconform.reference._file_store_scheduler import SchedulerSide
from kvconform.reference.hybrid_file_store import HybridFileStoreConnector


def _with_groups(change: Any) -> Any:
    """The groups that the connector finds, changed."""
    found = hybrid_file_store.transferred_groups
    return patch.object(hybrid_file_store, "transferred_groups", lambda config: change(found(config)))


class FirstGroupOnly(HybridFileStoreConnector):
    """Everything is done for block_ids[0] (bug 13, dynamo#13755, R32)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        with _with_groups(lambda groups: groups[:1]):
            super().__init__(vllm_config, role, kv_cache_config)


class LoadsOtherGroup(HybridFileStoreConnector):
    """All groups load what the first one stored (R32)."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        for worker in self._worker_sides():
            worker._require_pages().fingerprint = ""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._step_metadata()
        first = metadata.groups[0].blocks
        self.bind_connector_metadata(replace(metadata, groups=tuple(replace(g, blocks=first) for g in metadata.groups)))
        super().start_load_kv(forward_context, **kwargs)
        self.bind_connector_metadata(metadata)


class SavesWindowsLater(HybridFileStoreConnector):
    """A save is put off for a step, and the window has given its block away by then (bug 58, vllm#42959, R12, R32)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._put_off: dict[int, FileStoreMetadata] = {}

    def wait_for_save(self) -> None:
        for group, worker, now in zip(self._groups, self._worker_sides(), self._step_metadata().groups, strict=True):
            due: FileStoreMetadata | None = now
            if group.window is not None:
                due, self._put_off[group.index] = self._put_off.get(group.index), now
            if due is not None:
                worker.save(due)


class LoadsNullBlocks(HybridFileStoreConnector):
    """Null blocks are taken for blocks (bug 59, vllm#42945, R7, R32)."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        for side in self._scheduler_side()._sides:
            SchedulerSide.allocated(side, request, blocks.get_block_ids()[side.group.index], num_external_tokens)


class DividesWindow(HybridFileStoreConnector):
    """A window of w tokens is taken for w // block blocks (bug 62, vllm#48959, R32)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        groups = []
        for group, work in zip(self._groups, metadata.groups, strict=True):
            most = None if group.window is None else group.window // group.block_tokens
            groups.append(work if most is None else replace(work, loads=work.loads[-most:]))
        return replace(metadata, groups=tuple(groups))


class OneBlockSize(HybridFileStoreConnector):
    """The block size of the first group counts for all (bug 65, vllm#54878, R32)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        def change(groups: Any) -> Any:
            return [replace(group, block_tokens=groups[0].block_tokens) for group in groups]

        with _with_groups(change):
            super().__init__(vllm_config, role, kv_cache_config)


class GoesOnWithoutIt(HybridFileStoreConnector):
    """A load that fails is logged, and the forward runs on what is there (vllm-ascend#7913, R17)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        with suppress(RuntimeError):
            super().start_load_kv(forward_context, **kwargs)


class NamesBlocksOfGroups(HybridFileStoreConnector):
    """A load that fails is reported as with one group, by its blocks (R17, R32)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._failed: set[int] = set()
        try:
            super().start_load_kv(forward_context, **kwargs)
        except RuntimeError:
            self._failed = {load.block_id for group in self._step_metadata().groups for load in group.loads}

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._failed
