"""Legal, if odd, behaviour of the two roles: none of it may be accused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from kvconform.reference.file_store import FileStoreConnector

# A process-wide store that is looked up by a configured name is a store, not hidden state of a role.
_COUNTERS: dict[str, dict[str, int]] = {}


class NamedStore(FileStoreConnector):
    """Both roles use a process-wide object of the configured name."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        path = self._kv_transfer_config.kv_connector_extra_config["path"]
        self.counters = _COUNTERS.setdefault(path, {"saves": 0})

    def wait_for_save(self) -> None:
        self.counters["saves"] += 1
        super().wait_for_save()

    def update_connector_output(self, connector_output: Any) -> None:
        self.counters["saves"] = 0
        super().update_connector_output(connector_output)


class PinsThroughPool(FileStoreConnector):
    """Holds blocks with the block pool's own means, and adapts a request before it is scheduled."""

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self.pool, self.pinned = gpu_block_pool, {}

    def on_new_request(self, request: Any) -> None:
        request.kv_transfer_params = {"seen": True}
        request.max_tokens = max(1, request.max_tokens - 1)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        request.kv_transfer_params["seen"] = False
        held = [self.pool.blocks[i] for i in blocks.get_block_ids()[0] if i]
        self.pool.touch(held)
        self.pinned.setdefault(request.request_id, []).extend(held)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        for request_id in scheduler_output.preempted_req_ids or ():
            self._unpin(request_id)
        return super().build_connector_meta(scheduler_output)

    def _unpin(self, request_id: str) -> None:
        self.pool.free_blocks(reversed(self.pinned.pop(request_id, [])))

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        self._unpin(request.request_id)
        delayed, _ = super().request_finished(request, block_ids)
        return delayed, {"remote_block_ids": (block_ids,), "weights": [0.5, None, True], "id": "x"}


@dataclass
class LiveMetadata(KVConnectorMetadata):
    """Carries a registry of the scheduler role that only grows, and a list that the worker empties."""

    inner: Any
    registry: dict[str, int]
    jobs: list[int] = field(default_factory=list)


class LiveRegistry(FileStoreConnector):
    """As connectors that vLLM ships do: a live registry in the metadata, and a worker that takes entries out of it."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self.seen = getattr(self, "seen", {})
        self.seen.update(dict.fromkeys(scheduler_output.num_scheduled_tokens, 1))
        return LiveMetadata(super().build_connector_meta(scheduler_output), self.seen, [1, 2, 3])

    def _step_metadata(self) -> Any:
        return self._get_connector_metadata().inner

    def wait_for_save(self) -> None:
        self._get_connector_metadata().jobs.clear()
        super().wait_for_save()


class Handshaking(FileStoreConnector):
    """Offers handshake metadata, and replaces what it was told at every delivery."""

    def get_handshake_metadata(self) -> Any:
        return Endpoint("127.0.0.1", 1)

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        self.peers = dict(metadata)


@dataclass
class Endpoint:
    """Not derived from KVConnectorHandshakeMetadata, which the engine does not test for."""

    host: str
    port: int
