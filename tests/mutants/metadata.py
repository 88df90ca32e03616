"""Connectors that read the scheduler output wrongly, or keep what they should not; the file store with one defect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvconform.reference._file_store_messages import BlockLoad
from kvconform.reference.file_store import FileStoreConnector


class RepeatsLoads(FileStoreConnector):
    """Planned loads are never taken off the list (bug 11, R10)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._planned: dict[int, BlockLoad] = {}

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        assert hasattr(metadata, "loads")
        self._planned |= {load.block_id: load for load in metadata.loads}
        return replace(metadata, loads=tuple(self._planned.values()))


class InsistsOnNewBlocks(FileStoreConnector):
    """Every step is expected to bring new blocks (bug 41, vllm#28860, R7)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        for new_block_ids in scheduler_output.scheduled_cached_reqs.new_block_ids:
            assert new_block_ids is not None
        return super().build_connector_meta(scheduler_output)


class KeepsBlockState(FileStoreConnector):
    """The scheduler's block state is kept for later."""

    _state: Any = None

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._state = scheduler_output.kv_connector_block_state
        return super().build_connector_meta(scheduler_output)


class RemembersRequests(FileStoreConnector):
    """request_finished forgets nothing, and what is known of an id is taken for true (R15, R16)."""

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return False, None
